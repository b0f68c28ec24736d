"""What methods share that train for a while, infer groups, and train again by them."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.callbacks._batches import ascend
from lightning_robust.contracts import (
    Groups,
    GroupsLike,
    check_at_least,
    check_bool,
    check_clean_dataset,
    check_integer,
)
from lightning_robust.functional.groups import balancing_weights
from lightning_robust.steering import Steer


class _Inferred(Method):
    """Trains ``identification_epochs`` as usual, infers groups once, and starts again.

    Subclasses say how in :meth:`_infer`, and what the second training needs in :meth:`_build`.
    """

    observes = True
    state: ClassVar[tuple[str, ...]] = ("initial", "ids")

    def __init__(
        self,
        identification_epochs: int,
        *,
        reinitialise: bool,
        clean_dataset: Dataset[Any] | None,
        groups: GroupsLike | None = None,
        head: str | None,
        seed: int | None,
    ) -> None:
        check_integer("identification_epochs", identification_epochs, 1)
        check_bool("reinitialise", reinitialise)
        self.identification_epochs = identification_epochs
        self.reinitialise = reinitialise
        self.clean_dataset = clean_dataset
        super().__init__(groups=groups, head=head, seed=seed)

    def _infer(self, epoch: int) -> Tensor:
        """The group of each training example, (n,) int64, by the model as it is now."""
        raise NotImplementedError

    def _build(self) -> None:
        """Make the tables of the second training; called again after a resume."""

    @property
    def inferred(self) -> Groups:
        """The groups, once inferred, for any method that takes ``groups=``."""
        if self.ids is None:
            name = type(self).__name__
            raise RuntimeError(f"nothing is inferred yet; {name} infers in a fit")
        return Groups.from_ids(self.ids)

    def reset(self) -> None:
        """No groups before training."""
        self.initial: dict[str, Any] | None = None
        self.ids: Tensor | None = None  # (n,) int64

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Check what can be checked before the first step; after a resume, rebuild the tables."""
        check_clean_dataset(self.clean_dataset, self.num_examples)
        max_epochs = self.conductor.trainer.max_epochs
        if max_epochs is not None and 0 <= max_epochs <= self.identification_epochs:
            warnings.warn(
                f"{type(self).__name__} infers groups after epoch {self.identification_epochs}, "
                f"and training ends then (max_epochs={max_epochs}): there will be no second "
                "training",
                stacklevel=2,
            )
        if self.ids is not None:
            self._build()

    def begin(self) -> None:
        """Keep the initial weights."""
        if self.reinitialise:
            self.initial = self.conductor.snapshot()

    def decide(self, epoch: int) -> None:
        """Infer when it is time, once."""
        if self.ids is not None or epoch < self.identification_epochs:
            return
        self.ids = self._infer(epoch)
        self._build()
        if self.initial is not None:
            self.conductor.restart(self.initial)
            self.initial = None


class _InferredDRO(_Inferred):
    """Group DRO, in the second training, on the groups that were inferred."""

    state: ClassVar[tuple[str, ...]] = ("initial", "ids", "weights")

    def __init__(
        self,
        identification_epochs: int,
        *,
        step_size: float | None,
        balanced_sampling: bool,
        reinitialise: bool,
        clean_dataset: Dataset[Any] | None,
        groups: GroupsLike | None = None,
        head: str | None,
        seed: int | None,
    ) -> None:
        if step_size is not None:
            check_at_least("step_size", step_size, 0.0)
        check_bool("balanced_sampling", balanced_sampling)
        self.step_size = step_size
        self.balanced_sampling = balanced_sampling
        super().__init__(
            identification_epochs,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            groups=groups,
            head=head,
            seed=seed,
        )

    def reset(self) -> None:
        """No groups, and no distribution over them, before training."""
        super().reset()
        self.weights: Tensor | None = None  # q of the groups

    def vote(self) -> Tensor | None:
        """With ``balanced_sampling``, 1 / size of the inferred group."""
        return self._balancing if self.ids is not None and self.balanced_sampling else None

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """A step of Group DRO on the inferred groups."""
        if self.weights is None or self.step_size is None:
            return None
        losses = F.cross_entropy(logits.float(), self._targets[indices], reduction="none")
        self.weights, weight = ascend(
            self.conductor, self.weights, losses, self._groups[indices], self.step_size
        )
        return Steer(weight=weight)

    def _build(self) -> None:
        assert self.ids is not None
        counts, device = torch.bincount(self.ids), self.conductor.module.device
        self._balancing = balancing_weights(self.ids, len(counts))
        self._groups, self._targets = self.ids.to(device), self.targets.to(device)
        if self.weights is None:
            self.weights = (counts > 0) / (counts > 0).sum()
        self.weights = self.weights.to(device)
