"""Loss trajectories: which examples are learned alike, and a subset with some of each kind."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lightning_robust.contracts import ContractError, check_integer
from lightning_robust.functional.clustering import kmeans
from lightning_robust.functional.groups import draw_from_groups, even_quotas
from lightning_robust.functional.logits import load_plain

_KEYS = ("losses", "steps")


def check_trajectories(trajectories: Tensor, num_examples: int) -> None:
    """Refuse a table that cannot be the loss trajectories of a training set.

    Args:
        trajectories: What should be (n, T), floating and finite.
        num_examples: n.

    Raises:
        ContractError: It is not; the message says what and where.

    Example:
        >>> check_trajectories(torch.zeros(3, 2), num_examples=3)
    """
    if not trajectories.is_floating_point() or trajectories.ndim != 2 or 0 in trajectories.shape:
        raise ContractError(
            f"trajectories is {trajectories.dtype} of shape {tuple(trajectories.shape)}; give "
            "floating losses (n, T), a row an example and a column a time"
        )
    if len(trajectories) != num_examples:
        raise ContractError(
            f"trajectories has {len(trajectories)} rows and the training set {num_examples} "
            "examples; record them on the same data set"
        )
    finite = trajectories.isfinite().all(1)
    if not bool(finite.all()):
        raise ContractError(
            f"trajectories is not finite for example {int((~finite).nonzero()[0])} (NaN or "
            "infinity): the proxy has diverged; lower its learning rate"
        )


def save_trajectories(losses: Tensor, steps: list[int], path: str | Path) -> None:
    """Write trajectories to a file that loads with ``weights_only=True``.

    Args:
        losses: (n, T).
        steps: The T optimizer steps after which they were recorded.
        path: The file, overwritten if it is there.
    """
    torch.save(dict(zip(_KEYS, (losses.cpu().contiguous(), steps), strict=True)), path)


def load_trajectories(path: str | Path) -> Tensor:
    """Read what :func:`save_trajectories` wrote, or any ``torch.save`` of a tensor.

    Returns:
        (n, T) on the CPU.

    Raises:
        ContractError: There is no such file, or it holds something else.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_trajectories(torch.eye(2), [10, 20], f"{folder}/losses.pt")
        ...     load_trajectories(f"{folder}/losses.pt").clone()
        tensor([[1., 0.],
                [0., 1.]])
    """
    found = load_plain(path, "trajectories")
    losses = found.get(_KEYS[0]) if isinstance(found, dict) else found
    if not isinstance(losses, Tensor):
        raise ContractError(
            f"trajectories={str(path)!r} holds a {type(found).__name__}; give a file of "
            "LossTrajectory, or a saved tensor (n, T)"
        )
    return losses


def cluster_trajectories(
    trajectories: Tensor, k: int, sources: Tensor, generator: torch.Generator
) -> Tensor:
    """Cluster each source's examples by their losses over time (Eq. 3.5 of S2L).

    Args:
        trajectories: (n, T).
        k: Clusters a source; a source with fewer examples has fewer.
        sources: (n,) int64.
        generator: Of the k-means.

    Returns:
        (n,) int64 cluster numbers, no two sources sharing one.

    Example:
        >>> losses = torch.tensor([[0.1], [0.2], [5.0], [0.1]])
        >>> found = cluster_trajectories(losses, 2, torch.tensor([0, 0, 0, 1]), torch.Generator())
        >>> found.unique().numel(), bool(found[0] == found[1])
        (3, True)
    """
    check_integer("k", k, 1)
    clusters = torch.empty_like(sources)
    first = 0
    for source in sources.unique().tolist():
        members = (sources == source).nonzero().squeeze(1)
        found = kmeans(trajectories[members], min(k, len(members)), generator=generator)
        clusters[members] = first + found.assignment
        first += int(found.assignment.max()) + 1
    return clusters


def select_evenly(
    clusters: Tensor,
    sources: Tensor,
    budget: int,
    generator: torch.Generator,
    min_cluster_size: int = 1,
) -> Tensor:
    """As many examples of each source, and in it of each cluster, as there are (Algorithm 2).

    From the smallest to the largest: a cluster gives an equal share of what is still wanted, or all
    it has. Which ones, is drawn at random.

    Args:
        clusters: (n,) int64, of :func:`cluster_trajectories`.
        sources: (n,) int64.
        budget: B >= 1, how many to select.
        generator: Of the draws.
        min_cluster_size: Smaller clusters are drawn from only where others do not suffice.

    Returns:
        (n,) bool, with ``min(budget, n)`` of them true.

    Example:
        >>> clusters = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2, 2])
        >>> kept = select_evenly(clusters, torch.zeros_like(clusters), 5, torch.Generator())
        >>> torch.bincount(clusters[kept])
        tensor([2, 1, 2])
    """
    check_integer("budget", budget, 1)
    check_integer("min_cluster_size", min_cluster_size, 1)
    kept = torch.zeros(len(clusters), dtype=torch.bool)
    shares = even_quotas(torch.bincount(sources), budget, generator)
    for source, share in enumerate(shares.tolist()):
        members = (sources == source).nonzero().squeeze(1)
        _, own, sizes = clusters[members].unique(return_inverse=True, return_counts=True)
        large = sizes >= min_cluster_size
        quotas = even_quotas(sizes * large, share, generator)
        # What large clusters cannot give, comes from all examples of small ones alike.
        drawn = draw_from_groups(own, quotas, generator)
        rest = (~large[own]).nonzero().squeeze(1)
        missing = share - int(quotas.sum())
        drawn[rest[torch.randperm(len(rest), generator=generator)[:missing]]] = True
        kept[members[drawn]] = True
    return kept
