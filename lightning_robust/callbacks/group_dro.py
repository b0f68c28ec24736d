"""Group DRO (Sagawa et al., ICLR 2020, https://arxiv.org/abs/1911.08731)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.callbacks._batches import ascend
from lightning_robust.contracts import (
    GroupsLike,
    check_at_least,
    check_bool,
    check_integer,
    names_in_keys,
)
from lightning_robust.functional.groups import balancing_weights
from lightning_robust.steering import Steer


class GroupDRO(Method):
    """Minimises the loss of the worst group, by weighting groups up while their loss is high.

    **What changes**: each training batch updates a distribution q over the groups,
    ``q_g <- q_g exp(step_size * L_g)``, and example i of group g counts ``B q_g / n_g`` times in
    the loss, so that a loss averaged over the batch becomes the sum of ``q_g L_g``. The loss stays
    the user's own; q is driven by the cross-entropy of the head's logits. With
    ``balanced_sampling`` every group is also drawn equally often. **Needs** the groups of the
    training examples. **Costs** a cross-entropy without gradient a batch, and under DDP one
    all-reduce of 2G numbers: group losses are those of the batch over all ranks.

    Args:
        groups: The group of every training example: a tensor, array or list (n,), or a CSV or
            Parquet file (see :func:`~lightning_robust.contracts.resolve_groups`); ``None`` takes
            ``dataset.groups``.
        step_size: eta >= 0 of the update of q.
        adjustment: C >= 0; ``C / sqrt(n_g)`` is added to the loss of group g when q is updated
            (Section 3.3 of the paper), n_g its size in the training set.
        balanced_sampling: Draw every group equally often, with replacement (the authors'
            ``--reweight_groups``); without it the batches are plainly shuffled.
        start_epoch: First epoch that is steered; plain training before.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: groups are missing, of the wrong length, type or
            range, or there is only one; a value is out of range; the head is not found.

    Logged keys:
        ``group_dro/weight/<group name>``: q at the end of each epoch.

    References:
        Algorithm 1 and Section 3.3. Departures: groups without a training example have no mass in q
        (in the authors' code they keep 1/G for ever); with ``adjustment`` the constant enters the
        update of q only, so the logged loss is the user's.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import GroupDRO
        >>> method = GroupDRO(step_size=0.01, balanced_sampling=True)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    needs_groups = True
    state = ("active", "weights")

    def __init__(
        self,
        groups: GroupsLike | None = None,
        *,
        step_size: float = 0.01,
        adjustment: float = 0.0,
        balanced_sampling: bool = False,
        start_epoch: int = 0,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_at_least("step_size", step_size, 0.0)
        self.step_size = step_size
        check_at_least("adjustment", adjustment, 0.0)
        self.adjustment = adjustment
        check_bool("balanced_sampling", balanced_sampling)
        self.balanced_sampling = balanced_sampling
        check_integer("start_epoch", start_epoch, 0)
        self.start_epoch = start_epoch
        super().__init__(groups=groups, head=head, seed=seed)

    def reset(self) -> None:
        """No distribution before training."""
        self.active = False
        self.weights: Tensor | None = None

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Move the tables a batch needs to the device; q starts uniform."""
        num_groups, device = len(self.group_names), self.conductor.module.device
        counts = torch.bincount(self.group_ids, minlength=num_groups)
        self._balancing = balancing_weights(self.group_ids, num_groups)
        self._groups, self._targets = self.group_ids.to(device), self.targets.to(device)
        self._adjustments = (self.adjustment / counts.clamp(min=1).sqrt()).to(device)
        if self.weights is None:
            self.weights = (counts > 0) / (counts > 0).sum()
        self.weights = self.weights.to(device)

    def decide(self, epoch: int) -> None:
        """Become active at ``start_epoch``."""
        self.active = epoch >= self.start_epoch

    def vote(self) -> Tensor | None:
        """With ``balanced_sampling``, 1 / group size, times n / number of groups."""
        return self._balancing if self.active and self.balanced_sampling else None

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Update q with this batch and weigh its examples."""
        if not self.active:
            return None
        assert self.weights is not None
        groups = self._groups[indices]
        losses = F.cross_entropy(logits.float(), self._targets[indices], reduction="none")
        self.weights, weight = ascend(
            self.conductor, self.weights, losses, groups, self.step_size, self._adjustments
        )
        return Steer(weight=weight)

    def report(self) -> dict[str, float | Tensor]:
        """Q, by group name."""
        if self.weights is None or not self.active:
            return {}
        return {
            f"group_dro/weight/{name}": weight
            for name, weight in zip(names_in_keys(self.group_names), self.weights, strict=True)
        }
