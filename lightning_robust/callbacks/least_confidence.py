"""Least confidence: keep what the model is least sure of (Lewis and Gale, SIGIR 1994)."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.callbacks._scores import _Scored


class LeastConfidence(_Scored):
    """Keeps the examples whose predictions the model is least confident of.

    **What changes**: for ``scoring_epochs`` epochs the model trains as usual. Then the ``fraction``
    of the examples is kept for which the probability of the predicted class is lowest. The model
    starts again from its initial weights, with fresh optimizers and schedules, and an epoch is one
    pass over what is kept. **Needs** targets, only to find the head and with ``per_class``; no
    groups. **Costs** the epochs until then, and one forward pass over the training set. A
    checkpoint written before the selection also holds the initial weights.

    Args:
        fraction: Share of the training set that is kept, in (0, 1]: rounded, at least one example.
        scoring_epochs: Epochs of training before confidences are measured.
        per_class: Keep the share of each class, by scores among its own; otherwise of all examples
            at once.
        reinitialise: Start again from the initial weights after the selection; otherwise the model
            trains on.
        scores: Confidences, of which the lowest are kept: a tensor or array (n,) in dataset order,
            a file that ``torch.save`` wrote, or a function that is given the training set before
            the first step and returns such a tensor. Nothing is measured then, and training is on
            the selection from the start. ``None`` measures.
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
        ``least_confidence/num_examples``: size of the subset.

    References:
        Lewis and Gale, A sequential algorithm for training text classifiers, SIGIR 1994; "Least
        Confidence" of Section 3.4.1 of the thesis version of S2L, after Bhatt et al., 2024
        (arXiv:2401.06692), with which an early and a fully trained model are tried. Departure: of a
        class, not of a generated text; ``per_class`` is an addition.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import LeastConfidence
        >>> method = LeastConfidence(fraction=0.5, scoring_epochs=3)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _key = "least_confidence"
    _keeps = "lowest"

    def _measure(self) -> Tensor:
        logits = self.observe("logits", dataset=self.clean_dataset).logits
        assert logits is not None
        return logits.double().softmax(1).amax(1)
