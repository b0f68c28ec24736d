"""The measures of representations as torchmetrics: sums of fixed size that add up over batches.

What they measure is in :mod:`lightning_robust.functional.representation`; representations are the
input of the classifier head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_robust.contracts import (
    check_in_range,
    check_integer,
    check_positive,
)
from lightning_robust.functional.representation import (
    activation_sums,
    compressibility,
    conflicting_loss_ratio,
    direction_sums,
    selectivity_of_sums,
    separation_of_sums,
    sparsity,
)

__all__ = [
    "ClassSeparation",
    "Compressibility",
    "ConflictingLossRatio",
    "Selectivity",
    "Sparsity",
]


class _Mean(Metric):
    """Mean of one number an example."""

    full_state_update = False
    is_differentiable = False

    sum: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sum", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.sum = self.sum + values.sum()
        self.count = self.count + len(values)

    def compute(self) -> Tensor:
        """Return the mean over examples, a scalar; NaN if there are none."""
        return self.sum / self.count


class Sparsity(_Mean):
    """Share of zeros in a representation, mean over examples.

    Args:
        kwargs: Options of every `torchmetrics.Metric`.

    Example:
        >>> metric = Sparsity()
        >>> metric.update(torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
        >>> metric.compute()
        tensor(0.2500)
    """

    def update(self, features: Tensor) -> None:
        """Add a batch of representations (n, d)."""
        self._add(sparsity(features))


class Compressibility(_Mean):
    """(q, kappa)-compressibility of a representation, mean over examples.

    Args:
        q: Of the norm, > 0.
        kappa: Share of the entries that are kept, in [0, 1].
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: ``q`` or ``kappa`` is out of range.

    Example:
        >>> metric = Compressibility()
        >>> metric.update(torch.stack([torch.eye(10)[3], torch.ones(10)]))
        >>> metric.compute()
        tensor(0.5257)
    """

    def __init__(self, q: float = 2.0, kappa: float = 0.1, **kwargs: Any) -> None:
        check_positive("q", q)
        check_in_range("kappa", kappa, 0, 1)
        super().__init__(**kwargs)
        self.q = q
        self.kappa = kappa

    def update(self, features: Tensor) -> None:
        """Add a batch of representations (n, d), floating."""
        self._add(compressibility(features.float(), self.q, self.kappa))


class ClassSeparation(Metric):
    """Class separation R^2 of representations, over everything that was seen.

    Args:
        num_classes: C.
        num_features: d.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: A number is no integer of at least 1.

    Example:
        >>> metric = ClassSeparation(num_classes=2, num_features=3)
        >>> metric.update(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 1]))
        >>> metric.compute()
        tensor(1.)
    """

    full_state_update = False
    is_differentiable = False

    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, num_features: int, **kwargs: Any) -> None:
        check_integer("num_classes", num_classes, minimum=1)
        check_integer("num_features", num_features, minimum=1)
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.add_state("sums", torch.zeros(num_classes, num_features), dist_reduce_fx="sum")
        counts = torch.zeros(num_classes, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Add representations (n, d) and targets (n,) in [0, num_classes)."""
        sums, counts = direction_sums(features, targets, self.num_classes)
        self.sums = self.sums + sums
        self.counts = self.counts + counts

    def compute(self) -> Tensor:
        """Return R^2, a scalar; NaN if nothing was seen or it all points the same way."""
        return separation_of_sums(self.sums, self.counts)


class Selectivity(Metric):
    """Class-selectivity index with coverage, mean over neurons; with bias labels the bias index.

    Args:
        num_labels: Classes, or bias labels.
        num_features: d, the neurons.
        epsilon: Keeps neurons that never fire at 0; > 0.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: A number is no integer of at least 1, or ``epsilon`` is not positive.

    Example:
        >>> metric = Selectivity(num_labels=2, num_features=2)
        >>> metric.update(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    is_differentiable = False

    sums: Tensor
    active: Tensor
    counts: Tensor

    def __init__(
        self, num_labels: int, num_features: int, epsilon: float = 1e-7, **kwargs: Any
    ) -> None:
        check_integer("num_labels", num_labels, minimum=1)
        check_integer("num_features", num_features, minimum=1)
        check_positive("epsilon", epsilon)
        super().__init__(**kwargs)
        self.num_labels = num_labels
        self.epsilon = epsilon
        zeros = torch.zeros(num_labels, num_features)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("active", zeros.to(torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add activations (n, d) >= 0 and labels (n,) in [0, num_labels)."""
        sums, active, counts = activation_sums(features, labels, self.num_labels)
        self.sums = self.sums + sums
        self.active = self.active + active
        self.counts = self.counts + counts

    def compute(self) -> Tensor:
        """Return the mean over neurons, a scalar; NaN if fewer than two labels have examples."""
        return selectivity_of_sums(self.sums, self.active, self.counts, self.epsilon).mean()


class ConflictingLossRatio(Metric):
    """Loss of the bias-conflicting examples, by the loss of all.

    Args:
        kwargs: Options of every `torchmetrics.Metric`.

    Example:
        >>> metric = ConflictingLossRatio()
        >>> metric.update(torch.tensor([1.0, 3.0]), conflicting=torch.tensor([False, True]))
        >>> metric.compute()
        tensor(0.7500)
    """

    full_state_update = False
    is_differentiable = False

    losses: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("losses", torch.zeros(2), dist_reduce_fx="sum")

    def update(self, losses: Tensor, conflicting: Tensor) -> None:
        """Add losses (n,), and which of them are of bias-conflicting examples (n,) bool."""
        parts = torch.stack([losses[~conflicting].sum(), losses[conflicting].sum()])
        self.losses = self.losses + parts

    def compute(self) -> Tensor:
        """Return the share of the conflicting, a scalar; NaN if there is no loss."""
        conflicting = torch.tensor([False, True], device=self.losses.device)
        return conflicting_loss_ratio(self.losses, conflicting)
