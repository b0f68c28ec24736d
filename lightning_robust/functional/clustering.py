"""Clustering: k-means, silhouettes, the number of clusters, and weights from cluster sizes.

These are the decisions of SPARE (thesis chapter 5, Algorithm 4): cluster what the network makes of
the examples class by class, choose the number of clusters by silhouette, and sample examples of
small clusters more often than those of large ones.

Every function is a function of its arguments: randomness comes from a `torch.Generator`, and
no matrix of size n x n is ever held. Work is done on the device of the points, in float64 wherever
large numbers are subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import threshold

from lightning_robust.contracts import ContractError, check_in_range, check_integer

# Squared distances below this share of the data's squared extent are rounding errors of zero, so
# points closer than 1e-7 of the extent count as equal.
_RESOLUTION = 1e-14
# Points on which k-means runs its restarts, iterations after which it drops half of them, the
# most iterations, and the shift of the centres, relative to the variance, that ends it.
_CORESET, _HALVE_EVERY, _MAX_ITERATIONS, _TOLERANCE = 8192, 8, 300, 1e-4
# Points that are converted to float64 at a time.
_BLOCK = 16384
# Points in a tile: distances are computed between the points of two tiles at a time.
_TILE = 768


@dataclass(frozen=True, eq=False)
class KMeans:
    """A k-means clustering.

    Attributes:
        assignment: (n,) int64, the cluster of each point; clusters are numbered from the largest
            to the smallest, and none is empty.
        centres: (k, d) float64; fewer rows than asked for if there are fewer distinct points.
        inertia: Sum of the squared distances of the points to their centres.
    """

    assignment: Tensor
    centres: Tensor
    inertia: float


@dataclass(frozen=True, eq=False)
class ClusterChoice:
    """The clustering with the largest mean silhouette.

    Attributes:
        k: Number of clusters found.
        silhouettes: Mean silhouette of each candidate that was tried.
        clustering: The clustering chosen.
    """

    k: int
    silhouettes: dict[int, float]
    clustering: KMeans


@dataclass(frozen=True, eq=False)
class ClassClusters:
    """Clusters within classes.

    Attributes:
        clusters: (n,) int64, the cluster of each example. Numbers are consecutive over all
            classes, in increasing order of class label, and from large to small within a class.
        classes: (number of clusters,) int64, the class label of each cluster.
        silhouette: Mean silhouette of the examples of a class, by class *label*.
        num_clusters: Number of clusters of a class, by class *label*.
    """

    clusters: Tensor
    classes: Tensor
    silhouette: dict[int, float]
    num_clusters: dict[int, int]


# --- k-means --------------------------------------------------------------------------------------


def kmeans(points: Tensor, k: int, *, generator: torch.Generator, restarts: int = 10) -> KMeans:
    """The best of several runs of k-means.

    All restarts run side by side from greedy k-means++ seeds, and the worse half is dropped every
    few iterations. Of more than 8,192 points the restarts see a weighted sample of that size (a
    lightweight coreset: half of it uniform, half proportional to the squared distance from the
    mean, so that few far points are not missed); the best is then polished on all points.
    Up to that size the inertia is on average that of scikit-learn's `n_init=10`, beyond within half
    a percent; unlike there, sums do not depend on which thread is first.

    Args:
        points: (n, d) real and finite.
        k: Number of clusters; with fewer distinct points, that many are found.
        generator: Source of randomness.
        restarts: Number of seedings tried.

    Returns:
        The clustering with the smallest inertia found.

    Raises:
        ContractError: If `points` is not such a tensor with n >= 1, or a number is below 1.

    References:
        Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.
        Bachem, Lucic and Krause, Scalable k-means clustering via lightweight coresets, KDD 2018.

    Example:
        >>> points = torch.tensor([[0.0], [0.2], [5.0], [5.1], [5.2]])
        >>> found = kmeans(points, 2, generator=torch.Generator().manual_seed(0))
        >>> found.assignment, found.centres.flatten()
        (tensor([1, 1, 0, 0, 0]), tensor([5.1000, 0.1000], dtype=torch.float64))
    """
    check_integer("k", k, 1)
    return _kmeans(_checked(points), [k], generator, restarts)[0]


def _kmeans(
    points: Tensor, ks: Sequence[int], generator: torch.Generator, restarts: int
) -> list[KMeans]:
    """One clustering for each k; they share the coreset, and the first seeds of each restart."""
    check_integer("restarts", restarts, 1)
    frame = _Frame.of(points)
    mean = torch.stack([x.sum(dim=0) for x in frame.blocks(points)]).sum(dim=0) / len(points)
    far = torch.cat([(x - mean).square().sum(dim=1) for x in frame.blocks(points)])
    tolerance = _TOLERANCE * float(far.mean()) / points.shape[1]
    coreset, weights = _coreset(points, frame, far, generator)
    seeds = _seeds(coreset, weights, max(ks), restarts, generator)
    found = []
    for k in ks:
        centres = _lloyd(lambda: [(coreset, weights)], seeds[:, :k], tolerance)
        if len(coreset) < len(points):
            centres = _lloyd(
                lambda: ((x, x.new_ones(len(x))) for x in frame.blocks(points)), centres, tolerance
            )
        nearest = [_squared_distances(x, centres[0]).min(dim=1) for x in frame.blocks(points)]
        kept, assignment = _by_size(torch.cat([block.indices for block in nearest]))
        inertia = sum(float(block.values.sum()) for block in nearest) * frame.scale**2
        found.append(KMeans(assignment, centres[0, kept] * frame.scale + frame.origin, inertia))
    return found


def _by_size(assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Number clusters 0, 1, ... from large to small: their old numbers, and the new assignment."""
    old, label, sizes = torch.unique(assignment, return_inverse=True, return_counts=True)
    order = sizes.argsort(descending=True, stable=True)
    return old[order], order.argsort()[label]


