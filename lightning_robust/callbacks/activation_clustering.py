"""Activation clustering (Chen et al., SafeAI 2019, https://arxiv.org/abs/1811.03728)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._dropping import _Filter
from lightning_robust.contracts import check_in_range, check_integer
from lightning_robust.functional.outliers import small_cluster
from lightning_robust.randomness import generator, resolve_seed


class ActivationClustering(_Filter):
    """Drops, of each class, a small cluster of features that lies apart from the others.

    **What changes**: for ``warmup_epochs`` epochs the model trains as usual. Then the features of
    each class, reduced to a few whitened components, are divided into two clusters; the smaller is
    dropped if it is at most ``size_threshold`` of the class, and the mean silhouette at least
    ``silhouette_threshold``. The model starts again from its initial weights, with fresh
    optimizers and schedules, on the rest. **Needs** targets, no groups, no clean data. **Costs**
    the epochs until then, a forward pass over the training set, and a singular value decomposition
    and a k-means a class, which DDP shares out. A checkpoint written before also holds the initial
    weights.

    Args:
        size_threshold: The largest share of a class that is dropped, in [0, 0.5]; with 0.5 and
            ``silhouette_threshold=-1`` each class loses its smaller cluster.
        silhouette_threshold: How well apart the clusters must be, in [-1, 1].
        num_components: To how many components the features are reduced.
        warmup_epochs: Epochs before the filtering; 0 takes the features of a model that comes
            pre-trained.
        reinitialise: Start again from the initial weights; otherwise the model trains on.
        clean_dataset: The training examples without augmentation, in the same order; features are
            of these.
        report_path: CSV file with a row for each dropped example: ``index``, ``target``,
            ``dropped_before_epoch``; ``None`` writes none. See also ``dropped_indices`` (m,).
        head: Name of the module that returns the logits, whose input are the features; ``None``
            finds it.
        seed: Seed of k-means; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. When filtering: features that are not
            finite.

    Logged keys:
        ``activation_clustering/dropped``: examples dropped just before this epoch.
        ``activation_clustering/dropped_total``: examples dropped so far.
        ``activation_clustering/dropped/<class>``: of these, how many of each class.
        ``activation_clustering/kept_fraction``: share of the training set that is left.

    References:
        Sections 3 and 4, with the tests of relative size and of silhouette; the paper offers them
        beside one that trains again without the cluster and classifies it, which is not here.
        Departures: both tests must agree; whitened principal components stand for independent
        ones, of which they are a rotation, so that distances are the same.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import ActivationClustering
        >>> method = ActivationClustering(warmup_epochs=40, report_path="dropped.csv")
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _prefix = "activation_clustering"

    def __init__(
        self,
        size_threshold: float = 0.35,
        *,
        silhouette_threshold: float = 0.1,
        num_components: int = 10,
        warmup_epochs: int = 10,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        report_path: str | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_in_range("size_threshold", size_threshold, 0.0, 0.5)
        check_in_range("silhouette_threshold", silhouette_threshold, -1.0, 1.0)
        check_integer("num_components", num_components, 1)
        self.size_threshold = size_threshold
        self.silhouette_threshold = silhouette_threshold
        self.num_components = num_components
        super().__init__(
            warmup_epochs=warmup_epochs,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            report_path=report_path,
            head=head,
            seed=seed,
        )

    def _suspects(self, features: Tensor, targets: Tensor) -> Tensor:
        def smaller_cluster(label: int, own: Tensor) -> Tensor:
            return small_cluster(
                features[own],
                self.num_components,
                self.size_threshold,
                self.silhouette_threshold,
                generator=generator(resolve_seed(self.seed), "activation clustering", label),
            )

        return self.by_class(targets, smaller_cluster) == 1
