"""What the methods that drop examples for good have in common: when, what is kept, the report."""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    ContractError,
    check_bool,
    check_clean_dataset,
    check_in_range,
    check_integer,
)


class _Dropping(Method):
    """Drops examples for good, before some of the epochs.

    Subclasses have :meth:`is_due` and :meth:`drop`; their docstrings say what the arguments mean.
    """

    state: ClassVar[tuple[str, ...]] = ("dropped_at",)
    clean_dataset: Dataset[Any] | None = None
    report_path: str | None = None
    _prefix: str

    @abstractmethod
    def is_due(self, epoch: int) -> bool:
        """Whether examples are dropped before ``epoch``."""

    @abstractmethod
    def drop(self, epoch: int, kept: Tensor) -> Tensor:
        """Which of the examples that are left to drop before ``epoch``.

        Args:
            epoch: The epoch that is about to be trained.
            kept: (k,) dataset indices.

        Returns:
            (k,) bool, alike on all ranks.
        """

    def reset(self) -> None:
        """Everything is kept before training."""
        self.dropped_at: Tensor | None = None

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Check what can be checked before the first step."""
        check_clean_dataset(self.clean_dataset, self.num_examples)
        if self.report_path is not None:
            Path(self.report_path).parent.mkdir(parents=True, exist_ok=True)

    def decide(self, epoch: int) -> None:
        """Drop, where it is time."""
        if self.dropped_at is None:
            self.dropped_at = torch.full((self.num_examples,), -1)
        if self.is_due(epoch):
            kept = (self.dropped_at < 0).nonzero().squeeze(1)
            self.dropped_at[kept[self.drop(epoch, kept)]] = epoch
            self._write()

    def vote(self) -> Tensor | None:
        """1 for what is kept, else 0."""
        return None if self.dropped_at is None else self.dropped_at < 0

    def report(self) -> dict[str, float | Tensor]:
        """Numbers of examples dropped."""
        if self.dropped_at is None:
            return {}
        # What was dropped before the epoch that ends: the next may have been decided already.
        epoch = self.conductor.trainer.current_epoch
        dropped = (self.dropped_at >= 0) & (self.dropped_at <= epoch)
        by_class = torch.bincount(self.targets[dropped], minlength=self.num_classes)
        total = int(dropped.sum())
        report: dict[str, float | Tensor] = {
            "dropped": float((self.dropped_at == epoch).sum()),
            "dropped_total": float(total),
            "kept_fraction": 1 - total / len(dropped),
        }
        report |= {f"dropped/{label}": float(c) for label, c in enumerate(by_class.tolist())}
        return {f"{self._prefix}/{name}": value for name, value in report.items()}

    def by_class(self, targets: Tensor, compute: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Do a piece of work for each class, each on one rank.

        Args:
            targets: (k,) of the examples that are left.
            compute: Takes a class and the places (m,) of its examples, m > 0, in rising order;
                returns (m,) integers or truth values.

        Returns:
            (k,) int64, alike on all ranks.
        """
        counts = torch.bincount(targets, minlength=self.num_classes)
        members = targets.argsort(stable=True).split(counts.tolist())

        def rows_of(classes: Tensor) -> Tensor:
            rows = torch.zeros(len(classes), int(counts.max()), dtype=torch.int64)
            for row, label in zip(rows, classes.tolist(), strict=True):
                if len(own := members[label]):
                    row[: len(own)] = compute(label, own)
            return rows

        found = torch.zeros(len(targets), dtype=torch.int64)
        for own, row in zip(
            members, self.conductor.share_out(self.num_classes, rows_of), strict=True
        ):
            found[own] = row[: len(own)]
        return found

    @property
    def dropped_indices(self) -> Tensor:
        """(m,) int64, dataset indices of what was dropped, in the order of dropping."""
        if self.dropped_at is None:
            return torch.empty(0, dtype=torch.int64)
        dropped = (self.dropped_at >= 0).nonzero().squeeze(1)
        return dropped[self.dropped_at[dropped].argsort(stable=True)]

    @property
    def dropped_counts(self) -> dict[int, int]:
        """How many examples were dropped before which epoch."""
        if self.dropped_at is None:
            return {}
        epochs, counts = self.dropped_at[self.dropped_at >= 0].unique(return_counts=True)
        return dict(zip(epochs.tolist(), counts.tolist(), strict=True))

    def _write(self) -> None:
        if self.report_path is None or self.conductor.trainer.global_rank != 0:
            return
        assert self.dropped_at is not None
        indices = self.dropped_indices
        rows = torch.stack([indices, self.targets[indices], self.dropped_at[indices]], 1)
        with Path(self.report_path).open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["index", "target", "dropped_before_epoch"])
            lines.writerows(rows.tolist())


