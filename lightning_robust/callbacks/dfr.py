"""DFR: deep feature reweighting (Kirichenko et al., ICLR 2023, https://arxiv.org/abs/2204.02937)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._last_layer import _LastLayer
from lightning_robust.callbacks._validation import validation_set
from lightning_robust.contracts import (
    Groups,
    GroupsLike,
    check_choice,
    check_integer,
    check_positive,
)
from lightning_robust.functional.groups import draw_from_groups, group_sums
from lightning_robust.functional.linear import sparse_logistic_regression
from lightning_robust.randomness import generator, resolve_seed

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
"""The values of C that are tried."""


class DFR(_LastLayer):
    """Trains as usual, and at the end fits the last layer anew on group-balanced data.

    **What changes**: after the last batch of the last epoch, before its validation and before
    checkpoints of it are written, the weight and bias of the head are replaced: by the mean of
    ``num_refits`` logistic regressions with an L1 penalty on the head's inputs, each on another
    group-balanced subset of the validation or training set. **Needs** groups of the data that it
    fits on, and, to choose the penalty, of a validation set; a head that is a ``Linear`` layer with
    a bias. Validation metrics of the last epoch are then of data that was fitted on. **Costs** a
    forward pass over the data, and the regressions, on the CPU. Where training stops for another
    reason than ``max_epochs`` or ``max_steps``, the head is fitted after the last checkpoint.

    Args:
        groups: The group of every training example, for ``data="train"``: a tensor, array or list
            (n,), or a CSV or Parquet file (see
            :func:`~lightning_robust.contracts.resolve_groups`); ``None`` takes ``dataset.groups``.
        data: What the head is fitted on: ``"validation"`` (the paper's DFR-Val) or ``"train"``
            (DFR-Train).
        validation_groups: Groups of the validation examples; ``None`` takes the validation data
            set's own.
        strength: C of the regressions; ``None`` takes the one of ``STRENGTHS`` with the best
            worst-group accuracy: fitted on one half of the validation set and judged by the other,
            or fitted on training data and judged by the validation set.
        num_refits: How many balanced subsets there are (the paper: 20, on training data 10).
        after_epochs: Fit the head after this many epochs, and train on from there; ``None`` is
            after the last.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the subsets; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: groups are missing, of the wrong length, type or
            range; there is no validation set where one is needed; a head that is not found, not
            ``Linear`` or has no bias; a value out of range. At the end: features that are not
            finite.

    Logged keys, in the last epoch:
        ``dfr/strength``: C of the head.

    References:
        Section 5 and Appendix B. Departures: one standardisation, by the mean and deviation of the
        data that is fitted on, serves tuning and the final head (the authors' code standardises
        anew in between); the penalised regression is multinomial, not one against the rest; of
        class weights there is no choice, as in the authors' commands.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import DFR
        >>> trainer = Trainer(callbacks=[DFR()], logger=False, enable_checkpointing=False)
    """

    state = ("fitted", "chosen")

    def __init__(
        self,
        groups: GroupsLike | None = None,
        *,
        data: Literal["validation", "train"] = "validation",
        validation_groups: GroupsLike | None = None,
        strength: float | None = None,
        num_refits: int = 20,
        after_epochs: int | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_choice("data", data, ("validation", "train"))
        if strength is not None:
            check_positive("strength", strength)
        check_integer("num_refits", num_refits, 1)
        self.data = data
        self.validation_groups = validation_groups
        self.strength = strength
        self.num_refits = num_refits
        self.needs_groups = data == "train"
        super().__init__(groups=groups, after_epochs=after_epochs, head=head, seed=seed)

    def reset(self) -> None:
        """No strength has been chosen before training."""
        super().reset()
        self.chosen: float | None = None

    def begin(self) -> None:
        """Check the validation set while nothing is lost."""
        if self.data == "validation" or self.strength is None:
            self._validation_set()

    def report(self) -> dict[str, float | Tensor]:
        """The strength that was chosen."""
        return {} if self.chosen is None else {"dfr/strength": self.chosen}

    def _fit_head(self) -> None:
        if self.data == "train":
            dataset, ids, targets = None, self.group_ids, self.targets
        else:
            dataset, groups, targets = self._validation_set()
            ids = groups.ids
        features = self._features(dataset)
        mean, deviation = features.mean(0), features.std(0, correction=0)
        deviation = deviation.where(deviation > 0, 1.0)
        features = (features - mean) / deviation

        random = generator(resolve_seed(self.seed), "dfr")
        if self.strength is not None:
            self.chosen = self.strength
        elif self.data == "train":
            others, judges, other_targets = self._validation_set()
            judged = (self._features(others) - mean) / deviation, judges.ids, other_targets
            self.chosen = self._tuned((features, ids, targets), judged, random)
        else:
            order = torch.randperm(len(ids), generator=random)
            halves = order.tensor_split(2)
            judged, fitted = ((features[half], ids[half], targets[half]) for half in halves)
            self.chosen = self._tuned(fitted, judged, random)

        fits = []
        for _ in range(self.num_refits):
            kept = _balanced(ids, random)
            fits.append(self._regression(features[kept], targets[kept], self.chosen))
            if bool(kept.all()):  # all subsets are the same
                break
        weight = torch.stack([fit[0] for fit in fits]).mean(0) / deviation
        bias = torch.stack([fit[1] for fit in fits]).mean(0) - weight @ mean
        if self._head.out_features == 1:
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        self._replace_head(weight, bias)

    def _tuned(
        self,
        fitted: tuple[Tensor, Tensor, Tensor],
        judged: tuple[Tensor, Tensor, Tensor],
        random: torch.Generator,
    ) -> float:
        """The first strength with the best worst-group accuracy; each has the same subset."""
        features, ids, targets = fitted
        kept = _balanced(ids, random)
        best, chosen, fit = -1.0, STRENGTHS[0], None
        for strength in STRENGTHS:
            fit = self._regression(features[kept], targets[kept], strength, fit)
            correct = (judged[0] @ fit[0].T + fit[1]).argmax(1) == judged[2]
            sums, counts = group_sums(correct.double(), judged[1], int(judged[1].max()) + 1)
            worst = float((sums / counts)[counts > 0].min())
            if worst > best:
                best, chosen = worst, strength
        return chosen

    def _regression(
        self,
        features: Tensor,
        targets: Tensor,
        strength: float,
        start: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        num_classes = max(2, self._head.out_features)
        return sparse_logistic_regression(features, targets, num_classes, strength, start=start)

    def _features(self, dataset: Dataset[Any] | None) -> Tensor:
        features = self.observe("features", dataset=dataset).features
        assert features is not None
        return features.double()

    def _validation_set(self) -> tuple[Dataset[Any], Groups, Tensor]:
        return validation_set(
            self.conductor,
            self.validation_groups,
            f"data={self.data!r} and strength={self.strength}",
            'data="train" and a strength',
        )


def _balanced(groups: Tensor, random: torch.Generator) -> Tensor:
    """As many of each group as the smallest has, (n,) bool."""
    counts = torch.bincount(groups)
    return draw_from_groups(groups, counts[counts > 0].min().expand_as(counts), random)
