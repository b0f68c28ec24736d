"""Spectral signatures (Tran, Li and Madry, NeurIPS 2018, https://arxiv.org/abs/1811.00636)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._dropping import _Filter
from lightning_robust.contracts import check_in_range
from lightning_robust.functional.outliers import spectral_scores


class SpectralSignatures(_Filter):
    """Drops the examples that stand out along the main direction of their class's features.

    **What changes**: for ``warmup_epochs`` epochs the model trains as usual. Then, of each class,
    the examples are dropped whose centred features have the largest projections on their top
    singular vector, 1.5 times as many as ``fraction`` of the class. The model starts again from
    its initial weights, with fresh optimizers and schedules, on the rest. **Needs** targets, no
    groups, no clean data; a bound on how many poisons a class may have. **Costs** the epochs until
    then, a forward pass over the training set, and a singular value decomposition a class, which
    DDP shares out. A checkpoint written before also holds the initial weights.

    Args:
        fraction: The largest share of a class that may be poisoned, in [0, 0.5]; 1.5 times as much
            is dropped, rounded down, of the clean classes too.
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
        ``spectral_signatures/dropped``: examples dropped just before this epoch.
        ``spectral_signatures/dropped_total``: examples dropped so far.
        ``spectral_signatures/dropped/<class>``: of these, how many of each class.
        ``spectral_signatures/kept_fraction``: share of the training set that is left.

    References:
        Algorithm 1. Departures: the bound is a share of each class, where the paper has a number,
        the same for all; the warm-up need not be a whole training.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import SpectralSignatures
        >>> method = SpectralSignatures(fraction=0.1, warmup_epochs=40)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _prefix = "spectral_signatures"

    def __init__(
        self,
        fraction: float = 0.05,
        *,
        warmup_epochs: int = 10,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        report_path: str | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_in_range("fraction", fraction, 0.0, 0.5)
        self.fraction = fraction
        super().__init__(
            warmup_epochs=warmup_epochs,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            report_path=report_path,
            head=head,
            seed=seed,
        )

    def _suspects(self, features: Tensor, targets: Tensor) -> Tensor:
        def most_outlying(label: int, own: Tensor) -> Tensor:
            count = int(1.5 * self.fraction * len(own) + 1e-9)
            order = spectral_scores(features[own]).argsort(descending=True, stable=True)
            return torch.zeros(len(own), dtype=torch.int64).index_fill(0, order[:count].cpu(), 1)

        return self.by_class(targets, most_outlying) == 1
