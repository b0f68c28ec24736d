"""Herding (Welling, ICML 2009, https://doi.org/10.1145/1553374.1553517)."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.callbacks._scores import _OfFeatures
from lightning_robust.functional.subsets import herding


class Herding(_OfFeatures):
    """Keeps examples whose mean feature is that of all.

    **What changes**: for ``scoring_epochs`` epochs the model trains as usual. Then the ``fraction``
    of the examples is kept whose features, the inputs of the head, have a mean as near as can be to
    that of all: picked greedily, so that the mean of the first few is near to it, too. The model
    starts again from its initial weights, with fresh optimizers and schedules, and an epoch is one
    pass over what is kept. **Needs** targets, no groups. **Costs** the epochs until then, a forward
    pass over the training set, and a product for each pair of an example and one that is kept. A
    checkpoint written before the selection also holds the initial weights.

    Args:
        fraction: Share of the training set that is kept, in (0, 1]: rounded, at least one example.
        scoring_epochs: Epochs of training before features are taken; 0 takes those of a model that
            comes pre-trained.
        per_class: Pick from each class its share; otherwise from all examples at once.
        reinitialise: Start again from the initial weights after the selection; otherwise the model
            trains on.
        clean_dataset: The training examples without augmentation, in the same order; features are
            of these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the order of the examples; ``None`` takes the one given to
            ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. When selecting: features that
            are not finite.

    Logged keys, once selected:
        ``herding/num_examples``: size of the subset.

    References:
        Section 2, as greedy minimisation of the distance of the means (Chen, Welling and Smola,
        UAI 2010); for features of equal length the picks are those of Welling's rule. Departures:
        no example is picked twice; shares of the classes are an addition.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import Herding
        >>> method = Herding(fraction=0.5, scoring_epochs=3)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _key = "herding"

    def _pick(self, features: Tensor, count: int) -> Tensor:
        return herding(features, count)
