"""K-centre core-sets (Sener and Savarese, ICLR 2018, https://arxiv.org/abs/1708.00489)."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.callbacks._scores import _OfFeatures
from lightning_robust.functional.subsets import k_center


class KCenter(_OfFeatures):
    """Keeps examples such that no other is far from the nearest of them.

    **What changes**: for ``scoring_epochs`` epochs the model trains as usual. Then the ``fraction``
    of the examples is kept that covers all with the smallest balls: greedily, always the example
    farthest from those kept, by the distance of features, the inputs of the head. The model starts
    again from its initial weights, with fresh optimizers and schedules, and an epoch is one pass
    over what is kept. **Needs** targets, no groups. **Costs** the epochs until then, a forward pass
    over the training set, and a distance for each pair of an example and one that is kept. A
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
        ``k_center/num_examples``: size of the subset.

    References:
        Algorithm 1 (k-Center-Greedy). Departures: nothing is labelled at the start, and the first
        pick is the example nearest to the mean; the mixed-integer refinement is left out; shares
        of the classes are an addition.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import KCenter
        >>> method = KCenter(fraction=0.5, scoring_epochs=3)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _key = "k_center"

    def _pick(self, features: Tensor, count: int) -> Tensor:
        return k_center(features, count)
