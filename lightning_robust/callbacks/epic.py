"""EPIC: effective poison identification (Yang, Liu and Mirzasoleiman, ICML 2022).

arXiv:2210.09671; chapter 4 of the thesis.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._dropping import _Periodic
from lightning_robust.contracts import check_in_range, check_integer
from lightning_robust.functional.isolation import cluster_sizes, isolated, medoid_budgets


class EPIC(_Periodic):
    """Drops examples whose gradient no other example of their class is near to: poisons that work.

    **What changes**: after ``warmup_epochs`` epochs, and then every ``interval`` epochs, the
    remaining examples of each class are clustered around medoids of their gradients (softmax of
    the logits minus one-hot), and those alone in their cluster are dropped for good. What is left
    is trained on as usual. A class is never emptied. Under DDP the classes are shared out over the
    ranks, and all ranks drop the same. **Needs** targets, no groups, no clean data. **Costs** a
    forward pass over the remaining examples and the medoids of each class, a time quadratic in
    its size, at each round; epochs get shorter. A schedule computed from the length of the loader
    does not know.

    Args:
        fraction: Medoids over remaining examples, in (0, 1). A larger one drops more.
        warmup_epochs: K, epochs before the first round.
        interval: T, epochs between rounds.
        stop_epoch: No rounds from this epoch on, counted from 0; ``None``: to the end of training.
        threshold: The largest cluster that is dropped; 1 drops isolated medoids only.
        clean_dataset: The training examples without augmentation, in the same order; gradients
            are taken of these.
        report_path: CSV file, written anew at each round, with a row for each dropped example:
            ``index``, ``target``, ``dropped_before_epoch``; ``None`` writes none. See also
            ``dropped_indices`` (m,), in the order of dropping, and ``dropped_counts``.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the order of examples; EPIC itself draws nothing.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. At a round: outputs that are not finite.

    Logged keys:
        ``epic/dropped``: examples dropped just before this epoch.
        ``epic/dropped_total``: examples dropped so far.
        ``epic/dropped/<class>``: of these, how many of each class.
        ``epic/kept_fraction``: share of the training set that is left.

    References:
        Algorithm 3 of the thesis. Departures: classes have medoids in proportion to their size, by
        largest remainder, as in the authors' code but for its random rounding; always fewer than
        examples, and a class without a larger cluster stays as it is. A medoid that exactly
        repeats another is not isolated, where the code drops it: no other example is nearer to any
        than these are to each other. Departures from the code: it clusters dropped examples too,
        counts clusters at wrong offsets where classes differ in size, and omits the bias.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import EPIC
        >>> method = EPIC(fraction=0.2, warmup_epochs=20, interval=2, report_path="dropped.csv")
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    observes = True
    state = ("dropped_at", "cluster_sizes")
    _prefix = "epic"

    def __init__(
        self,
        fraction: float = 0.1,
        *,
        warmup_epochs: int = 10,
        interval: int = 2,
        stop_epoch: int | None = None,
        threshold: int = 1,
        clean_dataset: Dataset[Any] | None = None,
        report_path: str | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_in_range("fraction", fraction, 1e-9, 1 - 1e-9)
        check_integer("threshold", threshold, 1)
        self.fraction = fraction
        self.threshold = threshold
        self.clean_dataset = clean_dataset
        self.report_path = report_path
        super().__init__(warmup_epochs, interval, stop_epoch, head, seed)

    def reset(self) -> None:
        """Nothing is clustered before training."""
        super().reset()
        self.cluster_sizes: Tensor | None = None  # (n,) at the last round, 0 for what had left

    def drop(self, epoch: int, kept: Tensor) -> Tensor:
        """Which of the remaining examples are isolated."""
        gradients = self.observe("gradients", dataset=self.clean_dataset, indices=kept).gradients
        assert gradients is not None
        targets, device = self.targets[kept], self.conductor.module.device
        budgets = medoid_budgets(
            torch.bincount(targets, minlength=self.num_classes), self.fraction
        ).tolist()
        sizes = self.by_class(
            targets, lambda label, own: cluster_sizes(gradients[own].to(device), budgets[label])
        )
        dropped = torch.zeros(len(kept), dtype=torch.bool)
        for label in range(self.num_classes):
            own = (targets == label).nonzero().squeeze(1)
            dropped[own] = isolated(sizes[own], self.threshold)
        self.cluster_sizes = torch.zeros(self.num_examples, dtype=torch.int64)
        self.cluster_sizes[kept] = sizes
        return dropped