class _Periodic(_Dropping):
    """Drops a few examples every ``interval`` epochs."""

    def __init__(
        self,
        warmup_epochs: int,
        interval: int,
        stop_epoch: int | None,
        head: str | None,
        seed: int | None,
    ) -> None:
        check_integer("warmup_epochs", warmup_epochs, 1)
        check_integer("interval", interval, 1)
        if stop_epoch is not None:
            check_integer("stop_epoch", stop_epoch)
        self.warmup_epochs = warmup_epochs
        self.interval = interval
        self.stop_epoch = stop_epoch
        super().__init__(head=head, seed=seed)

    def is_due(self, epoch: int) -> bool:
        """As the schedule says."""
        since = epoch - self.warmup_epochs
        return (
            since >= 0
            and since % self.interval == 0
            and (self.stop_epoch is None or epoch < self.stop_epoch)
        )


class _Filter(_Dropping):
    """Trains ``warmup_epochs`` epochs as usual, drops by the features, once, and starts again."""

    observes = True
    state: ClassVar[tuple[str, ...]] = ("dropped_at", "filtered", "initial")

    def __init__(
        self,
        *,
        warmup_epochs: int = 10,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        report_path: str | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_integer("warmup_epochs", warmup_epochs)
        check_bool("reinitialise", reinitialise)
        self.warmup_epochs = warmup_epochs
        self.reinitialise = reinitialise
        self.clean_dataset = clean_dataset
        self.report_path = report_path
        super().__init__(head=head, seed=seed)

    @abstractmethod
    def _suspects(self, features: Tensor, targets: Tensor) -> Tensor:
        """Which of the examples to drop, (k,) bool; (k, d) features are on the module's device."""

    def reset(self) -> None:
        """Nothing is filtered before training."""
        super().reset()
        self.filtered = False
        self.initial: dict[str, Any] | None = None

    def is_due(self, epoch: int) -> bool:
        """Once, after the warm-up."""
        return epoch >= self.warmup_epochs and not self.filtered

    def begin(self) -> None:
        """Keep the initial weights, if the filtering is still to come."""
        if self.reinitialise and not self.filtered:
            self.initial = self.conductor.snapshot()

    def decide(self, epoch: int) -> None:
        """Drop, and start again."""
        due = self.is_due(epoch)
        super().decide(epoch)
        if due:
            self.filtered = True
            if self.initial is not None:
                self.conductor.restart(self.initial)
                self.initial = None

    def drop(self, epoch: int, kept: Tensor) -> Tensor:
        """By the features; a class that would be empty stays as it is."""
        features = self.observe("features", dataset=self.clean_dataset, indices=kept).features
        assert features is not None
        targets = self.targets[kept]
        dropped = self._suspects(features.to(self.conductor.module.device), targets)
        left = torch.bincount(targets[~dropped], minlength=self.num_classes)
        return dropped & (left[targets] > 0)


class _Baseline(_Periodic):
    """Drops as many of what has the largest scores, for comparison with EPIC.

    Subclasses have :meth:`scores`.
    """

    def __init__(
        self,
        fraction: float = 0.03,
        *,
        warmup_epochs: int = 10,
        interval: int = 2,
        stop_epoch: int | None = None,
        counts: dict[int, int] | None = None,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_in_range("fraction", fraction, 0.0, 1.0)
        if counts is not None:
            _check_counts(counts)
        self.fraction = fraction
        self.counts = counts
        if clean_dataset is not None:  # RandomDrop takes none
            self.clean_dataset = clean_dataset
        super().__init__(warmup_epochs, interval, stop_epoch, head, seed)

    @abstractmethod
    def scores(self, epoch: int, kept: Tensor) -> Tensor:
        """(k,) of the examples that are left; the largest are dropped."""

    def is_due(self, epoch: int) -> bool:
        """As ``counts`` say, or the schedule."""
        return super().is_due(epoch) if self.counts is None else epoch in self.counts

    def drop(self, epoch: int, kept: Tensor) -> Tensor:
        """The largest scores; one example at least is left."""
        count = self.fraction * len(kept) if self.counts is None else self.counts[epoch]
        dropped = torch.zeros(len(kept), dtype=torch.bool)
        order = self.scores(epoch, kept).argsort(descending=True, stable=True)
        dropped[order[: min(int(count), len(kept) - 1)]] = True
        return dropped


def _check_counts(counts: object) -> None:
    if not isinstance(counts, dict) or not all(
        type(number) is int and number >= 0 for item in counts.items() for number in item
    ):
        raise ContractError(
            f"counts must be a dictionary {{epoch: number}} of integers >= 0, got {counts!r}; "
            "EPIC.dropped_counts is one"
        )
