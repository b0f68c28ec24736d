"""S2L: data selected by a small model (Yang et al., NeurIPS 2024, arXiv:2403.07384)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    ContractError,
    GroupsLike,
    check_in_range,
    check_integer,
    check_positive,
    resolve_groups,
)
from lightning_robust.functional.trajectories import (
    check_trajectories,
    cluster_trajectories,
    load_trajectories,
    select_evenly,
)
from lightning_robust.randomness import generator, resolve_seed

Trajectories: TypeAlias = Tensor | np.ndarray | str | Path | Callable[[Dataset[Any]], Any]


class S2L(Method):
    """Trains on a subset in which every way to learn an example is represented.

    **What changes**: the training examples are clustered by the losses they had while a small proxy
    model trained; from each cluster, as equal a number as there are is drawn; an epoch is one pass
    over these. **Needs** the trajectories of a proxy, recorded by
    :class:`~lightning_robust.LossTrajectory`. **Costs** training the proxy, and one clustering.

    Args:
        trajectories: Losses (n, T) of the training examples over time: a tensor or array, the file
            of a ``LossTrajectory``, or a function of the training set that returns them, such as
            ``functools.partial(lightning_robust.models.loss_trajectories, proxy, epochs=3)``, which
            then is the first stage of this fit.
        fraction: Share of the training set that is kept; rounded, at least one example.
        num_clusters: K, clusters of each source.
        sources: Where each training example is from, like ``groups``: each source is clustered by
            itself and gives as many as it can; ``"dataset"`` takes ``dataset.groups``; ``None``:
            they are all from one.
        min_cluster_size: Examples of smaller clusters are taken only where others do not suffice.
        seed: Seed of clustering and draws; ``None`` takes the one given to ``seed_everything``,
            else 0.

    Raises:
        ContractError: Before the first step: trajectories are missing, of the wrong length or type
            or not finite, sources are, or a value is out of range.

    Logged keys:
        ``s2l/num_examples``: size of the subset.

    References:
        Algorithm 2 and Eq. 3.5. No departure from the paper; the authors' code draws from clusters
        of one or two only where others do not suffice (``min_cluster_size=3``).

    Example:
        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import S2L
        >>> method = S2L(torch.rand(1200, 12), fraction=0.1, num_clusters=50)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    needs_targets = False
    state = ("kept", "clusters")

    def __init__(
        self,
        trajectories: Trajectories | None = None,
        *,
        fraction: float = 0.5,
        num_clusters: int = 100,
        sources: GroupsLike | None = None,
        min_cluster_size: int = 1,
        seed: int | None = None,
    ) -> None:
        forms = Tensor | np.ndarray | str | Path | None
        if not (isinstance(trajectories, forms) or callable(trajectories)):
            raise ContractError(
                f"trajectories must be a tensor, an array, a file or a function of the training "
                f"set, got {type(trajectories).__name__}"
            )
        check_in_range("fraction", fraction, 0, 1)
        check_positive("fraction", fraction)
        check_integer("num_clusters", num_clusters, 1)
        check_integer("min_cluster_size", min_cluster_size, 1)
        self.trajectories = trajectories
        self.fraction = fraction
        self.num_clusters = num_clusters
        self.sources = sources
        self.min_cluster_size = min_cluster_size
        super().__init__(seed=seed)

    def reset(self) -> None:
        """No subset before training."""
        self.kept: Tensor | None = None
        self.clusters: Tensor | None = None

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Cluster and select; not again after a resume."""
        if self.kept is not None:
            return
        losses = self._losses(dataset)
        check_trajectories(losses, self.num_examples)
        if self.sources is None:
            sources = torch.zeros(self.num_examples, dtype=torch.int64)
        else:
            given = None if self.sources == "dataset" else self.sources
            sources = resolve_groups(given, dataset, split="train").ids
        seed = resolve_seed(self.seed)
        self.clusters = cluster_trajectories(
            losses.double(), self.num_clusters, sources, generator(seed, "s2l clusters")
        )
        self.kept = select_evenly(
            self.clusters,
            sources,
            max(1, round(self.fraction * self.num_examples)),
            generator(seed, "s2l draws"),
            self.min_cluster_size,
        )

    def vote(self) -> Tensor | None:
        """1 for what is in the subset, else 0."""
        return self.kept

    def report(self) -> dict[str, float | Tensor]:
        """Size of the subset."""
        return {} if self.kept is None else {"s2l/num_examples": float(self.kept.sum())}

    def _losses(self, dataset: Dataset[Any]) -> Tensor:
        given = self.trajectories
        if given is None:
            raise ContractError(
                "S2L needs loss trajectories and trajectories is None; give a tensor (n, T), the "
                "file of a LossTrajectory, or "
                "functools.partial(lightning_robust.models.loss_trajectories, proxy)"
            )
        if isinstance(given, str | Path):
            return load_trajectories(given)
        if isinstance(given, Tensor | np.ndarray):
            return torch.as_tensor(given).detach().cpu()
        # Every rank computes them, so that none waits past a collective's limit; one's are used.
        provided = given(dataset)
        if not isinstance(provided, Tensor):
            raise ContractError(
                f"trajectories returned a {type(provided).__name__}; let it return a tensor (n, T)"
            )
        broadcast: Tensor = self.conductor.trainer.strategy.broadcast(provided.detach().cpu())
        return broadcast
