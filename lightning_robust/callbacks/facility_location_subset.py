"""Facility locations on features, as a baseline of S2L and of label-efficient fine-tuning."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.callbacks._scores import _OfFeatures
from lightning_robust.functional.facility_location import facility_location


class FacilityLocationSubset(_OfFeatures):
    """Keeps the medoids of the features: examples such that every other is near one of them.

    **What changes**: for ``scoring_epochs`` epochs the model trains as usual. Then the ``fraction``
    of the examples is kept that represents all best: medoids by the distance of their features, the
    inputs of the head, picked greedily. The model starts again from its initial weights, with fresh
    optimizers and schedules, and an epoch is one pass over what is kept. **Needs** targets, no
    groups. **Costs** the epochs until then, and one forward pass over the training set and
    distances between all pairs of examples of a class (never held at once). A checkpoint written
    before the selection also holds the initial weights.

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
        ``facility_location_subset/num_examples``: size of the subset.

    References:
        "Facility Locations selection based on hidden states", Section 3.4.1 of the thesis version
        of S2L, there by data source, after Bhatt et al., 2024 (arXiv:2401.06692). Greedy picks:
        :func:`~lightning_robust.functional.facility_location.facility_location`. Departure:
        similarity is a constant minus the Euclidean distance.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import FacilityLocationSubset
        >>> method = FacilityLocationSubset(fraction=0.5, scoring_epochs=3)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _key = "facility_location_subset"

    def _pick(self, features: Tensor, count: int) -> Tensor:
        return facility_location(features, count).indices
