"""Dropping what the model is least confident of: a common defence, for comparison with EPIC."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.callbacks._dropping import _Baseline


class LowestConfidenceDrop(_Baseline):
    """Drops the examples the model is least confident of, a defence that poisons evade.

    **What changes**: after ``warmup_epochs`` epochs, and then every ``interval`` epochs, the
    remaining examples whose largest softmax output is smallest are dropped for good, a ``fraction``
    of them, or as many as ``counts`` says. **Needs** targets (for the report). **Costs** a forward
    pass over the remaining examples at each round.

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
        ``lowest_confidence_drop/dropped``: examples dropped just before this epoch.
        ``lowest_confidence_drop/dropped_total``: examples dropped so far.
        ``lowest_confidence_drop/dropped/<class>``: of these, how many of each class.
        ``lowest_confidence_drop/kept_fraction``: share of the training set that is left.

    References:
        Section 4.2.3 and Fig. 4.2 of the thesis. Departure: a number is dropped at each round, not
        all examples below a threshold, so that it can be that of EPIC.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import LowestConfidenceDrop
        >>> method = LowestConfidenceDrop(counts={10: 25, 12: 20})
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    observes = True
    _prefix = "lowest_confidence_drop"

    def scores(self, epoch: int, kept: Tensor) -> Tensor:
        """The lower the confidence, the higher."""
        logits = self.observe("logits", dataset=self.clean_dataset, indices=kept).logits
        assert logits is not None
        return -logits.softmax(1).amax(1)