@dataclass(frozen=True, eq=False)
class _Frame:
    """Coordinates in which all points lie in a box of diameter 1 around the origin."""

    origin: Tensor
    scale: float

    @classmethod
    def of(cls, points: Tensor) -> _Frame:
        low, high = (corner.double() for corner in torch.aminmax(points, dim=0))
        return cls((low + high) / 2, float(torch.linalg.vector_norm(high - low)) or 1.0)

    def __call__(self, points: Tensor) -> Tensor:
        """The (n, d) points in these coordinates, float64."""
        return (points.double() - self.origin) / self.scale

    def blocks(self, points: Tensor) -> Iterator[Tensor]:
        """The points in these coordinates, a block at a time."""
        return (self(block) for block in points.split(_BLOCK))


def _coreset(
    points: Tensor, frame: _Frame, far: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points (m, d) in the frame and their weights (m,): all points, or a sample of `_CORESET`.

    `far` (n,) are the squared distances from the mean.
    """
    n, total = len(points), far.sum()
    if n <= _CORESET or total == 0:
        everything = frame(points[:_CORESET])
        return everything, everything.new_ones(len(everything))
    probability = 0.5 / n + 0.5 * far / total
    drawn = _draw(probability[None], _CORESET, generator)[0]
    return frame(points[drawn]), 1 / (_CORESET * probability[drawn])


def _draw(mass: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (R, count), drawn with replacement with probabilities proportional to mass (R, n)."""
    cumulative = mass.cumsum(dim=1)
    uniform = torch.rand(
        len(mass), count, generator=generator, dtype=torch.float64, device=generator.device
    ).to(mass.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn.clamp_(max=mass.shape[1] - 1)


def _seeds(
    points: Tensor, weights: Tensor, k: int, restarts: int, generator: torch.Generator
) -> Tensor:
    """Greedy k-means++ seeds (restarts, k, d), or fewer than k if there are no more points."""
    trials = 2 + int(math.log(k))
    rows = torch.arange(restarts, device=points.device)
    picks = [_draw(weights.expand(restarts, -1), 1, generator)[:, 0]]
    nearest = _squared_distances(points[picks[0]], points)
    while len(picks) < k and bool((nearest > 0).any(dim=1).all()):
        candidates = _draw(nearest * weights, trials, generator)
        reached = _squared_distances(points[candidates.flatten()], points)
        reached = torch.minimum(reached.view(restarts, trials, -1), nearest[:, None])
        best = (reached @ weights).min(dim=1).indices
        picks.append(candidates[rows, best])
        nearest = reached[rows, best]
    return points[torch.stack(picks, dim=1)]


def _lloyd(
    blocks: Callable[[], Iterable[tuple[Tensor, Tensor]]], centres: Tensor, tolerance: float
) -> Tensor:
    """Lloyd's iterations from R sets of centres side by side, and the best of them.

    Args:
        blocks: Gives, on every call, all points (m, d) and weights (m,), a block at a time.
        centres: (R, k, d); a centre that loses all its points stays where it is.
        tolerance: Sum of the squared shifts of a set of centres below which it has converged.

    Returns:
        (1, k, d).
    """
    k, d = centres.shape[1:]
    for iteration in range(_MAX_ITERATIONS):
        flat = centres.reshape(-1, d)
        offset = flat.square().sum(dim=1, keepdim=True)
        totals = centres.new_zeros(len(flat), d + 1)  # sums of points, number of points
        cost = centres.new_zeros(len(centres))
        for points, weights in blocks():
            # Squared distances less |x|^2, which is the same for all centres.
            scores = torch.addmm(offset, flat, points.T, alpha=-2).view(len(centres), k, -1)
            nearest = scores.amin(dim=1)
            member = (scores == nearest[:, None]).to(scores.dtype)
            counted = torch.cat([points, torch.ones_like(points[:, :1])], dim=1)
            totals += member.view(len(flat), -1) @ (counted * weights[:, None])
            cost += nearest @ weights
        totals = totals.view(-1, k, d + 1)
        moved = torch.where(totals[..., d:] > 0, totals[..., :d] / totals[..., d:], centres)
        best_first = cost.argsort(stable=True)
        if bool(((moved - centres).square().sum(dim=(1, 2)) <= tolerance).all()):
            return moved[best_first[:1]]
        if iteration % _HALVE_EVERY == _HALVE_EVERY - 1:
            moved = moved[best_first[: (len(moved) + 1) // 2]]
        centres = moved
    return centres[:1]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(A, B) squared distances between rows in the coordinates of a `_Frame`."""
    squares = torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2)
    squares += a.square().sum(dim=1, keepdim=True)
    return threshold(squares, _RESOLUTION, 0.0, inplace=True)


# --- silhouettes ----------------------------------------------------------------------------------


def silhouette(
    points: Tensor,
    assignments: Tensor,
    *,
    generator: torch.Generator,
    exact: bool = False,
    exact_up_to: int = 20_000,
    sample: int = 4_000,
) -> Tensor:
    """Mean silhouette of one clustering, or of several clusterings of the same points.

    A point with mean distance a to the other points of its cluster and mean distance b to the
    points of the nearest other cluster has the silhouette (b - a) / max(a, b); it is 0 if the
    cluster has no other point, or if a = b = 0. The distances are Euclidean, computed a tile at a
    time, and once for all clusterings.

    Beyond `exact_up_to` points the silhouettes of `sample` random points, exact against all
    others, are averaged with a control variate: the same silhouettes with the root of the mean
    squared distance to a cluster in the place of the mean distance, which are cheap for all points.
    The standard error shrinks with the residual of that regression; at n = 140,000 the error seen
    was below 0.004 (benchmarks/clustering.py).

    Args:
        points: (n, d) real and finite.
        assignments: (..., n) integers, the cluster of each point in each clustering.
        generator: Source of randomness of the sample; not used where the result is exact.
        exact: Exact whatever the size: time grows with n^2, memory with n x number of clusters.
        exact_up_to: Number of points up to which the result is exact anyway.
        sample: Number of points sampled beyond, at least 2.

    Returns:
        (...,) float64, the mean silhouette of each clustering: in [-1, 1], and 0 for a clustering
        with a single cluster, which separates nothing.

    Raises:
        ContractError: If an argument is not such a tensor or number.

    References:
        Rousseeuw, Silhouettes: a graphical aid to the interpretation and validation of cluster
        analysis, Journal of Computational and Applied Mathematics 20, 1987.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> assignments = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
        >>> silhouette(points, assignments, generator=torch.Generator())
        tensor([ 0.8997, -0.4500], dtype=torch.float64)
    """
    points = _checked(points)
    n = len(points)
    shape = assignments.shape
    if not shape or shape[-1] != n or 0 in shape or not _is_integral(assignments):
        raise ContractError(
            f"assignments must hold one integer for each of the {n} points in its last dimension, "
            f"got shape {tuple(shape)} of {assignments.dtype}"
        )
    check_integer("exact_up_to", exact_up_to, 0)
    check_integer("sample", sample, 2)
    frame = _Frame.of(points)
    partitions = _Partitions.of(assignments.reshape(-1, n).to(points.device))
    if exact or n <= max(exact_up_to, sample):
        means = _all_silhouettes(points, frame, partitions).mean(dim=1)
    else:
        drawn = torch.randperm(n, generator=generator, device=generator.device)
        drawn = drawn[:sample].to(points.device)
        wanted = _some_silhouettes(points, frame, partitions, drawn)
        proxies = _proxy_silhouettes(points, frame, partitions)
        proxy = proxies[:, drawn]
        residual = proxy - proxy.mean(dim=1, keepdim=True)
        slope = (wanted * residual).sum(dim=1) / residual.square().sum(dim=1)
        slope = torch.where(slope.isfinite(), slope, torch.zeros_like(slope))
        means = wanted.mean(dim=1) + slope * (proxies.mean(dim=1) - proxy.mean(dim=1))
    return means.view(shape[:-1])


@dataclass(frozen=True, eq=False)
class _Partitions:
    """Several clusterings of n points, and the cells of points that share a cluster in all of them.

    A cell's distances are summed once for all clusterings.

    Attributes:
        labels: One (n,) int64 for each clustering, clusters numbered 0, 1, ...
        sizes: One (clusters,) int64 for each clustering.
        cells: (n,) int64, numbered 0, 1, ...
        members: (clusters of all clusterings, cells) float64: 1 where the cell is in the cluster.
    """

    labels: list[Tensor]
    sizes: list[Tensor]
    cells: Tensor
    members: Tensor

    @classmethod
    def of(cls, assignments: Tensor) -> _Partitions:
        labels, sizes = [], []
        cells = torch.zeros_like(assignments[0], dtype=torch.int64)
        for assignment in assignments:
            _, label, size = torch.unique(assignment, return_inverse=True, return_counts=True)
            labels.append(label)
            sizes.append(size)
            _, cells = torch.unique(cells * len(size) + label, return_inverse=True)
        columns = torch.arange(int(cells.max()) + 1, device=cells.device)
        members = []
        for label, size in zip(labels, sizes, strict=True):
            cluster = torch.empty_like(columns).scatter_(0, cells, label)
            member = torch.zeros(len(size), len(columns), dtype=torch.float64, device=cells.device)
            member[cluster, columns] = 1.0
            members.append(member)
        return cls(labels, sizes, cells, torch.cat(members))

    def tiles(self) -> list[_Tile]:
        """All points, in tiles of points of the same or of neighbouring cells."""
        order = self.cells.argsort(stable=True)
        tiles = self.cells[order].split(_TILE)
        # All at once: a single wait where the points are on a GPU.
        ends = torch.stack([tile[[0, -1]] for tile in tiles]).tolist()
        return [
            _Tile(points, tile - first, self.members[:, first : last + 1])
            for points, tile, (first, last) in zip(order.split(_TILE), tiles, ends, strict=True)
        ]

    def silhouettes(self, sums: Tensor, points: Tensor) -> Tensor:
        """Silhouettes (clusterings, m) of points (m,) from their sums of distances to clusters.

        `sums` is (clusters of all clusterings, m).
        """
        found = []
        parts = sums.split([len(size) for size in self.sizes])
        for part, label, size in zip(parts, self.labels, self.sizes, strict=True):
            own = label[points][None]
            if len(size) == 1:
                found.append(torch.zeros_like(part[0]))
                continue
            a = part.gather(0, own)[0] / (size[own[0]] - 1).clamp(min=1)
            b = (part / size[:, None]).scatter_(0, own, math.inf).amin(dim=0)
            larger = torch.maximum(a, b)
            defined = (size[own[0]] > 1) & (larger > 0)
            found.append(torch.where(defined, (b - a) / larger, torch.zeros_like(a)))
        return torch.stack(found)


@dataclass(frozen=True, eq=False)
class _Tile:
    """A few points: their indices (m,), their cells (m,), and the clusters of these cells."""

    points: Tensor
    cells: Tensor
    members: Tensor

    def sums(self, distances: Tensor) -> Tensor:
        """Sums (clusters, p) over this tile's points, by cluster, of distances (m, p)."""
        num_cells = self.members.shape[1]
        if num_cells == 1:
            by_cell = distances.sum(dim=0, keepdim=True)
        else:
            by_cell = distances.new_zeros(num_cells, distances.shape[1])
            by_cell.index_add_(0, self.cells, distances.contiguous())
        return self.members @ by_cell.double()


class _Distances:
    """Float32 distances between few points, in buffers that are used again and again."""

    def __init__(self, device: torch.device) -> None:
        self._squares = torch.empty(_TILE**2, dtype=torch.float64, device=device)
        self._roots = torch.empty(_TILE**2, dtype=torch.float32, device=device)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """(X, Y) distances between points in the coordinates of a `_Frame`, until the next call."""
        shape = len(x), len(y)
        squares = self._squares[: len(x) * len(y)].view(shape)
        roots = self._roots[: len(x) * len(y)].view(shape)
        x_squares = x.square().sum(dim=1, keepdim=True)
        y_squares = y.square().sum(dim=1, keepdim=True)
        left = torch.cat([x, torch.ones_like(x_squares), x_squares], dim=1)
        right = torch.cat([-2 * y, y_squares, torch.ones_like(y_squares)], dim=1)
        # The difference is taken in float64; its root needs no more than float32.
        torch.mm(left, right.T, out=squares)
        return threshold(roots.copy_(squares), _RESOLUTION, 0.0, inplace=True).sqrt_()


def _all_silhouettes(points: Tensor, frame: _Frame, partitions: _Partitions) -> Tensor:
    """Silhouettes (clusterings, n) of all points, in the order of the tiles."""
    tiles, distances = partitions.tiles(), _Distances(points.device)
    sums = frame.origin.new_zeros(len(partitions.members), len(points))
    parts = sums.split(_TILE, dim=1)
    for i, tile in enumerate(tiles):
        x = frame(points[tile.points])
        for j, other in enumerate(tiles[: i + 1]):
            found = distances(x, frame(points[other.points]))
            parts[j].add_(tile.sums(found))
            if j < i:
                parts[i].add_(other.sums(found.T))
    return partitions.silhouettes(sums, torch.cat([tile.points for tile in tiles]))


def _some_silhouettes(
    points: Tensor, frame: _Frame, partitions: _Partitions, wanted: Tensor
) -> Tensor:
    """Silhouettes (clusterings, m) of the points with the indices `wanted` (m,)."""
    tiles, distances = partitions.tiles(), _Distances(points.device)
    sums = frame.origin.new_zeros(len(partitions.members), len(wanted))
    for part, some in zip(sums.split(_TILE, dim=1), wanted.split(_TILE), strict=True):
        y = frame(points[some])
        for tile in tiles:
            part.add_(tile.sums(distances(frame(points[tile.points]), y)))
    return partitions.silhouettes(sums, wanted)


def _proxy_silhouettes(points: Tensor, frame: _Frame, partitions: _Partitions) -> Tensor:
    """Silhouettes (clusterings, n) with root mean squared for mean distances, in O(n d k)."""
    sizes = torch.cat(partitions.sizes)[:, None].double()
    num_cells, d = partitions.members.shape[1], points.shape[1]
    moments = torch.zeros(num_cells, d + 1, dtype=torch.float64, device=points.device)
    for x, cells in zip(frame.blocks(points), partitions.cells.split(_BLOCK), strict=True):
        moments.index_add_(0, cells, torch.cat([x, x.square().sum(1, keepdim=True)], dim=1))
    means = partitions.members @ moments / sizes
    centres, squares = means[:, :d].contiguous(), means[:, d:]
    found = []
    everyone = torch.arange(len(points), device=points.device)
    for x, some in zip(frame.blocks(points), everyone.split(_BLOCK), strict=True):
        # The mean of |x - y|^2 over the points y of a cluster is |x|^2 - 2 x.mean + mean |y|^2.
        mean_squares = torch.addmm(squares + x.square().sum(dim=1), centres, x.T, alpha=-2)
        found.append(partitions.silhouettes(mean_squares.clamp_(min=0).sqrt_() * sizes, some))
    return torch.cat(found, dim=1)


def cluster_silhouettes(
    points: Tensor,
    assignment: Tensor,
    *,
    generator: torch.Generator,
    exact_up_to: int = 20_000,
    sample: int = 4_000,
) -> Tensor:
    """Mean silhouette of the members of each cluster.

    Beyond `exact_up_to` points it is the mean over all members of the cheap silhouettes described
    at `silhouette`, corrected by how far the exact ones of `sample` random points are from them.

    Args:
        points: (n, d) real and finite.
        assignment: (n,) integers, the cluster of each point.
        generator: Source of randomness of the sample; not used where the result is exact.
        exact_up_to: Number of points up to which the result is exact.
        sample: Number of points sampled beyond, at least 2.

    Returns:
        (k,) float64, in increasing order of cluster numbers; all 0 for a single cluster.

    Raises:
        ContractError: If an argument is not such a tensor or number.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [10.0], [10.0]])
        >>> cluster_silhouettes(points, torch.tensor([0, 0, 1, 1]), generator=torch.Generator())
        tensor([0.8944, 1.0000], dtype=torch.float64)
    """
    points = _checked(points)
    assignment = _checked_ids("assignment", assignment, len(points))
    check_integer("exact_up_to", exact_up_to, 0)
    check_integer("sample", sample, 2)
    return _by_cluster(points, assignment[None], generator, exact_up_to, sample)[0]


def _by_cluster(
    points: Tensor,
    assignments: Tensor,
    generator: torch.Generator,
    exact_up_to: int = 20_000,
    sample: int = 4_000,
) -> list[Tensor]:
    """Mean silhouette of each cluster, of each of several clusterings (m, n)."""
    frame, partitions = _Frame.of(points), _Partitions.of(assignments.to(points.device))
    n, drawn = len(points), torch.empty(0, dtype=torch.int64, device=points.device)
    if n <= max(exact_up_to, sample):
        order = torch.cat([tile.points for tile in partitions.tiles()])
        values = torch.empty(assignments.shape, dtype=torch.float64, device=points.device)
        values[:, order] = _all_silhouettes(points, frame, partitions)
        missed = values[:, drawn]
    else:
        values = _proxy_silhouettes(points, frame, partitions)
        drawn = torch.randperm(n, generator=generator, device=generator.device)
        drawn = drawn[:sample].to(points.device)
        missed = _some_silhouettes(points, frame, partitions, drawn) - values[:, drawn]
    found = []
    rows = zip(values, missed, partitions.labels, partitions.sizes, strict=True)
    for value, correction, label, size in rows:
        sums, missing = (torch.zeros(len(size), dtype=torch.float64).to(value) for _ in range(2))
        counts = torch.bincount(label[drawn], minlength=len(size)).clamp(min=1)
        sums.index_add_(0, label, value)
        missing.index_add_(0, label[drawn], correction)
        found.append(sums / size + missing / counts)
    return found


# --- clusters within classes ----------------------------------------------------------------------


def choose_num_clusters(
    points: Tensor,
    candidates: Iterable[int],
    *,
    generator: torch.Generator,
    restarts: int = 10,
    exact: bool = False,
) -> ClusterChoice:
    """Cluster by k-means with the number of clusters that has the largest mean silhouette.

    Args:
        points: (n, d) real and finite.
        candidates: Numbers of clusters to try, at least 1. Numbers above n - 1 count as n - 1:
            the silhouette of n clusters says nothing. So fewer than 3 points are one cluster.
        generator: Source of randomness.
        restarts: See `kmeans`.
        exact: See `silhouette`.

    Returns:
        The choice; of equal silhouettes (to 1e-9) the smallest candidate's.

    Raises:
        ContractError: If an argument is not such a tensor or number.

    References:
        Thesis Section 5.4: "We determine the number of clusters via silhouette analysis".

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
        >>> choose_num_clusters(points, range(2, 6), generator=torch.Generator().manual_seed(0)).k
        3
    """
    points = _checked(points)
    candidates = list(candidates)
    check_integer("the number of candidates", len(candidates), 1)
    for k in candidates:
        check_integer("candidates", k, 1)
    tried = sorted({max(1, min(k, len(points) - 1)) for k in candidates})
    found = _kmeans(points, tried, generator, restarts)
    assignments = torch.stack([clustering.assignment for clustering in found])
    scores = silhouette(points, assignments, generator=generator, exact=exact).tolist()
    best = next(i for i, score in enumerate(scores) if score >= max(scores) - 1e-9)
    return ClusterChoice(
        k=len(found[best].centres),
        silhouettes=dict(zip(tried, scores, strict=True)),
        clustering=found[best],
    )


def cluster_by_class(
    points: Tensor,
    targets: Tensor,
    *,
    num_clusters: int | None = None,
    max_clusters: int = 10,
    per_class: bool = True,
    generator: torch.Generator,
    restarts: int = 10,
    exact: bool = False,
) -> ClassClusters:
    """Cluster the examples of each class by k-means.

    A class with fewer than 3 examples is one cluster, and so is one whose points are all equal.
    Draws depend on the generator and the class label, not on other classes or their order.

    Args:
        points: (n, d) real and finite, such as the softmax of the logits.
        targets: (n,) integers, the class of each example.
        num_clusters: Clusters a class (fewer where there are fewer distinct points); `None`
            chooses by silhouette from 2 to `max_clusters`.
        max_clusters: Largest number of clusters tried, at least 2.
        per_class: Cluster each class by itself; otherwise cluster all examples together and split
            the clusters by class. Either way silhouettes are those of a class's own examples.
        generator: Source of randomness; one number is drawn from it.
        restarts: See `kmeans`.
        exact: See `silhouette`.

    Returns:
        The clusters, with silhouettes and numbers of clusters by class label.

    Raises:
        ContractError: If an argument is not such a tensor or number.

    References:
        Thesis Algorithm 4, "Cluster V_c into {V_c,j} based on f(x_i; W_t)".

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [7.0], [3.0], [3.1], [9.0]])
        >>> targets = torch.tensor([5, 5, 5, 2, 2, 2])
        >>> found = cluster_by_class(points, targets, generator=torch.Generator().manual_seed(0))
        >>> found.clusters, found.classes, found.num_clusters
        (tensor([2, 2, 3, 0, 0, 1]), tensor([2, 2, 5, 5]), {2: 2, 5: 2})
    """
    points = _checked(points)
    targets = _checked_ids("targets", targets, len(points)).to(points.device)
    if num_clusters is not None:
        check_integer("num_clusters", num_clusters, 1)
    check_integer("max_clusters", max_clusters, 2)

    def choice(points: Tensor, generator: torch.Generator) -> ClusterChoice:
        candidates = range(2, max_clusters + 1) if num_clusters is None else [num_clusters]
        return choose_num_clusters(
            points, candidates, generator=generator, restarts=restarts, exact=exact
        )

    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    whole = None if per_class else choice(points, _child(seed, 0)).clustering.assignment
    labels, counts = torch.unique(targets, return_counts=True)
    clusters = torch.empty_like(targets)
    classes: list[int] = []
    silhouettes, numbers = {}, {}
    by_class = targets.argsort(stable=True).split(counts.tolist())
    for label, members in zip(labels.tolist(), by_class, strict=True):
        child = _child(seed, label)
        if whole is None:
            chosen = choice(points[members], child)
            assignment, score = chosen.clustering.assignment, max(chosen.silhouettes.values())
        else:
            _, assignment = _by_size(whole[members])
            score = float(silhouette(points[members], assignment, generator=child, exact=exact))
        numbers[label] = int(assignment.max()) + 1
        silhouettes[label] = score
        clusters[members] = assignment + len(classes)
        classes += [label] * numbers[label]
    return ClassClusters(
        clusters, torch.tensor(classes, device=targets.device), silhouettes, numbers
    )


def subclasses(
    points: Tensor,
    targets: Tensor,
    *,
    max_clusters: int = 10,
    parts: int = 5,
    min_share: float = 0.005,
    generator: torch.Generator,
    restarts: int = 10,
) -> ClassClusters:
    """GEORGE's clusters: their number by silhouette in each class, and then small ones split off.

    Of 2 to `max_clusters` clusters a class takes the number with the largest silhouette, averaged
    over the members of each cluster first and then over clusters, so that a small cluster counts
    as much as a large one. Each cluster is then cut into `parts`. A part becomes a cluster of its
    own if its mean silhouette, with all parts as clusters, is above 0 and above that of the cluster
    it comes from, and if it has `min_share` of the class's examples; the other parts stay together.
    So a small subclass that was hidden in a large cluster is found.

    Args:
        points: (n, d) real and finite.
        targets: (n,) integers, the class of each example.
        max_clusters: Largest number of clusters tried, at least 2.
        parts: Into how many each cluster is cut; 1 leaves the clusters as they are.
        min_share: Smallest share of its class, in [0, 1], that a part may have as a cluster.
        generator: Source of randomness; one number is drawn from it.
        restarts: See `kmeans`.

    Returns:
        The clusters. Silhouettes, by class label, are means over clusters, before the parts.

    Raises:
        ContractError: If an argument is not such a tensor or number.

    References:
        Sohoni et al., No subclass left behind, NeurIPS 2020, Section 4.1 and the appendix on
        over-clustering.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [9.0], [9.1]])
        >>> random = torch.Generator().manual_seed(0)
        >>> found = subclasses(points, torch.zeros(8).long(), min_share=0.2, generator=random)
        >>> found.num_clusters
        {0: 3}
    """
    points = _checked(points)
    targets = _checked_ids("targets", targets, len(points)).to(points.device)
    check_integer("max_clusters", max_clusters, 2)
    check_integer("parts", parts, 1)
    check_in_range("min_share", min_share, 0, 1)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    labels, counts = torch.unique(targets, return_counts=True)
    clusters = torch.empty_like(targets)
    classes: list[int] = []
    silhouettes, numbers = {}, {}
    by_class = targets.argsort(stable=True).split(counts.tolist())
    for label, members in zip(labels.tolist(), by_class, strict=True):
        child, own = _child(seed, label), points[members]
        tried = sorted({max(1, min(k, len(own) - 1)) for k in range(2, max_clusters + 1)})
        found = [one.assignment for one in _kmeans(own, tried, child, restarts)]
        means = _by_cluster(own, torch.stack(found), child)
        scores = [float(one.mean()) for one in means]
        best = next(i for i, score in enumerate(scores) if score >= max(scores) - 1e-9)
        assignment = found[best]
        if parts > 1 and len(means[best]) > 1:
            size = min_share * len(own)
            assignment = _split_off(own, assignment, means[best], parts, size, child, restarts)
        _, assignment = _by_size(assignment)
        numbers[label] = int(assignment.max()) + 1
        silhouettes[label] = scores[best]
        clusters[members] = assignment + len(classes)
        classes += [label] * numbers[label]
    return ClassClusters(
        clusters, torch.tensor(classes, device=targets.device), silhouettes, numbers
    )


def _split_off(
    points: Tensor,
    assignment: Tensor,
    silhouettes: Tensor,
    parts: int,
    size: float,
    generator: torch.Generator,
    restarts: int,
) -> Tensor:
    """The clustering in which parts that stand out more than their clusters are clusters."""
    cut = torch.empty_like(assignment)
    origin: list[int] = []
    for cluster in range(len(silhouettes)):
        members = (assignment == cluster).nonzero().squeeze(1)
        pieces = kmeans(points[members], parts, generator=generator, restarts=restarts).assignment
        cut[members] = pieces + len(origin)
        origin += [cluster] * (int(pieces.max()) + 1)
    [of_parts] = _by_cluster(points, cut[None], generator)
    bar = silhouettes[origin].clamp(min=0)
    kept = (of_parts > bar) & (torch.bincount(cut) >= size)
    names = torch.where(
        kept, len(silhouettes) + torch.arange(len(kept)).to(cut), bar.new_tensor(origin).long()
    )
    return names[cut]


def _child(seed: int, label: int) -> torch.Generator:
    """A generator of its own for every class label."""
    # The odd multiplier (2^64 over the golden ratio) spreads neighbouring labels over all seeds.
    return torch.Generator().manual_seed((seed + label * 0x9E3779B97F4A7C15) % 2**63)


def sampling_powers(
    silhouette: Mapping[int, float], threshold: float = 0.9, low_separation_power: float = 2.0
) -> dict[int, float]:
    """The power of each class: 1 where clusters are well separated, more where they are not.

    Args:
        silhouette: Mean silhouette of each class, by label.
        threshold: Silhouette from which clusters count as well separated.
        low_separation_power: Power of the classes below it.

    Returns:
        Lambda of each class, by label.

    References:
        Thesis Section 9.4.4.2: power 2 where the silhouette is below 0.9, and 1 otherwise.

    Example:
        >>> sampling_powers({0: 0.924, 1: 0.757})
        {0: 1.0, 1: 2.0}
    """
    return {
        label: 1.0 if score >= threshold else low_separation_power
        for label, score in silhouette.items()
    }


def cluster_sampling_weights(
    clusters: Tensor, targets: Tensor, power: Mapping[int, float]
) -> Tensor:
    """Sampling weights that favour small clusters within a class, and treat classes equally.

    An example in a cluster of size s of class c has a weight proportional to s ** -power[c]. The
    weights of all classes have the same sum, and their overall mean is 1. The members of a cluster
    that belong to different classes are counted apart.

    Args:
        clusters: (n,) integers, the cluster of each example.
        targets: (n,) integers, the class of each example.
        power: Lambda of each class, by label; 0 leaves the clusters as they are, 1 balances them.

    Returns:
        (n,) float64.

    Raises:
        ContractError: If an argument is not such a tensor, or a class has no power.

    References:
        Thesis Algorithm 4: ``w_i = 1 / |V_c,j|``, p_i = w_i ** lambda / sum of w_i ** lambda, the
        sum being over a class. How classes mix is not stated there; equally, in the authors' code.

    Example:
        >>> clusters, targets = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
        >>> cluster_sampling_weights(clusters, targets, {0: 1.0, 1: 1.0})
        tensor([0.5000, 0.5000, 0.5000, 1.5000, 1.5000, 1.5000], dtype=torch.float64)
    """
    targets = _checked_ids("targets", targets)
    clusters = _checked_ids("clusters", clusters, len(targets)).to(targets.device)
    labels, label_of = torch.unique(targets, return_inverse=True)
    if missing := [label for label in labels.tolist() if label not in power]:
        raise ContractError(f"power must have an entry for every class, none for {missing}")
    parts, cluster_of = torch.unique(clusters, return_inverse=True)
    _, cell, sizes = torch.unique(
        label_of * len(parts) + cluster_of, return_inverse=True, return_counts=True
    )
    size = sizes.double()[cell]
    exponents = size.new_tensor([-power[label] for label in labels.tolist()])
    # In units of the largest cluster of the class: no underflow, and exactly 1 where nothing is to
    # be balanced.
    largest = torch.zeros_like(exponents).scatter_reduce_(0, label_of, size, "amax")
    weights = torch.pow(size / largest[label_of], exponents[label_of])
    totals = torch.zeros_like(exponents).index_add_(0, label_of, weights)
    return weights * (len(targets) / len(labels)) / totals[label_of]


def matched_recall(clusters: Tensor, groups: Tensor, targets: Tensor) -> float:
    """The smallest recall of a group by the cluster that is matched to it.

    Within each class, clusters and groups are matched one to one so that the sum of recalls is
    largest, where the recall of a group by a cluster is the share of the group's examples of that
    class which lie in the cluster. A group that is left without a cluster has the recall 0; groups
    without examples in a class take no part.

    Args:
        clusters: (n,) integers, the cluster of each example.
        groups: (n,) integers, the group of each example.
        targets: (n,) integers, the class of each example.

    Returns:
        The minimum over all classes and their groups, in [0, 1].

    Raises:
        ContractError: If an argument is not such a tensor with n >= 1.

    References:
        Thesis Section 9.4.4.2: the separation epoch is chosen "to maximize the minimum recall of
        Spare's clusters with the groups in the validation set".

    Example:
        >>> clusters = torch.tensor([7, 7, 7, 8, 8])
        >>> groups = torch.tensor([0, 0, 0, 0, 1])
        >>> matched_recall(clusters, groups, torch.zeros(5, dtype=torch.int64))
        0.75
    """
    targets = _checked_ids("targets", targets)
    clusters = _checked_ids("clusters", clusters, len(targets)).to(targets.device)
    groups = _checked_ids("groups", groups, len(targets)).to(targets.device)
    _, counts = torch.unique(targets, return_counts=True)
    recalls = []
    for members in targets.argsort(stable=True).split(counts.tolist()):
        found, cluster = torch.unique(clusters[members], return_inverse=True)
        _, group, sizes = torch.unique(groups[members], return_inverse=True, return_counts=True)
        cells = torch.bincount(cluster * len(sizes) + group, minlength=len(found) * len(sizes))
        recall = (cells.view(len(found), len(sizes)) / sizes).cpu().numpy()
        rows, columns = linear_sum_assignment(recall, maximize=True)
        recalls.append(0.0 if len(columns) < len(sizes) else float(recall[rows, columns].min()))
    return min(recalls)


# --- arguments ------------------------------------------------------------------------------------


def _checked(points: Tensor) -> Tensor:
    if points.ndim != 2 or 0 in points.shape or points.is_complex():
        raise ContractError(
            f"points must be real, one row for each of n >= 1 points, got shape "
            f"{tuple(points.shape)} of {points.dtype}"
        )
    finite = torch.isfinite(points).all(dim=1)
    if not bool(finite.all()):
        first = int(finite.int().argmin())
        raise ContractError(
            f"points must be finite, but {int((~finite).sum())} of {len(points)} rows are not, the "
            f"first is row {first}; look for a diverged model or unscaled inputs"
        )
    return points.detach()


def _is_integral(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _checked_ids(name: str, ids: Tensor, n: int | None = None) -> Tensor:
    if ids.ndim != 1 or not len(ids) or not _is_integral(ids) or len(ids) != (n or len(ids)):
        wanted = "at least one example" if n is None else f"each of the {n} examples"
        raise ContractError(
            f"{name} must be a 1-D tensor with an integer for {wanted}, got shape "
            f"{tuple(ids.shape)} of {ids.dtype}"
        )
    return ids.long()
