"""High learnability, as compared in S2L (after Zhou et al., 2023, arXiv:2310.13008)."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.callbacks._scores import _Scored


class HighLearnability(_Scored):
    """Keeps the examples whose losses training has lowered most.

    **What changes**: for ``scoring_epochs`` epochs the model trains as usual. Then the ``fraction``
    of the examples is kept whose loss has fallen most since the beginning: what was known already,
    and what cannot be learned, leaves. The model starts again from its initial weights, with fresh
    optimizers and schedules, and an epoch is one pass over what is kept. **Needs** targets, no
    groups. **Costs** the epochs until then, and two forward passes over the training set. A
    checkpoint written before the selection also holds the initial weights.

    Args:
        fraction: Share of the training set that is kept, in (0, 1]: rounded, at least one example.
        scoring_epochs: Epochs of training before the second measurement of losses, at least 1.
        per_class: Keep the share of each class, by scores among its own; otherwise of all examples
            at once.
        reinitialise: Start again from the initial weights after the selection; otherwise the model
            trains on.
        scores: Loss decreases: a tensor or array (n,) in dataset order, a file that ``torch.save``
            wrote, or a function that is given the training set before the first step and returns
            such a tensor. Nothing is measured then, and training is on the selection from the
            start. ``None`` measures.
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
        ``high_learnability/num_examples``: size of the subset.

    References:
        "High Learnability, determined by the loss decrease before and after full fine-tuning",
        Section 3.4.1 of the thesis version of S2L; these words are what is implemented, not LoBaSS
        (Zhou et al., 2023), which they are about. Departures: the second loss may come after fewer
        epochs; ``per_class`` is an addition.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import HighLearnability
        >>> method = HighLearnability(fraction=0.5, scoring_epochs=3)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("initial", "kept", "measured", "before")
    _key = "high_learnability"
    _least_epochs = 1

    def reset(self) -> None:
        """Nothing measured before training."""
        super().reset()
        self.before: Tensor | None = None  # (n,) losses

    def _watch(self, epoch: int) -> None:
        if self.before is None:
            self.before = self.observe("losses", dataset=self.clean_dataset).losses

    def _measure(self) -> Tensor:
        after = self.observe("losses", dataset=self.clean_dataset).losses
        assert self.before is not None
        assert after is not None
        return self.before.double() - after.double()
