"""Poisons as outliers of their class in feature space: three classical rules.

Each takes features, the inputs of the last layer, of a network that was trained on the poisoned
data, and says which examples to drop: what stands out along one direction (spectral signatures),
what forms a small cluster of its own (activation clustering), and what has neighbours of another
class (deep k-NN).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_robust.functional.clustering import kmeans, silhouette

_RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest are rounding errors of zero."""
_NUMBERS_A_BLOCK = 1 << 22


def spectral_scores(features: Tensor) -> Tensor:
    """How far each example of a class is from its mean along the direction of largest variance.

    Args:
        features: (n, d), of the examples of one class.

    Returns:
        (n,) float64, squared projections on the top right singular vector of the centred features.

    References:
        Tran, Li and Madry, Spectral signatures in backdoor attacks, NeurIPS 2018, Algorithm 1.

    Example:
        >>> spectral_scores(torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])).round()
        tensor([1., 1., 4.], dtype=torch.float64)
    """
    centred = features.double() - features.double().mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    scores: Tensor = (left[:, 0] * values[0]).square()
    return scores


def whitened(features: Tensor, num_components: int) -> Tensor:
    """Principal components, each scaled to variance 1.

    Independent components of variance 1 are a rotation of these, so whatever depends on distances
    only is the same for both.

    Args:
        features: (n, d).
        num_components: The most there can be; fewer where the features have a lower rank.

    Returns:
        (n, k) float64.

    Example:
        >>> whitened(torch.tensor([[1.0, 7.0], [3.0, 7.0]]), 2).abs().round()
        tensor([[1.],
                [1.]], dtype=torch.float64)
    """
    centred = features.double() - features.double().mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    rank = int((values > max(_RANK_TOLERANCE * float(values[0]), 1e-12)).sum())
    components: Tensor = left[:, : min(rank, num_components)] * len(features) ** 0.5
    return components


def small_cluster(
    features: Tensor,
    num_components: int,
    size_threshold: float,
    silhouette_threshold: float,
    *,
    generator: torch.Generator,
) -> Tensor:
    """The smaller of two clusters of a class, if it is small, and the two are well apart.

    Args:
        features: (n, d), of the examples of one class.
        num_components: How many whitened components are clustered by k-means.
        size_threshold: The largest share of the class that counts as small.
        silhouette_threshold: The least mean silhouette of two clusters that are apart.
        generator: Source of randomness of k-means.

    Returns:
        (n,) bool; all ``False`` where there is no such cluster.

    References:
        Chen et al., Detecting backdoor attacks on deep neural networks by activation clustering,
        2018 (arXiv:1811.03728), with its tests of relative size and silhouette together.

    Example:
        >>> features = torch.tensor([[0.0], [0.1], [0.2], [0.1], [9.0]])
        >>> small_cluster(features, 1, 0.35, 0.1, generator=torch.Generator().manual_seed(0))
        tensor([False, False, False, False,  True])
    """
    none = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    points = whitened(features, num_components)
    if points.shape[1] == 0:
        return none
    found = kmeans(points, 2, generator=generator)
    small = found.assignment == 1  # clusters are numbered from the largest
    if not 0 < float(small.double().mean()) <= size_threshold:
        return none
    apart = float(silhouette(points, found.assignment, generator=generator))
    return small if apart >= silhouette_threshold else none


def outvoted(
    features: Tensor, targets: Tensor, num_neighbours: int, rows: Tensor | None = None
) -> Tensor:
    """Which examples have a class that is not the most frequent among their nearest neighbours.

    Args:
        features: (n, d).
        targets: (n,) int64.
        num_neighbours: k, by Euclidean distance, without the example itself; at most n - 1 count.
        rows: (m,) int64, the examples asked about; ``None``: all.

    Returns:
        (m,) bool; ``False`` where the own class is as frequent as any.

    References:
        Peri et al., Deep k-NN defense against clean-label data poisoning attacks, ECCV workshops
        2020, Algorithm 1.

    Example:
        >>> features = torch.tensor([[0.0], [0.1], [0.2], [0.15], [9.0], [9.1]])
        >>> outvoted(features, torch.tensor([0, 0, 0, 1, 1, 1]), num_neighbours=2)
        tensor([False, False, False,  True, False, False])
    """
    points, targets = features.double(), targets.to(features.device)
    n, num_classes = len(points), int(targets.max()) + 1
    rows = torch.arange(n) if rows is None else rows
    k = min(num_neighbours, n - 1)
    found = [torch.zeros(0, dtype=torch.bool, device=features.device)]
    for block in rows.to(features.device).split(max(1, _NUMBERS_A_BLOCK // n)):
        distances = torch.cdist(points[block], points)
        distances.scatter_(1, block[:, None], float("inf"))
        nearest = distances.topk(k, largest=False).indices
        votes = F.one_hot(targets[nearest], num_classes).sum(1)
        own = votes.gather(1, targets[block, None]).squeeze(1)
        found.append(own < votes.amax(1))
    return torch.cat(found)
