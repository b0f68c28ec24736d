"""LDAM: label-distribution-aware margins (Cao et al., NeurIPS 2019, arXiv:1906.07413)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    GroupsLike,
    check_at_least,
    check_choice,
    check_in_range,
    check_integer,
    check_positive,
)
from lightning_robust.functional.losses import effective_number_weights, label_margins
from lightning_robust.steering import Steer


class LDAM(Method):
    """Asks rare classes, or groups, for a larger margin, and weighs them up late in training.

    **What changes**: while training, a margin that falls with the fourth root of the size of the
    class is taken off the logit of the target, and all logits are multiplied by ``scale``. From
    ``reweight_epoch`` on, the loss of rare classes counts more too. **Needs** targets;
    with ``by="group"`` also groups. **Costs** one addition a batch; while it re-weighs, one
    all-reduced number under DDP: weights are 1 on average over the batch of all ranks.

    Args:
        groups: The group of every training example: a tensor, array or list (n,), or a CSV or
            Parquet file (see :func:`~lightning_robust.contracts.resolve_groups`); ``None`` takes
            ``dataset.groups``. Not used with ``by="class"``.
        by: Whose size counts, ``"class"`` or ``"group"``.
        max_margin: Margin of the smallest class, >= 0.
        scale: > 0, multiplies the logits after the margin. The authors' 30 goes with a head whose
            features and weights have length 1; for a usual head take 1.
        reweight_epoch: First epoch of deferred re-weighting; ``None`` never re-weighs.
        beta: Of the weights ``(1 - beta) / (1 - beta^n)``, in [0, 1]; 1 is 1 / n.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: Before the first step: no targets, groups that are missing, of the wrong
            length, type or range, or only one of them; a head that is not found, a value out of
            range.

    Logged keys: none.

    References:
        The LDAM loss and Algorithm 1, deferred re-weighting with weights divided by their sum over
        the batch; weights by effective numbers and a largest margin of .5 as in the authors' code.
        Departures: the head stays the user's, where theirs normalises features and weights;
        Algorithm 1 lowers the learning rate when it starts to re-weigh, here that is left to the
        user's scheduler; ``by="group"`` is not in the paper.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import LDAM
        >>> method = LDAM(reweight_epoch=30)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("reweighting",)

    def __init__(
        self,
        groups: GroupsLike | None = None,
        *,
        by: Literal["class", "group"] = "class",
        max_margin: float = 0.5,
        scale: float = 1.0,
        reweight_epoch: int | None = None,
        beta: float = 0.9999,
        head: str | None = None,
    ) -> None:
        check_choice("by", by, ("class", "group"))
        check_at_least("max_margin", max_margin, 0.0)
        check_positive("scale", scale)
        if reweight_epoch is not None:
            check_integer("reweight_epoch", reweight_epoch, 0)
        check_in_range("beta", beta, 0, 1)
        self.by = by
        self.max_margin = max_margin
        self.scale = scale
        self.reweight_epoch = reweight_epoch
        self.beta = beta
        self.needs_groups = by == "group"
        super().__init__(groups=groups, head=head)

    def reset(self) -> None:
        """The first epoch decides."""
        self.reweighting = False

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Compute each example's margin and weight."""
        ids = self.group_ids if self.by == "group" else self.targets
        counts = torch.bincount(ids)
        device = self.conductor.module.device
        margins = self.scale * label_margins(counts, self.max_margin)
        self._margins = margins[ids].float().to(device)
        self._weights = effective_number_weights(counts, self.beta)[ids].float().to(device)
        self._targets = self.targets.to(device)

    def decide(self, epoch: int) -> None:
        """Re-weigh when it is time."""
        self.reweighting = self.reweight_epoch is not None and epoch >= self.reweight_epoch

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Take the margin off the target's logit."""
        one_hot = F.one_hot(self._targets[indices], logits.shape[1])
        margins = self._margins[indices]
        return Steer(
            shift=-margins.unsqueeze(1) * one_hot,
            scale=None if self.scale == 1 else torch.full_like(margins, self.scale),
            weight=self._weight(indices) if self.reweighting else None,
        )

    def _weight(self, indices: Tensor) -> Tensor:
        """Weights of the batch, 1 on average over all ranks."""
        weights: Tensor = self._weights[indices]
        total = self.conductor.sum_over_ranks(weights.mean())
        mean: Tensor = total / self.conductor.trainer.world_size
        return weights / mean
