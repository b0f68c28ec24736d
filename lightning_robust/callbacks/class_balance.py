"""Class balancing: every class is drawn equally often."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import check_integer
from lightning_robust.functional.groups import balancing_weights


class ClassBalance(Method):
    """Draws every class equally often.

    **What changes**: from ``start_epoch`` on, an example is drawn with replacement in proportion to
    1 / (size of its class); an epoch has as many draws as there are examples. Classes that are
    balanced already are played without replacement. **Needs** targets. **Costs** nothing.

    Args:
        start_epoch: First epoch that is balanced; plain training before.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: the training set offers no targets.

    Logged keys: none.

    References:
        The "CB" rows of SPARE's Table 5.1 (Yang et al., ICML 2023, arXiv:2305.18761). No departure.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import ClassBalance
        >>> trainer = Trainer(callbacks=[ClassBalance()], logger=False, enable_checkpointing=False)
    """

    state = ("active",)

    def __init__(self, *, start_epoch: int = 0, seed: int | None = None) -> None:
        check_integer("start_epoch", start_epoch, 0)
        self.start_epoch = start_epoch
        super().__init__(seed=seed)

    def reset(self) -> None:
        """Not active before training."""
        self.active = False

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Compute each example's weight."""
        self._weights = balancing_weights(self.targets, self.num_classes)

    def decide(self, epoch: int) -> None:
        """Become active at ``start_epoch``."""
        self.active = epoch >= self.start_epoch

    def vote(self) -> Tensor | None:
        """1 / class size, times n / number of classes."""
        return self._weights if self.active else None
