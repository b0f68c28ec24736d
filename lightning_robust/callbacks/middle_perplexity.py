"""Middle perplexity (Marion et al., 2023, https://arxiv.org/abs/2309.04564)."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.callbacks._scores import _Scored


class MiddlePerplexity(_Scored):
    """Keeps the examples in the middle of a ranking by perplexity.

    **What changes**: for ``scoring_epochs`` epochs the model trains as usual. Then examples are
    ranked by perplexity, the exponential of their cross-entropy, and the ``fraction`` in the middle
    is kept: the easiest and the hardest leave, as many of each. The model starts again from its
    initial weights, with fresh optimizers and schedules, and an epoch is one pass over what is
    kept. **Needs** targets, no groups. **Costs** the epochs until then, and one forward pass over
    the training set. A checkpoint written before the selection also holds the initial weights.

    Args:
        fraction: Share of the training set that is kept, in (0, 1]: rounded, at least one example.
        scoring_epochs: Epochs of training before perplexities are measured.
        per_class: Keep the share of each class, by scores among its own; otherwise of all examples
            at once.
        reinitialise: Start again from the initial weights after the selection; otherwise the model
            trains on.
        scores: Perplexities, of which the middle is kept: a tensor or array (n,) in dataset order,
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
        ``middle_perplexity/num_examples``: size of the subset.

    References:
        The middle subset by perplexity; "Middle Perplexity" of Section 3.4.1 of the thesis version
        of S2L. Departures: the perplexity of a target, not of a text; the model that measures is
        the one that is trained; ``per_class`` is an addition.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import MiddlePerplexity
        >>> method = MiddlePerplexity(fraction=0.5, scoring_epochs=3)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _key = "middle_perplexity"
    _keeps = "middle"

    def _measure(self) -> Tensor:
        losses = self.observe("losses", dataset=self.clean_dataset).losses
        assert losses is not None
        return losses.double().exp()
