"""Group balancing: every group is drawn equally often."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import GroupsLike, check_integer
from lightning_robust.functional.groups import balancing_weights


class GroupBalance(Method):
    """Draws every group equally often.

    **What changes**: from ``start_epoch`` on, an example is drawn with replacement in proportion to
    1 / (size of its group); an epoch has as many draws as there are examples. Groups that are
    balanced already are played without replacement. **Needs** the groups of the training examples.
    **Costs** nothing.

    Args:
        groups: The group of every training example: a tensor, array or list (n,), or a CSV or
            Parquet file (see :func:`~lightning_robust.contracts.resolve_groups`); ``None`` takes
            ``dataset.groups``.
        start_epoch: First epoch that is balanced; plain training before.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: groups are missing, of the wrong length, type or
            range, or there is only one.

    Logged keys: none.

    References:
        The "GB" rows of SPARE's Table 5.1 (Yang et al., ICML 2023, arXiv:2305.18761). No departure.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import GroupBalance
        >>> trainer = Trainer(callbacks=[GroupBalance()], logger=False, enable_checkpointing=False)
    """

    needs_groups = True
    state = ("active",)

    def __init__(
        self,
        groups: GroupsLike | None = None,
        *,
        start_epoch: int = 0,
        seed: int | None = None,
    ) -> None:
        check_integer("start_epoch", start_epoch, 0)
        self.start_epoch = start_epoch
        super().__init__(groups=groups, seed=seed)

    def reset(self) -> None:
        """Not active before training."""
        self.active = False

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Compute each example's weight."""
        self._weights = balancing_weights(self.group_ids, len(self.group_names))

    def decide(self, epoch: int) -> None:
        """Become active at ``start_epoch``."""
        self.active = epoch >= self.start_epoch

    def vote(self) -> Tensor | None:
        """1 / group size, times n / number of groups."""
        return self._weights if self.active else None
