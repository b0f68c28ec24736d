"""Random dropping: the yardstick of every method that drops examples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.callbacks._dropping import _Baseline
from lightning_robust.randomness import generator, resolve_seed


class RandomDrop(_Baseline):
    """Drops examples at random: what EPIC is compared with, and no defence.

    **What changes**: after ``warmup_epochs`` epochs, and then every ``interval`` epochs, the
    remaining examples drawn at random, without replacement, are dropped for good, a ``fraction`` of
    them, or as many as ``counts`` says. **Needs** targets (for the report). **Costs** nothing;
    epochs get shorter.

    Args:
        fraction: Share of the remaining examples to drop at each round, in [0, 1], rounded down.
        warmup_epochs: Epochs before the first round.
        interval: Epochs between rounds.
        stop_epoch: No rounds from this epoch on, counted from 0; ``None``: to the end of training.
        counts: How many examples to drop before which epoch, as ``EPIC.dropped_counts`` of another
            run tells, in place of ``fraction`` and schedule.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a value out of range.

    Logged keys:
        ``random_drop/dropped``: examples dropped just before this epoch.
        ``random_drop/dropped_total``: examples dropped so far.
        ``random_drop/dropped/<class>``: of these, how many of each class.
        ``random_drop/kept_fraction``: share of the training set that is left.

    References:
        The random subsets of Fig. 4.3c of the thesis. No departure.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import RandomDrop
        >>> method = RandomDrop(counts={10: 25, 12: 20})
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _prefix = "random_drop"

    def __init__(
        self,
        fraction: float = 0.03,
        *,
        warmup_epochs: int = 10,
        interval: int = 2,
        stop_epoch: int | None = None,
        counts: dict[int, int] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            fraction,
            warmup_epochs=warmup_epochs,
            interval=interval,
            stop_epoch=stop_epoch,
            counts=counts,
            seed=seed,
        )

    def scores(self, epoch: int, kept: Tensor) -> Tensor:
        """Random ranks."""
        random = generator(resolve_seed(self.seed), "random drop", epoch)
        return torch.randperm(len(kept), generator=random)
