"""Deep k-NN (Peri et al., ECCV workshops 2020, https://arxiv.org/abs/1909.13374)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._dropping import _Filter
from lightning_robust.contracts import check_integer
from lightning_robust.functional.outliers import outvoted

_ROWS_A_PIECE = 512


class DeepKNN(_Filter):
    """Drops the examples whose nearest neighbours in feature space are of another class.

    **What changes**: for ``warmup_epochs`` epochs the model trains as usual. Then the examples are
    dropped whose class is not the most frequent one of their nearest neighbours by the distance of
    features; a class that would be empty stays as it is. The model starts again from its initial
    weights, with fresh optimizers and schedules, on the rest. **Needs** targets, no groups, no
    clean data; classes of about equal size. **Costs** the epochs until then, a forward pass over
    the training set, and distances between all pairs of examples (never held at once), which DDP
    shares out. A checkpoint written before also holds the initial weights.

    Args:
        num_neighbours: How many neighbours vote; ``None``: as many as a class has examples on
            average. A class much smaller than that is outvoted as a whole, and then kept.
        warmup_epochs: Epochs before the filtering; 0 takes the features of a model that comes
            pre-trained.
        reinitialise: Start again from the initial weights; otherwise the model trains on.
        clean_dataset: The training examples without augmentation, in the same order; features are
            of these.
        report_path: CSV file with a row for each dropped example: ``index``, ``target``,
            ``dropped_before_epoch``; ``None`` writes none. See also ``dropped_indices`` (m,).
        head: Name of the module that returns the logits, whose input are the features; ``None``
            finds it.
        seed: Seed of the order of examples; the method itself draws nothing.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. When filtering: features that are not
            finite.

    Logged keys:
        ``deep_knn/dropped``: examples dropped just before this epoch.
        ``deep_knn/dropped_total``: examples dropped so far.
        ``deep_knn/dropped/<class>``: of these, how many of each class.
        ``deep_knn/kept_fraction``: share of the training set that is left.

    References:
        Algorithm 1; the paper recommends as many neighbours as a class has examples, or more.
        Departures: a class as frequent among the neighbours as any other counts as the most
        frequent; no class is emptied; rare classes are not repeated.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import DeepKNN
        >>> method = DeepKNN(num_neighbours=50, warmup_epochs=40)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _prefix = "deep_knn"

    def __init__(
        self,
        num_neighbours: int | None = None,
        *,
        warmup_epochs: int = 10,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        report_path: str | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        if num_neighbours is not None:
            check_integer("num_neighbours", num_neighbours, 1)
        self.num_neighbours = num_neighbours
        super().__init__(
            warmup_epochs=warmup_epochs,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            report_path=report_path,
            head=head,
            seed=seed,
        )

    def _suspects(self, features: Tensor, targets: Tensor) -> Tensor:
        n, num_present = len(targets), len(targets.unique())
        k = self.num_neighbours or max(1, n // num_present)
        pieces = torch.arange(n).split(_ROWS_A_PIECE)

        def of(numbers: Tensor) -> Tensor:
            rows = torch.zeros(len(numbers), _ROWS_A_PIECE, dtype=torch.int64)
            for row, number in zip(rows, numbers.tolist(), strict=True):
                piece = pieces[number]
                row[: len(piece)] = outvoted(features, targets, k, piece)
            return rows

        return self.conductor.share_out(len(pieces), of).flatten()[:n] == 1
