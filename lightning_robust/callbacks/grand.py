"""GraNd: gradient norm scores (Paul et al., NeurIPS 2021, https://arxiv.org/abs/2107.07075)."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.callbacks._scores import _Scored


class GraNd(_Scored):
    """Keeps the examples with the largest gradients of the last layer.

    **What changes**: for ``scoring_epochs`` epochs the model trains as usual. Then the ``fraction``
    of the examples is kept whose loss has the largest gradient with respect to weight and bias of
    the head: in closed form ``|softmax(z) - onehot(y)| * sqrt(|h|^2 + 1)``, where h is the head's
    input. The model starts again from its initial weights, with fresh optimizers and schedules, and
    an epoch is one pass over what is kept. **Needs** targets, no groups; labels that are right; a
    linear head. **Costs** the epochs until then, and one forward pass over the training set. A
    checkpoint written before the selection also holds the initial weights.

    Args:
        fraction: Share of the training set that is kept, in (0, 1]: rounded, at least one example.
        scoring_epochs: Epochs of training before norms are measured; 0 is at initialisation.
        per_class: Keep the share of each class, by scores among its own; otherwise of all examples
            at once.
        reinitialise: Start again from the initial weights after the selection; otherwise the model
            trains on.
        scores: Gradient norms: a tensor or array (n,) in dataset order, a file that ``torch.save``
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
        ``grand/num_examples``: size of the subset.

    References:
        The GraNd score of Section 2. Departures: the gradient is that of the last layer, where the
        paper has that of all parameters; the norms of one network, where the paper has the mean
        over ten initialisations (average them yourself and give ``scores``); ``per_class`` is an
        addition.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import GraNd
        >>> method = GraNd(fraction=0.5, scoring_epochs=3)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _key = "grand"

    def _measure(self) -> Tensor:
        seen = self.observe("gradients", "features", dataset=self.clean_dataset)
        assert seen.gradients is not None
        assert seen.features is not None
        squared = seen.features.double().square().sum(1) + 1
        return (seen.gradients.double().square().sum(1) * squared).sqrt()
