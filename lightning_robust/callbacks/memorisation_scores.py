"""Memorisation scores: each example's influence on what the model says of it (MAT, Section 4.2)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import check_clean_dataset, check_integer, check_positive
from lightning_robust.functional.memorisation import self_influence
from lightning_robust.randomness import generator, resolve_seed


class MemorisationScores(Method):
    """Scores every training example by its influence on the model's margin on it.

    **What changes**: nothing in training. **Needs** targets, no groups; a linear head. **Costs** a
    forward pass over the training set each time, and a matrix with as many rows and columns as the
    head has parameters, at most ``num_projections``.

    Args:
        every_n_epochs: Score after every so many epochs; ``None``: after the last one only. A run
            that may stop early does not know its last epoch: give a number.
        ridge: What is added to the matrix, in units of its mean eigenvalue.
        num_projections: The most parameters of the head that are not projected.
        report_path: CSV file, written anew each time, with a row for each example: ``index``,
            ``target``, ``score``; ``None`` writes none.
        clean_dataset: The training examples without augmentation, in the same order; the scores
            are of these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the projections.

    Attributes:
        scores: (n,) float64, from 0 to 1, the mean over the times; ``None`` before the first.
        times: How many there were.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. Later: outputs that are not finite.

    Logged keys:
        ``memorisation_scores/mean``: mean of the scores, once there are any.

    References:
        Section 4.2 and Eq. 8 of MAT (Pezeshki et al., ICLR 2025, https://arxiv.org/abs/2412.07684),
        by TRAK (Park et al., ICML 2023). Departures:
        :func:`~lightning_robust.functional.memorisation.self_influence`, which is for the last
        layer; over several times the mean of scores, where TRAK has means of their two factors.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import MemorisationScores
        >>> recorder = MemorisationScores(report_path="memorised.csv")
        >>> trainer = Trainer(callbacks=[recorder], logger=False, enable_checkpointing=False)
    """

    observes = True
    state = ("scores", "times")

    def __init__(
        self,
        every_n_epochs: int | None = None,
        *,
        ridge: float = 1e-3,
        num_projections: int = 4096,
        report_path: str | None = None,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        if every_n_epochs is not None:
            check_integer("every_n_epochs", every_n_epochs, 1)
        check_positive("ridge", ridge)
        check_integer("num_projections", num_projections, 1)
        self.every_n_epochs = every_n_epochs
        self.ridge = ridge
        self.num_projections = num_projections
        self.report_path = report_path
        self.clean_dataset = clean_dataset
        super().__init__(head=head, seed=seed)

    def reset(self) -> None:
        """Nothing scored before training."""
        self.scores: Tensor | None = None
        self.times = 0

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Check what can be checked before the first step."""
        check_clean_dataset(self.clean_dataset, self.num_examples)
        if self.report_path is not None:
            Path(self.report_path).parent.mkdir(parents=True, exist_ok=True)

    def close(self, epoch: int) -> None:
        """Score, where it is time."""
        if self.every_n_epochs is None:
            due = self.conductor.is_last(epoch)
        else:
            due = (epoch + 1) % self.every_n_epochs == 0
        if due:
            scores = self._measure()
            earlier = torch.zeros_like(scores) if self.scores is None else self.scores
            self.times += 1
            self.scores = earlier + (scores - earlier) / self.times
            self._write(self.scores)

    def report(self) -> dict[str, float | Tensor]:
        """The mean of the scores."""
        return {} if self.scores is None else {"memorisation_scores/mean": self.scores.mean()}

    def _measure(self) -> Tensor:
        seen = self.observe("features", "logits", dataset=self.clean_dataset)
        assert seen.features is not None
        assert seen.logits is not None
        device = self.conductor.module.device
        return self_influence(
            seen.features.to(device),
            seen.logits.to(device),
            self.targets.to(device),
            ridge=self.ridge,
            num_projections=self.num_projections,
            generator=generator(resolve_seed(self.seed), "memorisation projections"),
        ).cpu()

    def _write(self, scores: Tensor) -> None:
        if self.report_path is None or self.conductor.trainer.global_rank != 0:
            return
        with Path(self.report_path).open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["index", "target", "score"])
            columns = (range(len(scores)), self.targets.tolist(), scores.tolist())
            lines.writerows(zip(*columns, strict=True))
