"""GEORGE: subclasses by clustering (Sohoni et al., NeurIPS 2020, https://arxiv.org/abs/2011.12945)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._inferred import _InferredDRO
from lightning_robust.contracts import (
    check_choice,
    check_in_range,
    check_integer,
)
from lightning_robust.functional.clustering import subclasses
from lightning_robust.randomness import generator, resolve_seed


class GEORGE(_InferredDRO):
    """Clusters the features of each class, and minimises the loss of the worst cluster.

    **What changes**: for ``identification_epochs`` epochs the model trains as usual. Then the
    examples of each class are clustered on the head's inputs: the number of clusters is that with
    the largest silhouette, and parts of clusters that stand out are split off. The model starts
    again from its initial weights; from there on the clusters are its groups, and are weighted up
    while their loss is high, as by ``GroupDRO``. **Needs** targets, no groups. **Costs** one
    forward pass over the training set and the clustering of each class; and then a cross-entropy
    without gradient a batch. A checkpoint written before that also holds the initial weights.

    Args:
        identification_epochs: Epochs of the first training. The paper trains to the end.
        max_clusters: Largest number of clusters a class that is tried.
        parts: Into how many each cluster is cut, to see whether one stands out; 1 does without.
        min_share: Smallest share of its class that a part may have to be split off.
        space: What is clustered: the head's input (``"features"``), or the ``"logits"``.
        step_size: eta >= 0 of Group DRO on the clusters; ``None`` leaves the loss as it is.
        balanced_sampling: Draw every cluster equally often, with replacement.
        reinitialise: Start again from the initial weights; otherwise the model trains on.
        clean_dataset: The training examples without augmentation, in the same order; the clusters
            are made on these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of clustering and draws; ``None`` takes the one given to ``seed_everything``,
            else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. After the first training: outputs that
            are not finite.

    Logged keys, once clustered:
        ``george/num_clusters/<class>``.

    References:
        Section 4: clusters of a network's features, by class, and Group DRO on them. Departures:
        features are clustered as they are, by k-means, where the paper reduces them by UMAP to
        one or two dimensions and takes Gaussian mixtures for some data sets; Group DRO without
        group adjustment. SPARE clusters as well, but earlier, and samples by cluster size.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import GEORGE
        >>> method = GEORGE(identification_epochs=10)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("initial", "ids", "weights", "num_clusters")

    def __init__(
        self,
        identification_epochs: int = 5,
        *,
        max_clusters: int = 10,
        parts: int = 5,
        min_share: float = 0.005,
        space: Literal["features", "logits"] = "features",
        step_size: float | None = 0.01,
        balanced_sampling: bool = False,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_integer("max_clusters", max_clusters, 2)
        check_integer("parts", parts, 1)
        check_in_range("min_share", min_share, 0, 1)
        check_choice("space", space, ("features", "logits"))
        self.max_clusters = max_clusters
        self.parts = parts
        self.min_share = min_share
        self.space = space
        super().__init__(
            identification_epochs,
            step_size=step_size,
            balanced_sampling=balanced_sampling,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            head=head,
            seed=seed,
        )

    def reset(self) -> None:
        """No clusters before training."""
        super().reset()
        self.num_clusters: dict[int, int] = {}

    def report(self) -> dict[str, float | Tensor]:
        """Number of clusters of each class."""
        numbers = self.num_clusters.items()
        return {f"george/num_clusters/{label}": float(number) for label, number in numbers}

    def _infer(self, epoch: int) -> Tensor:
        seen = self.observe(self.space, dataset=self.clean_dataset)
        points = seen.features if self.space == "features" else seen.logits
        assert isinstance(points, torch.Tensor)
        found = subclasses(
            points,
            self.targets,
            max_clusters=self.max_clusters,
            parts=self.parts,
            min_share=self.min_share,
            generator=generator(resolve_seed(self.seed), "george", epoch),
        )
        self.num_clusters = found.num_clusters
        return found.clusters
