"""Importance weighting: the loss of rare groups or classes counts more."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import GroupsLike, check_choice
from lightning_robust.functional.groups import balancing_weights
from lightning_robust.steering import Steer


class ImportanceWeighting(Method):
    """Weighs each example's loss by 1 / frequency of its group, or of its class.

    **What changes**: the loss of an example of group g counts ``n / (G * n_g)`` times: 1 on
    average over the training set, and each of the G groups counts alike. Which examples are drawn
    stays as it was. **Needs** the groups of the training examples; with ``by="class"`` only
    targets. **Costs** one multiplication of the gradient at the logits.

    Args:
        groups: The group of every training example: a tensor, array or list (n,), or a CSV or
            Parquet file (see :func:`~lightning_robust.contracts.resolve_groups`); ``None`` takes
            ``dataset.groups``. Not used with ``by="class"``.
        by: Whose frequency counts, ``"group"`` or ``"class"``.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: Before the first step: groups are missing, of the wrong length, type or
            range, or there is only one; the head is not found.

    Logged keys: none.

    References:
        Shimodaira, 2000; as a baseline for groups, Section 3 of Sagawa et al., ICML 2020
        (arXiv:2005.04345). Departure: weights are normalised over the training set, not over the
        batch, so that a batch without a group has the gradient that it should have on average.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import ImportanceWeighting
        >>> method = ImportanceWeighting(by="class")
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        groups: GroupsLike | None = None,
        *,
        by: Literal["group", "class"] = "group",
        head: str | None = None,
    ) -> None:
        check_choice("by", by, ("group", "class"))
        self.by = by
        self.needs_groups = by == "group"
        super().__init__(groups=groups, head=head)

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Compute each example's weight."""
        if self.by == "group":
            weights = balancing_weights(self.group_ids, len(self.group_names))
        else:
            weights = balancing_weights(self.targets, self.num_classes)
        self._weights = weights.float().to(self.conductor.module.device)

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Weigh the batch's examples."""
        return Steer(weight=self._weights[indices])
