"""What the methods share that train for a while, select once, and train again on the selection."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
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
    check_positive,
)
from lightning_robust.functional.logits import load_plain
from lightning_robust.functional.subsets import (
    Keeps,
    keep_by_score,
    members_and_quotas,
    size_of_subset,
)

Scores: TypeAlias = Tensor | npt.NDArray[Any] | str | Path | Callable[[Dataset[Any]], Tensor]


class _OneShot(Method):
    """Trains ``scoring_epochs`` epochs as usual, keeps a subset, and starts again on it.

    Subclasses say which in :meth:`_choose`, and may look at the model at the beginning of every
    epoch until then in :meth:`_watch`.
    """

    observes = True
    state: ClassVar[tuple[str, ...]] = ("initial", "kept")
    _key: ClassVar[str]  # the first part of logged keys
    _least_epochs: ClassVar[int] = 0

    def __init__(
        self,
        fraction: float = 0.5,
        *,
        scoring_epochs: int = 10,
        per_class: bool = False,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_in_range("fraction", fraction, 0, 1)
        check_positive("fraction", fraction)
        check_integer("scoring_epochs", scoring_epochs, self._least_epochs)
        check_bool("per_class", per_class)
        check_bool("reinitialise", reinitialise)
        self.fraction = fraction
        self.scoring_epochs = scoring_epochs
        self.per_class = per_class
        self.reinitialise = reinitialise
        self.clean_dataset = clean_dataset
        super().__init__(head=head, seed=seed)

    def _watch(self, epoch: int) -> None:
        """Look at the model before ``epoch``, up to the epoch of the selection itself."""

    def _choose(self, total: int) -> Tensor:
        """The selection, (n,) bool with ``total`` examples."""
        raise NotImplementedError

    def _is_time(self, epoch: int) -> bool:
        self._watch(epoch)
        return epoch >= self.scoring_epochs

    def reset(self) -> None:
        """No selection before training."""
        self.initial: dict[str, Any] | None = None
        self.kept: Tensor | None = None  # (n,) bool

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Check what can be checked before the first step."""
        check_clean_dataset(self.clean_dataset, self.num_examples)
        max_epochs = self.conductor.trainer.max_epochs
        if max_epochs is not None and 0 <= max_epochs <= self.scoring_epochs:
            warnings.warn(
                f"{type(self).__name__} selects after epoch {self.scoring_epochs}, and training "
                f"ends then (max_epochs={max_epochs}): nothing will be left out",
                stacklevel=2,
            )

    def begin(self) -> None:
        """Keep the initial weights, if the selection is still to come."""
        if self.reinitialise and self.kept is None:
            self.initial = self.conductor.snapshot()

    def decide(self, epoch: int) -> None:
        """Select when it is time, once."""
        if self.kept is not None or not self._is_time(epoch):
            return
        self.kept = self._choose(size_of_subset(self.fraction, self.num_examples))
        if self.initial is not None:
            self.conductor.restart(self.initial)
            self.initial = None

    def vote(self) -> Tensor | None:
        """1 for what is kept, else 0."""
        return self.kept

    def report(self) -> dict[str, float | Tensor]:
        """Size of the subset."""
        return {} if self.kept is None else {f"{self._key}/num_examples": float(self.kept.sum())}


class _OfFeatures(_OneShot):
    """Keeps examples whose features, the inputs of the head, stand for all features.

    Subclasses say which in :meth:`_pick`.
    """

    def __init__(
        self,
        fraction: float = 0.5,
        *,
        scoring_epochs: int = 10,
        per_class: bool = True,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            fraction,
            scoring_epochs=scoring_epochs,
            per_class=per_class,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            head=head,
            seed=seed,
        )

    def _pick(self, features: Tensor, count: int) -> Tensor:
        """The places (count,) of those of the features (m, d) that are kept."""
        raise NotImplementedError

    def _choose(self, total: int) -> Tensor:
        features = self.observe("features", dataset=self.clean_dataset).features
        assert features is not None
        device = self.conductor.module.device
        classes = self.targets if self.per_class else None
        kept = torch.zeros(self.num_examples, dtype=torch.bool)
        for members, quota in members_and_quotas(classes, self.num_examples, total):
            kept[members[self._pick(features[members].to(device), quota).cpu()]] = True
        return kept


class _Scored(_OneShot):
    """Keeps examples by a score each, which a subclass measures or the user gives."""

    state: ClassVar[tuple[str, ...]] = ("initial", "kept", "measured")
    _keeps: ClassVar[Keeps] = "highest"

    def __init__(
        self,
        fraction: float = 0.5,
        *,
        scoring_epochs: int = 10,
        per_class: bool = False,
        reinitialise: bool = True,
        scores: Scores | None = None,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        forms = Tensor | np.ndarray | str | Path | None
        if not (isinstance(scores, forms) or callable(scores)):
            raise ContractError(
                "scores must be a tensor, an array, a file or a function of the training set, got "
                f"{type(scores).__name__}"
            )
        self.scores = scores
        super().__init__(
            fraction,
            scoring_epochs=scoring_epochs,
            per_class=per_class,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            head=head,
            seed=seed,
        )

    def _measure(self) -> Tensor:
        """The score of each example, (n,)."""
        raise NotImplementedError

    def reset(self) -> None:
        """No scores before training."""
        super().reset()
        self.measured: Tensor | None = None  # (n,) float64

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Look at scores that are given."""
        if self.scores is None:
            super().prepare(dataset)
        elif self.measured is None:
            self.measured = self._given(dataset)

    def _is_time(self, epoch: int) -> bool:
        return self.scores is not None or super()._is_time(epoch)

    def _choose(self, total: int) -> Tensor:
        if self.measured is None:
            self.measured = self._measure().double()
        classes = self.targets if self.per_class else None
        return keep_by_score(self.measured, total, self._keeps, classes)

    def _given(self, dataset: Dataset[Any]) -> Tensor:
        """The user's scores, checked, alike on all ranks."""
        scores: Any = self.scores
        if isinstance(scores, str | Path):
            scores = load_plain(scores, "scores")
        elif callable(scores):
            scores = self.conductor.trainer.strategy.broadcast(scores(dataset))
        if not isinstance(scores, Tensor | np.ndarray):
            raise ContractError(f"scores hold a {type(scores).__name__}; give a tensor (n,)")
        table = torch.as_tensor(scores).detach().cpu().double()
        if table.shape != (self.num_examples,) or not bool(table.isfinite().all()):
            raise ContractError(
                f"scores must be {self.num_examples} finite numbers, one an example, got shape "
                f"{tuple(table.shape)} with {int((~table.isfinite()).sum())} not finite"
            )
        return table
