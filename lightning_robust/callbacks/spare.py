"""SPARE: separate early and resample (Yang et al., ICML 2023, https://arxiv.org/abs/2305.18761)."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    ContractError,
    Groups,
    GroupsLike,
    check_at_least,
    check_bool,
    check_choice,
    check_clean_dataset,
    check_in_range,
    check_integer,
    resolve_groups,
    targets_of,
)
from lightning_robust.functional.clustering import (
    ClassClusters,
    cluster_by_class,
    cluster_sampling_weights,
    matched_recall,
    sampling_powers,
)
from lightning_robust.randomness import generator, resolve_seed


class SPARE(Method):
    """Finds the groups that a spurious feature makes, early in training, and balances them.

    **What changes**: for ``separation_epoch`` epochs the model trains as usual. Then the examples
    of each class are clustered on what the model makes of them; an example of a cluster of size s
    gets the weight s ** -power, classes are balanced, and from there on examples are drawn with
    replacement by weight. By default the model starts again from its initial weights, with fresh
    optimizers and schedules. **Needs** targets, no groups (``separation_epoch="auto"`` needs the
    groups of a validation set). **Costs** one forward pass over the training set and a k-means a
    class, once; with ``"auto"`` once an epoch up to ``last_separation_epoch``. A checkpoint
    written before the separation also holds the initial weights.

    Args:
        separation_epoch: Number of epochs after which the clusters are made, or ``"auto"``: of the
            epochs 1 to ``last_separation_epoch`` the one whose clusters, made on the validation
            set, have the largest minimum recall of the validation groups.
        num_clusters: Clusters a class; ``None`` chooses by silhouette from 2 to ``max_clusters``.
        max_clusters: Largest number of clusters a class that is tried.
        space: What is clustered: the softmax (``"probs"``), the ``"logits"``, or the head's input
            (``"features"``).
        per_class: Cluster each class by itself; otherwise all examples at once, then split the
            clusters by class.
        power: Sampling power lambda for all classes, or for each class by its label, as in
            ``{0: 1.0, 1: 2.0}``; ``None`` takes 1 for a class whose clusters have a silhouette of
            at least ``silhouette_threshold``, else ``low_separation_power``.
        silhouette_threshold: In [-1, 1].
        low_separation_power: Lambda of classes below the threshold.
        reinitialise: Start again from the initial weights after the separation.
        last_separation_epoch: The last candidate of ``"auto"``.
        validation_groups: Groups of the validation examples, for ``"auto"``; ``None`` takes the
            validation data set's own.
        clean_dataset: The training examples without augmentation, in the same order; the clusters
            are made on these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of clustering and draws; ``None`` takes the one given to ``seed_everything``,
            else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``power`` that misses a class, a ``clean_dataset`` of another length. When
            separating: outputs that are not finite.

    Logged keys, once separated:
        ``spare/silhouette/<class>`` and ``spare/num_clusters/<class>``.

    References:
        Algorithm 4 and Section 5.4 of the thesis; Table 9.7 for thresholds and powers. Departures:
        ``space="probs"`` by default, as in the authors' released code, where the text clusters the
        last layer's output (``"logits"``) or, for CelebA, ``"features"``; how classes mix is
        unstated in the paper, and they are balanced, as in the code; powers go by class label (the
        released code can swap them).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import SPARE
        >>> method = SPARE(separation_epoch=2, space="logits")
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    observes = True
    state = ("initial", "clusters", "class_of_cluster", "silhouettes", "weights", "best_recall")

    def __init__(
        self,
        separation_epoch: int | Literal["auto"] = 1,
        *,
        num_clusters: int | None = None,
        max_clusters: int = 10,
        space: Literal["probs", "logits", "features"] = "probs",
        per_class: bool = True,
        power: float | dict[int, float] | None = None,
        silhouette_threshold: float = 0.9,
        low_separation_power: float = 2.0,
        reinitialise: bool = True,
        last_separation_epoch: int = 5,
        validation_groups: GroupsLike | None = None,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        if separation_epoch != "auto":
            check_integer("separation_epoch", separation_epoch, 1)
        if num_clusters is not None:
            check_integer("num_clusters", num_clusters, 1)
        check_integer("max_clusters", max_clusters, 2)
        check_choice("space", space, ("probs", "logits", "features"))
        check_bool("per_class", per_class)
        for value in power.values() if isinstance(power, dict) else (power,):
            if value is not None:
                check_at_least("power", value, 0.0)
        check_in_range("silhouette_threshold", silhouette_threshold, -1.0, 1.0)
        check_at_least("low_separation_power", low_separation_power, 0.0)
        check_bool("reinitialise", reinitialise)
        check_integer("last_separation_epoch", last_separation_epoch, 1)
        self.separation_epoch = separation_epoch
        self.num_clusters = num_clusters
        self.max_clusters = max_clusters
        self.space = space
        self.per_class = per_class
        self.power = power
        self.silhouette_threshold = silhouette_threshold
        self.low_separation_power = low_separation_power
        self.reinitialise = reinitialise
        self.last_separation_epoch = last_separation_epoch
        self.validation_groups = validation_groups
        self.clean_dataset = clean_dataset
        super().__init__(head=head, seed=seed)

    def reset(self) -> None:
        """No clusters before training."""
        self.initial: dict[str, Any] | None = None
        self.clusters: Tensor | None = None
        self.class_of_cluster: Tensor | None = None
        self.silhouettes: dict[int, float] = {}
        self.weights: Tensor | None = None
        self.best_recall: float = -1.0

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Check what can be checked before the first step."""
        labels = set(self.targets.unique().tolist())
        if isinstance(self.power, dict) and (missing := labels - self.power.keys()):
            raise ContractError(
                f"power={self.power!r} has no entry for the classes {sorted(missing)}; give each "
                "class one"
            )
        check_clean_dataset(self.clean_dataset, self.num_examples)
        max_epochs = self.conductor.trainer.max_epochs
        if max_epochs is not None and 0 <= max_epochs <= self._last_candidate:
            warnings.warn(
                f"SPARE separates after epoch {self._last_candidate}, and training ends then "
                f"(max_epochs={max_epochs}): nothing will be resampled",
                stacklevel=2,
            )

    def begin(self) -> None:
        """Keep the initial weights; check the validation set while nothing is lost."""
        if self.separation_epoch == "auto":
            self._validation_set()
        if self.reinitialise:
            self.initial = self.conductor.snapshot()

    def decide(self, epoch: int) -> None:
        """Cluster where it is time; separate once."""
        automatic = self.separation_epoch == "auto"
        if self.weights is not None or not (1 if automatic else self._last_candidate) <= epoch:
            return
        if not automatic:
            self._keep(self._cluster_training_set(epoch))
        elif (recall := self._validation_recall(epoch)) > self.best_recall:
            self.best_recall = recall
            self._keep(self._cluster_training_set(epoch))
        if epoch >= self._last_candidate:
            self._separate()

    def vote(self) -> Tensor | None:
        """1 / cluster size to the power lambda, classes balanced."""
        return self.weights

    def report(self) -> dict[str, float | Tensor]:
        """Silhouette and number of clusters of each class."""
        if self.weights is None or self.class_of_cluster is None:
            return {}
        labels, counts = self.class_of_cluster.unique(return_counts=True)
        numbers = {
            f"spare/num_clusters/{label}": float(count)
            for label, count in zip(labels.tolist(), counts.tolist(), strict=True)
        }
        scores = {f"spare/silhouette/{label}": s for label, s in self.silhouettes.items()}
        return {**scores, **numbers}

    @property
    def _last_candidate(self) -> int:
        epoch = self.separation_epoch
        return self.last_separation_epoch if epoch == "auto" else int(epoch)

    def _keep(self, found: ClassClusters) -> None:
        self.clusters, self.silhouettes = found.clusters, found.silhouette
        self.class_of_cluster = found.classes

    def _separate(self) -> None:
        assert self.clusters is not None
        if self.power is None:
            powers = sampling_powers(
                self.silhouettes, self.silhouette_threshold, self.low_separation_power
            )
        elif isinstance(self.power, dict):
            powers = self.power
        else:
            powers = dict.fromkeys(self.targets.unique().tolist(), self.power)
        self.weights = cluster_sampling_weights(self.clusters, self.targets, powers)
        if self.initial is not None:
            self.conductor.restart(self.initial)
            self.initial = None

    def _cluster_training_set(self, epoch: int) -> ClassClusters:
        return self._cluster(epoch, self.targets, self.clean_dataset)

    def _cluster(self, epoch: int, targets: Tensor, dataset: Dataset[Any] | None) -> ClassClusters:
        quantity = "features" if self.space == "features" else "logits"
        seen = self.observe(quantity, dataset=dataset)
        points = seen.features if self.space == "features" else seen.logits
        assert points is not None
        return cluster_by_class(
            points.softmax(1) if self.space == "probs" else points,
            targets,
            num_clusters=self.num_clusters,
            max_clusters=self.max_clusters,
            per_class=self.per_class,
            generator=generator(resolve_seed(self.seed), "spare", epoch),
        )

    def _validation_recall(self, epoch: int) -> float:
        """Smallest recall of a validation group by the clusters of the validation set."""
        dataset, groups, targets = self._validation_set()
        found = self._cluster(epoch, targets, dataset)
        return matched_recall(found.clusters, groups.ids, targets)

    def _validation_set(self) -> tuple[Dataset[Any], Groups, Tensor]:
        loaders = self.conductor.validation_loaders()
        loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
        if not isinstance(loader, DataLoader):
            raise ContractError(
                'separation_epoch="auto" needs a validation DataLoader with groups; give one, or '
                "give the number of an epoch"
            )
        groups = resolve_groups(self.validation_groups, loader.dataset, split="val")
        return loader.dataset, groups, targets_of(loader.dataset)
