"""What the methods share that select a subset anew every few epochs, with the model as it is."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    check_clean_dataset,
    check_in_range,
    check_integer,
    check_positive,
)
from lightning_robust.functional.subsets import size_of_subset
from lightning_robust.steering import Steer


class _Coresets(Method):
    """Keeps a subset of ``fraction`` of the training set, and weighs its examples' losses.

    Subclasses say which in :meth:`_select`. Weights are scaled to a mean of 1 over the subset.
    """

    observes = True
    state: ClassVar[tuple[str, ...]] = ("kept", "weights")
    _key: ClassVar[str]  # the first part of logged keys

    def __init__(
        self,
        fraction: float,
        *,
        every_n_epochs: int,
        start_epoch: int,
        clean_dataset: Dataset[Any] | None,
        head: str | None,
        seed: int | None,
    ) -> None:
        check_in_range("fraction", fraction, 0, 1)
        check_positive("fraction", fraction)
        check_integer("every_n_epochs", every_n_epochs, 1)
        check_integer("start_epoch", start_epoch)
        self.fraction = fraction
        self.every_n_epochs = every_n_epochs
        self.start_epoch = start_epoch
        self.clean_dataset = clean_dataset
        super().__init__(head=head, seed=seed)

    def _select(self, epoch: int, total: int) -> tuple[Tensor, Tensor | None]:
        """Dataset indices (total,), and a weight >= 0 for each, or ``None`` for equal weights."""
        raise NotImplementedError

    def reset(self) -> None:
        """No subset before training."""
        self.kept: Tensor | None = None  # (n,) bool
        self.weights: Tensor | None = None  # (n,), 0 outside the subset
        self._there: tuple[Tensor, Tensor] | None = None  # weights and their copy on the device

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Check the data set without augmentation."""
        check_clean_dataset(self.clean_dataset, self.num_examples)

    def decide(self, epoch: int) -> None:
        """Select where it is time."""
        since = epoch - self.start_epoch
        if since < 0 or (self.kept is not None and since % self.every_n_epochs):
            return
        total = size_of_subset(self.fraction, self.num_examples)
        indices, weights = self._select(epoch, total)
        self.kept = torch.zeros(self.num_examples, dtype=torch.bool)
        self.kept[indices] = True
        if weights is not None:
            self.weights = torch.zeros(self.num_examples)
            self.weights[indices] = (weights.double() / weights.double().mean()).float()

    def vote(self) -> Tensor | None:
        """1 for what is in the subset, else 0."""
        return self.kept

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Weigh the batch's examples."""
        if self.weights is None:
            return None
        if self._there is None or self._there[0] is not self.weights:
            self._there = self.weights, self.weights.to(logits.device)
        return Steer(weight=self._there[1][indices])

    def report(self) -> dict[str, float | Tensor]:
        """Size of the subset, and the largest weight."""
        if self.kept is None:
            return {}
        report: dict[str, float | Tensor] = {f"{self._key}/num_examples": float(self.kept.sum())}
        if self.weights is not None:
            report[f"{self._key}/max_weight"] = float(self.weights.max())
        return report
