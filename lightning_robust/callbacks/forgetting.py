"""Forgetting scores (Toneva et al., ICLR 2019, https://arxiv.org/abs/1812.05159)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.callbacks._scores import _Scored


class Forgetting(_Scored):
    """Keeps the examples that training forgets most often.

    **What changes**: for ``scoring_epochs`` epochs the model trains as usual. After each it is
    noted which examples are classified correctly; one that was and no longer is, is forgotten. Then
    the ``fraction`` of the examples is kept that were forgotten most often, first of all those that
    were never learned. The model starts again from its initial weights, with fresh optimizers and
    schedules, and an epoch is one pass over what is kept. **Needs** targets, no groups; labels that
    are right, as wrong ones are forgotten. **Costs** the epochs until then, and a forward pass over
    the training set after each. A checkpoint written before the selection also holds the initial
    weights.

    Args:
        fraction: Share of the training set that is kept, in (0, 1]: rounded, at least one example.
        scoring_epochs: Epochs of training before forgetting is counted up, at least 1.
        per_class: Keep the share of each class, by scores among its own; otherwise of all examples
            at once.
        reinitialise: Start again from the initial weights after the selection; otherwise the model
            trains on.
        scores: How often each example is forgotten: a tensor or array (n,) in dataset order, a file
            that ``torch.save`` wrote, or a function that is given the training set before the first
            step and returns such a tensor. Nothing is measured then, and training is on the
            selection from the start. ``None`` measures.
        clean_dataset: The training examples without augmentation, in the same order; scores are
            of these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the order of the examples; ``None`` takes the one given to
            ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` or ``scores`` of another length. When selecting: outputs that
            are not finite.

    Logged keys, once selected:
        ``forgetting/num_examples``: size of the subset.

    References:
        Algorithm 1. Departures: predictions are compared once an epoch, of all examples with the
        same model, where the paper compares those of the mini-batches as they are trained on; of
        examples that are forgotten equally often the last are kept, where the paper has random
        ones; ``per_class`` is an addition.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import Forgetting
        >>> method = Forgetting(fraction=0.5, scoring_epochs=3)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("initial", "kept", "measured", "correct", "learned", "forgotten")
    _key = "forgetting"
    _least_epochs = 1

    def reset(self) -> None:
        """Nothing learned before training."""
        super().reset()
        self.correct: Tensor | None = None  # (n,) bool, after the last epoch
        self.learned: Tensor | None = None  # (n,) bool, correct after some epoch
        self.forgotten: Tensor | None = None  # (n,) int64, how often

    def _watch(self, epoch: int) -> None:
        if epoch == 0:
            return
        logits = self.observe("logits", dataset=self.clean_dataset).logits
        assert logits is not None
        correct = logits.argmax(1) == self.targets
        if self.correct is None or self.learned is None or self.forgotten is None:
            self.learned, self.forgotten = correct, torch.zeros_like(self.targets)
        else:
            self.learned = self.learned | correct
            self.forgotten = self.forgotten + (self.correct & ~correct)
        self.correct = correct

    def _measure(self) -> Tensor:
        assert self.learned is not None
        assert self.forgotten is not None
        # Nothing can be forgotten as often as there are epochs.
        return self.forgotten.where(self.learned, self.scoring_epochs)
