"""Dropping what has the highest loss: a common defence, for comparison with EPIC."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.callbacks._dropping import _Baseline


class HighestLossDrop(_Baseline):
    """Drops the examples with the highest loss, a defence that poisons evade.

    **What changes**: after ``warmup_epochs`` epochs, and then every ``interval`` epochs, the
    remaining examples with the highest cross-entropy are dropped for good, a ``fraction`` of them,
    or as many as ``counts`` says. **Needs** targets. **Costs** a forward pass over the remaining
    examples at each round.

    Args:
        fraction: Share of the remaining examples to drop at each round, in [0, 1], rounded down.
        warmup_epochs: Epochs before the first round.
        interval: Epochs between rounds.
        stop_epoch: No rounds from this epoch on, counted from 0; ``None``: to the end of training.
        counts: How many examples to drop before which epoch, as ``EPIC.dropped_counts`` of another
            run tells, in place of ``fraction`` and schedule.
        clean_dataset: The training examples without augmentation, in the same order; the model is
            asked about these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the order of examples; the method itself draws nothing.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value
            out of range, a ``clean_dataset`` of another length. At a round: outputs that are not
            finite.

    Logged keys:
        ``highest_loss_drop/dropped``: examples dropped just before this epoch.
        ``highest_loss_drop/dropped_total``: examples dropped so far.
        ``highest_loss_drop/dropped/<class>``: of these, how many of each class.
        ``highest_loss_drop/kept_fraction``: share of the training set that is left.

    References:
        Section 4.2.3 and Fig. 4.2 of the thesis. Departure: a number is dropped at each round, not
        all examples whose loss is above a threshold, so that it can be that of EPIC.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import HighestLossDrop
        >>> method = HighestLossDrop(counts={10: 25, 12: 20})
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    observes = True
    _prefix = "highest_loss_drop"

    def scores(self, epoch: int, kept: Tensor) -> Tensor:
        """Cross-entropies."""
        losses = self.observe("losses", dataset=self.clean_dataset, indices=kept).losses
        assert losses is not None
        return losses
