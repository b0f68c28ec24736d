"""Facility location: medoids that stand for all examples, and how many each stands for.

These are the decisions of EPIC (thesis chapter 4, Algorithm 3), which drops medoids that stand for
nothing but themselves, and of CREST (chapter 2), which trains on medoids weighted by the sizes of
their clusters.

Every function is a function of its arguments: randomness comes from a `torch.Generator`. Work is
done on the device of the features. There are two engines for exact picks. `_dense` holds the
matrices of distances of one or several problems; it serves up to n of about 1,400 (16 MB), and up
to 2 GB where a distance costs more than its storage (more than 48 features). `_matrix_free` serves
all others, in memory linear in n.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import threshold

from lightning_robust.contracts import ContractError, check_choice, check_in_range, check_integer

Similarity = Literal["euclidean", "exp"]

# Shares of the radius of the data. Gains and distances that differ by less than `_TIE` count as
# equal, so that a tie does not depend on the order of a sum; squared distances below `_RESOLUTION`
# are rounding errors of zero.
_TIE, _RESOLUTION = 1e-9, 1e-14
# Rounding errors of a squared distance or a sum, in units of the last place.
_ROUNDING = 8
# Twice the radius: no distance is larger.
_DIAMETER = 2.0
# Rows in a tile of distances that stays in the cache, and the most distances held at a time.
_TILE, _BLOCK = 512, 1 << 21
# Candidates looked at first; examples, and candidates, in a tile of losses that have fallen.
_CANDIDATES, _FALLEN, _WIDTH = 64, 256, 2048
# Most entries of a matrix of losses that is kept: of any, and in bytes, of more features than that.
_TABLE, _TABLE_BYTES, _MANY_FEATURES = 1 << 21, 2 << 30, 48
# Most entries of the matrices of losses of problems that are solved together.
_TOGETHER = 1 << 24
# Examples of a tile of such a matrix.
_SIDE = 256


@dataclass(frozen=True, eq=False)
class Medoids:
    """Medoids in the order in which they were picked; with a leading dimension P for P problems.

    Attributes:
        indices: (k,) int64, the examples picked.
        gains: (k,) float64, what each pick added to the objective.
        assignment: (n,) int64, the position in `indices`, 0 to k - 1, of the medoid nearest to each
            example; of equally near ones the one picked first.
        weights: (k,) int64, the number of examples assigned to each medoid; their sum is n. It
            is 0 for a medoid that repeats an earlier one: its example is assigned to that one.
    """

    indices: Tensor
    gains: Tensor
    assignment: Tensor
    weights: Tensor


def facility_location(
    features: Tensor,
    k: int,
    *,
    similarity: Similarity = "euclidean",
    dtype: torch.dtype | None = None,
    method: Literal["exact", "stochastic"] = "exact",
    generator: torch.Generator | None = None,
    epsilon: float = 0.1,
    fraction: float = 1.0,
) -> Medoids:
    """Pick k examples greedily so that every example has one near it.

    The objective is F(S) = sum over i of the largest similarity of example i to an example of S.
    Greedy picks reach at least 1 - 1/e of the best F of any k examples. Of candidates with the same
    gain (to 1e-9 of the radius of the data) the one with the smallest index is picked.

    Similarity is c0 - d for ``"euclidean"``, d being the Euclidean distance and c0 twice the
    largest distance of an example from the mean of all, and exp(-d / number of features), as in
    submodlib, for ``"exp"``. Another c0 changes the first gain only.

    Gains are first bounded from above in `dtype`, tile by tile, and then computed in float64 for
    the candidates that the bounds leave (lazy greedy), so single precision costs nothing but, at
    worst, the order of picks whose gains differ by about 1e-6. Only beyond 48 features and 1,448
    examples gains are computed in `dtype` throughout: in float32 picks whose gains differ by about
    1e-6 of the gain count as equal, and the objective stays within 1e-4 of that in float64.

    Args:
        features: (n, d) real and finite.
        k: Number of medoids; with fewer examples, all of them are picked.
        similarity: See above.
        dtype: `torch.float32` or `torch.float64`, that of the bounds; by default float64 for
            float64 features, float32 otherwise.
        method: ``"exact"`` for greedy picks; ``"stochastic"`` for the best of a random
            n / k log(1 / epsilon) candidates at each pick, at 1 - 1/e - epsilon in expectation.
        generator: Source of randomness of ``"stochastic"`` and of `fraction`.
        epsilon: See `method`.
        fraction: Share of the examples, at random, from which and for which medoids are picked;
            gains, assignment and weights are those of all examples.

    Returns:
        The medoids.

    Raises:
        ContractError: If an argument is not as above.

    References:
        Thesis eqs. 4.4 and 4.5 and Algorithm 3. Nemhauser, Wolsey and Fisher, An analysis of
        approximations for maximizing submodular set functions, Mathematical Programming 14, 1978.
        Minoux, Accelerated greedy algorithms for maximizing submodular set functions, 1978.
        Mirzasoleiman et al., Lazier than lazy greedy, AAAI 2015.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0], [30.0]])
        >>> found = facility_location(features, 3)
        >>> found.indices, found.assignment, found.weights
        (tensor([2, 5, 3]), tensor([0, 0, 0, 2, 2, 1]), tensor([3, 1, 2]))
    """
    features = _checked(features)
    check_integer("k", k, 1)
    check_choice("method", method, ["exact", "stochastic"])
    check_in_range("epsilon", epsilon, 1e-9, 1)
    check_in_range("fraction", fraction, 1e-9, 1)
    k, n = min(k, len(features)), len(features)
    if method == "exact" and fraction == 1:
        return _exact(features, k, similarity, dtype)
    space = _Space.of(features, similarity, dtype)
    if generator is None:
        raise ContractError(
            "generator must be given for random candidates, got None; pass "
            "lightning_robust.randomness.generator(seed, purpose)"
        )
    if fraction < 1:
        size = min(n, max(k, math.ceil(fraction * n)))
        drawn = torch.randperm(n, generator=generator, device=generator.device)[:size]
        drawn = drawn.sort().values.to(features.device)
        found = facility_location(
            features[drawn],
            k,
            similarity=similarity,
            dtype=dtype,
            method=method,
            generator=generator,
            epsilon=epsilon,
        )
        return _following(space, drawn[found.indices])
    return _stochastic(space, k, math.ceil(n / k * math.log(1 / epsilon)), generator)


def facility_location_batch(
    features: Tensor,
    k: int,
    *,
    similarity: Similarity = "euclidean",
    dtype: torch.dtype | None = None,
) -> Medoids:
    """Pick k medoids in each of P problems of the same size.

    Small problems (n of up to 4,096) are solved together, all of them in `dtype`: in float64 with
    the picks of `facility_location`; in float32 picks whose gains differ by about 1e-6 of the gain
    count as equal, and the objective stays within 1e-4.

    Args:
        features: (P, r, d) real and finite: P problems of r examples.
        k: Number of medoids of each; with fewer examples, all of them are picked.
        similarity: See `facility_location`.
        dtype: See `facility_location`.

    Returns:
        The medoids of each problem, as `facility_location` finds them: `indices` (P, k), `gains`
        (P, k), `assignment` (P, r), `weights` (P, k).

    Raises:
        ContractError: If an argument is not as above.

    References:
        CREST (thesis Algorithm 1) picks a coreset from each of P random subsets.

    Example:
        >>> features = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [5.0], [6.0]]])
        >>> facility_location_batch(features, 1).indices
        tensor([[1],
                [1]])
    """
    if features.ndim != 3 or 0 in features.shape:
        raise ContractError(
            f"features must have shape (P, r, d) with P, r, d >= 1, got {tuple(features.shape)}"
        )
    check_integer("k", k, 1)
    p, n, d = features.shape
    _checked(features.reshape(p * n, d))
    features, k = features.detach(), min(k, n)
    if n * n <= _TOGETHER:
        dtype = _precision(features, similarity, dtype)
        together = 1 if features.device.type == "cpu" else _TOGETHER // n**2
        parts = features.split(max(1, together))
        found = [_dense(some, k, similarity, dtype) for some in parts]
        return Medoids(*(torch.cat(part) for part in zip(*map(_parts, found), strict=True)))
    found = [_exact(some, k, similarity, dtype) for some in features]
    return Medoids(*(torch.stack(part) for part in zip(*map(_parts, found), strict=True)))


def greedi(
    parts: Sequence[Tensor],
    k: int,
    *,
    similarity: Similarity = "euclidean",
    dtype: torch.dtype | None = None,
) -> Medoids:
    """Pick k medoids in each part, then k of these, each counted with the size of its cluster.

    For examples that lie on several ranks, or are too many for exact greedy picks: a part of n
    examples costs n^2, and nothing but k medoids and their weights leaves it.

    Args:
        parts: Features (n_p, d) of each part; parts may have different numbers of examples.
        k: Number of medoids, of every part and of the result.
        similarity: See `facility_location`.
        dtype: See `facility_location`.

    Returns:
        The medoids, as examples of all parts one after another (`torch.cat(parts)`). Gains,
        assignment and weights are those of all examples; as the picks are not greedy with respect
        to these, gains need not fall.

    Raises:
        ContractError: If an argument is not as above.

    References:
        Mirzasoleiman et al., Distributed submodular maximization: identifying representative
        elements in massive data, NeurIPS 2013. There the medoids of the parts count alike in the
        second round.

    Example:
        >>> parts = [torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[9.0], [10.0]])]
        >>> greedi(parts, 2).weights
        tensor([3, 2])
    """
    check_integer("the number of parts", len(parts), 1)
    found = [facility_location(part, k, similarity=similarity, dtype=dtype) for part in parts]
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    everything = torch.cat(list(parts))
    picks = torch.cat([one.indices + start for one, start in zip(found, offsets, strict=False)])
    weights = torch.cat([one.weights for one in found]).double()
    space = _Space.of(everything, similarity, dtype)
    merged = _exact(everything[picks], min(k, len(picks)), similarity, dtype, weights)
    return _following(space, picks[merged.indices])


def _exact(
    features: Tensor,
    k: int,
    similarity: Similarity,
    dtype: torch.dtype | None,
    weights: Tensor | None = None,
) -> Medoids:
    """Greedy picks of one problem by the engine that suits it; examples count `weights` times."""
    n, d = features.shape
    precision = _precision(features, similarity, dtype)
    if n * n <= _TABLE:
        precision = torch.float64
    elif d <= _MANY_FEATURES or n * n * precision.itemsize > _TABLE_BYTES:
        return _matrix_free(_Space.of(features, similarity, precision, weights), k)
    found = _dense(features[None], k, similarity, precision, weights)
    return Medoids(*(part[0] for part in _parts(found)))


def _parts(found: Medoids) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return found.indices, found.gains, found.assignment, found.weights


def _precision(features: Tensor, similarity: Similarity, dtype: torch.dtype | None) -> torch.dtype:
    check_choice("similarity", similarity, ["euclidean", "exp"])
    if dtype is None:
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    check_choice("dtype", dtype, [torch.float32, torch.float64])
    return dtype


def _scaled(features: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, radius and coordinates (..., n, d), in which the radius is 1.

    In float32, if `dtype` and the features have no more digits, and else in float64.
    """
    if not features.dtype.is_floating_point or features.dtype == torch.float64:
        dtype = torch.float64
    centre = features.mean(dim=-2, keepdim=True, dtype=torch.float64)
    exact = features.to(dtype) - centre.to(dtype)
    largest = exact.abs().amax(dim=(-2, -1), keepdim=True)  # whose square may overflow
    exact /= torch.where(largest > 0, largest, 1.0)
    radius = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).amax(dim=-2, keepdim=True)
    exact /= torch.where(radius > 0, radius, 1.0)
    return centre, largest.double() * radius, exact


def _augmented(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., n, d + 2): coordinates, squared norm and 1."""
    squares = exact.square().sum(dim=-1, keepdim=True)
    return torch.cat([exact, squares, torch.ones_like(squares)], dim=-1).to(dtype)


def _left(rows: Tensor, slack: float) -> Tensor:
    """Rows whose products with `rows` are the squared distances, and their norms' `slack` more."""
    d = rows.shape[-1] - 2
    norms = (1 + slack) * rows[..., d:].flip(-1)
    return torch.cat([-2 * rows[..., :d], norms], dim=-1)


def _rounding(dtype: torch.dtype) -> float:
    """Relative error of a squared distance or of a sum in this type."""
    return _ROUNDING * torch.finfo(dtype).eps


def _dense(
    features: Tensor,
    k: int,
    similarity: Similarity,
    dtype: torch.dtype,
    weights: Tensor | None = None,
) -> Medoids:
    """Greedy picks of P problems (P, n, d) from the matrices of their losses."""
    p, n, d = features.shape
    _, radius, exact = _scaled(features, dtype)
    losses = _squares(_augmented(exact, dtype)).sqrt_()  # of example [..., i] to candidate [:, j]
    nearest = losses.new_full((p, n), _DIAMETER)
    if similarity == "exp":
        losses.mul_((-torch.where(radius > 0, radius, 1.0) / d).to(dtype)).expm1_().neg_()
        nearest.fill_(1.0)
    if weights is not None:
        losses *= weights.to(dtype)
        nearest *= weights.to(dtype)
    if losses.device.type == "cpu":
        found = [_one_by_one(*each, k) for each in zip(losses, nearest, strict=True)]
        picks, gains, assignment = (torch.stack(part) for part in zip(*found, strict=True))
    else:
        picks, gains, assignment = _in_rounds(losses, nearest, k)
    worth = 1.0 if similarity == "exp" else radius[:, :, 0]
    sizes = torch.zeros_like(picks).scatter_add_(1, assignment, torch.ones_like(assignment))
    return Medoids(picks, gains * worth, assignment, sizes)


def _one_by_one(losses: Tensor, nearest: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lazy greedy picks of one problem, a candidate at a time: the fastest way on a CPU.

    Gains are bounded by what they were before; a heap holds the bounds. Rows are so short that the
    cost of a call decides, which is NumPy's advantage here.

    Args:
        losses: (n, n) of candidates (rows) to examples.
        nearest: (n,) losses where nothing is picked.
        k: Number of picks.

    Returns:
        Picks (k,), gains (k,) float64 and assignment (n,).
    """
    n, slack = len(nearest), _rounding(losses.dtype)
    matrix, near = losses.numpy(), nearest.numpy().copy()
    assignment = np.zeros(n, dtype=np.int64)
    closer, ones, falls = np.empty_like(near), np.ones_like(near), np.empty(n, dtype=bool)
    first = (nearest.sum() - losses.sum(dim=1))[None]
    pick = int(_first(first, _ties(first)))
    picks, gains = [pick], [float(first[0, pick])]
    np.minimum(near, matrix[pick], out=near)
    bounds = torch.cat(
        [(torch.from_numpy(near) - rows).clamp_(min=0).sum(dim=1) for rows in losses.split(_SIDE)]
    )
    waiting = [(-gain, j) for j, gain in enumerate(bounds.tolist()) if j != pick]
    heapq.heapify(waiting)
    while len(picks) < k:
        best, tied, tried = 0.0, _TIE, []
        while waiting and -waiting[0][0] > tied:
            j = heapq.heappop(waiting)[1]
            np.subtract(near, matrix[j], out=closer)
            gain = float(np.maximum(closer, 0, out=closer).dot(ones))
            tried.append((-gain, j))
            if gain > best:
                best = gain
                tied = max(_TIE, best - _TIE - slack * best)
        if best <= _TIE:
            break
        pick = min(j for bound, j in tried if -bound >= tied)
        for one in tried:
            if one[1] != pick:
                heapq.heappush(waiting, one)
            else:
                gains.append(-one[0])
        np.less(matrix[pick], near - _TIE, out=falls)
        np.copyto(near, matrix[pick], where=falls)
        assignment[falls] = len(picks)
        picks.append(pick)
    chosen = set(picks)
    picks += [j for j in range(n) if j not in chosen][: k - len(picks)]
    gains += [0.0] * (k - len(gains))
    return (
        torch.tensor(picks),
        torch.tensor(gains, dtype=torch.float64),
        torch.from_numpy(assignment),
    )


def _in_rounds(losses: Tensor, nearest: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lazy greedy picks of P problems at once, for devices where a call costs more than its work.

    A round computes the gains of the candidates with the largest bounds and picks while the best
    of them beats the bounds of all others.

    Args:
        losses: (P, n, n) of candidates (rows) to examples.
        nearest: (P, n) losses where nothing is picked.
        k: Number of picks of each problem.

    Returns:
        Picks (P, k), gains (P, k) float64 and assignment (P, n).
    """
    p, n = nearest.shape
    device = losses.device
    each = torch.arange(p, device=device)
    picks = torch.zeros(p, k + 1, dtype=torch.int64, device=device)  # the last takes what is void
    gains = torch.zeros(p, k + 1, dtype=torch.float64, device=device)
    assignment = torch.zeros(p, n, dtype=torch.int64, device=device)
    bounds = nearest.sum(dim=1, keepdim=True) - losses.sum(dim=2)
    count = torch.ones_like(each)
    picks[:, 0] = _first(bounds, _ties(bounds))
    gains[:, 0] = bounds[each, picks[:, 0]]
    nearest = torch.minimum(nearest, losses[each, picks[:, 0]])
    for start in range(0, n, _FALLEN):
        some = slice(start, start + _FALLEN)
        bounds[:, some] = (nearest[:, None] - losses[:, some]).clamp_(min=0).sum(dim=2)
    bounds[each, picks[:, 0]] = -math.inf
    size, wanted = 0, _CANDIDATES
    while True:
        wanted = min(wanted, n)
        if wanted != size:
            size = wanted
            kept, closer = losses.new_empty(2, p * size, n)
        top = bounds.topk(min(size + 1, n), dim=1)
        if not bool(((top.values[:, 0] > _TIE) & (count < k)).any()):
            break
        others = top.values[:, size].clamp(min=0) if size < n else torch.zeros_like(nearest[:, 0])
        block = top.indices[:, :size].sort(dim=1).values
        torch.index_select(losses.view(p * n, n), 0, (block + n * each[:, None]).view(-1), out=kept)
        torch.sub(nearest[:, None], kept.view(p, size, n), out=closer.view(p, size, n))
        threshold(closer, _TIE, 0.0, inplace=True)
        taken = bounds.gather(1, block) == -math.inf
        before = count
        while True:
            gain = closer.sum(dim=1).view(p, size).masked_fill_(taken, -math.inf)
            tied = _ties(gain)
            going = (tied > others) & (count < k)
            if not bool(going.any()):
                break
            place = _first(gain, tied)
            row = place + size * each
            step = closer[row] * going[:, None]
            threshold(closer.view(p, size, n).sub_(step[:, None]), _TIE, 0.0, inplace=True)
            nearest = torch.where(step > 0, kept[row], nearest)
            assignment = torch.where(step > 0, count[:, None], assignment)
            position = torch.where(going, count, k)
            picks[each, position] = block[each, place]
            gains[each, position] = gain[each, place].double()
            taken.view(-1)[row] |= going
            count = count + going
        bounds.scatter_(1, block, gain)
        wanted = _CANDIDATES if bool((count > before).any()) else 2 * size
    picks, gains = picks[:, :k], gains[:, :k]
    left = (bounds == -math.inf).to(torch.int8).argsort(dim=1, stable=True)
    positions = torch.arange(k, device=device).expand(p, k)
    spare = left.gather(1, (positions - count[:, None]).clamp(min=0))
    picks = torch.where(positions < count[:, None], picks, spare)
    return picks, gains, assignment


def _squares(rows: Tensor) -> Tensor:
    """(P, n, n) squared distances between augmented rows (P, n, d + 2), none for equal examples."""
    p, n, _ = rows.shape
    left = _left(rows, 0.0 if rows.dtype == torch.float64 else -_rounding(rows.dtype))
    squares = rows.new_empty(p, n, n)
    if n <= _SIDE:
        torch.bmm(left, rows.mT, out=squares)
    else:
        for one, two, whole in zip(left, rows, squares, strict=True):
            for i in range(0, n, _SIDE):
                for j in range(0, i + 1, _SIDE):
                    tile = whole[i : i + _SIDE, j : j + _SIDE]
                    torch.mm(one[i : i + _SIDE], two[j : j + _SIDE].T, out=tile)
                    if i != j:
                        whole[j : j + _SIDE, i : i + _SIDE] = tile.T
    return threshold(squares, _RESOLUTION, 0.0, inplace=True)


def _ties(gains: Tensor) -> Tensor:
    """(P,) what gains (P, m) exceed that count as equal to the largest."""
    best = gains.amax(dim=1)
    return best - _TIE - _rounding(gains.dtype) * best


def _first(gains: Tensor, tied: Tensor) -> Tensor:
    """(P,) first of the places at which gains (P, m) count as equal to the largest."""
    return (gains >= tied[:, None]).to(torch.int8).argmax(dim=1)


@dataclass(frozen=True, eq=False)
class _Space:
    """Examples, in coordinates in which they fill a ball of radius 1 around their mean.

    Attributes:
        features: (n, d), as given.
        centre: (1, d) float64.
        radius: Largest distance of an example from the centre.
        weights: (n,) float64, how often each example counts.
        rows: (n, d + 2): coordinates, squared norm and 1, in the type of the bounds.
        rate: Exponent of the ``"exp"`` similarity in these coordinates, 0 for ``"euclidean"``.
    """

    features: Tensor
    centre: Tensor
    radius: float
    weights: Tensor
    rows: Tensor
    rate: float

    @classmethod
    def of(
        cls,
        features: Tensor,
        similarity: Similarity,
        dtype: torch.dtype | None,
        weights: Tensor | None = None,
    ) -> _Space:
        dtype = _precision(features, similarity, dtype)
        centre, radius, exact = _scaled(features, torch.float64)
        rows = _augmented(exact, dtype)
        size = float(radius)
        if weights is None:
            weights = torch.ones_like(exact[:, 0])
        rate = (size or 1.0) / features.shape[1] if similarity == "exp" else 0.0
        return cls(features, centre, size, weights, rows, rate)

    @property
    def unit(self) -> float:
        """What a gain of 1 in these coordinates is worth."""
        return 1.0 if self.rate else self.radius

    def exactly(self, index: Tensor) -> Tensor:
        """Coordinates (m, d) of some examples, in float64."""
        return (self.features[index].double() - self.centre) / (self.radius or 1.0)

    def loss(self, distances: Tensor) -> Tensor:
        """Similarity lost at these distances; it is a distance again. May overwrite them."""
        return distances.mul_(-self.rate).expm1_().neg_() if self.rate else distances

    def farthest(self) -> Tensor:
        """(n,) loss of an example that no medoid stands for."""
        return torch.full_like(self.weights, 1.0 if self.rate else _DIAMETER)

    def reached(self, index: Tensor, nearest: Tensor) -> Tensor:
        """Examples, at least those that one of these candidates is nearer to than `nearest`."""
        squares = (_left(self.rows[index], -_rounding(self.rows.dtype)) @ self.rows.T).amin(dim=0)
        return (squares < self.distance(nearest).square()).nonzero()[:, 0]

    def losses(self, index: Tensor, columns: Tensor) -> Tensor:
        """(m, c) losses between candidates and examples, in float64."""
        return self.loss(_distances(self.exactly(index), self.exactly(columns)))

    def bounds(self, nearest: Tensor) -> Tensor:
        """(n,) gains of all candidates, from above, where examples have losses `nearest` (n,)."""
        near, weights = nearest.to(self.rows.dtype), self.weights.to(self.rows.dtype)
        total = float(self.weights @ nearest)
        kept = torch.zeros_like(self.weights)  # sum of the losses that stay or come with a pick
        tiles = [slice(i, i + _TILE) for i in range(0, len(near), _TILE)]
        for i, one in enumerate(tiles):
            left = _left(self.rows[one], -_rounding(self.rows.dtype))
            for two in tiles[: i + 1]:
                loss = self.loss((left @ self.rows[two].T).clamp_(min=0).sqrt_())
                kept[one] += torch.minimum(loss, near[two]) @ weights[two]
                if one != two:
                    kept[two] += weights[one] @ torch.minimum(loss, near[one, None])
        return total - kept + _rounding(self.rows.dtype) * total

    def lower(self, bounds: Tensor, fallen: Tensor, before: Tensor, after: Tensor) -> None:
        """Subtract from gains, bounded from above, what they lose as losses of examples fall.

        Args:
            bounds: (n,) of all candidates; changed in place.
            fallen: (m,) examples whose losses fell, close ones next to each other.
            before: (m,) their losses before, and
            after: (m,) after.
        """
        dtype = self.rows.dtype
        for some in torch.arange(len(fallen), device=fallen.device).split(_FALLEN):
            rows, weights = self.rows[fallen[some]], self.weights[fallen[some]].to(dtype)
            old, new = before[some, None].to(dtype), after[some, None].to(dtype)
            near, far = _left(rows, -_rounding(self.rows.dtype)), _left(rows, _rounding(rows.dtype))
            near[:, -1:] -= self.distance(before[some, None]).square().to(dtype)
            stay = weights @ old
            for start in range(0, len(bounds), _WIDTH):
                part = self.rows[start : start + _WIDTH]
                columns = ((near @ part.T).amin(dim=0) < 0).nonzero()[:, 0]
                loss = self.loss((far @ part[columns].T).clamp_(min=0).sqrt_())
                torch.maximum(torch.minimum(loss, old, out=loss), new, out=loss)
                bounds[columns + start] -= stay - weights @ loss
        bounds += _rounding(self.rows.dtype) * float(self.weights[fallen] @ before)

    def distance(self, losses: Tensor) -> Tensor:
        """Distances at which these losses are reached; no more than the largest there is."""
        distances = (-losses).log1p_().div_(-self.rate) if self.rate else losses
        return distances.clamp(max=_DIAMETER)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(X, Y) distances between float64 rows in the coordinates of a `_Space`."""
    squares = torch.addmm(y.square().sum(dim=1), x, y.T, alpha=-2)
    squares += x.square().sum(dim=1, keepdim=True)
    return threshold(squares, _RESOLUTION, 0.0, inplace=True).sqrt_()


def _matrix_free(space: _Space, k: int) -> Medoids:
    """Lazy greedy picks: blocks of candidates, in the order of upper bounds of their gains."""
    n = len(space.weights)
    nearest = space.farthest()
    bounds = space.bounds(nearest)
    picks: list[int] = []
    gains: list[float] = []
    assignment = torch.zeros(n, dtype=torch.int64, device=nearest.device)
    size = _CANDIDATES
    while len(picks) < k:
        size = min(size, n - len(picks))
        top = bounds.topk(min(size + 1, n))
        # What the other candidates gain at most; those picked have no bound.
        others = float(top.values[size]) if size < n else -math.inf
        if float(top.values[0]) <= _TIE:
            break
        block = top.indices[:size].sort().values
        columns = space.reached(block, nearest)
        closer = space.losses(block, columns).neg_().add_(nearest[columns])
        threshold(closer, _TIE, 0.0, inplace=True)
        weights = space.weights[columns]
        places: list[int] = []
        steps: list[Tensor] = []
        while True:
            gain = closer @ weights
            values = gain.tolist()
            for place in places:
                values[place] = -math.inf
            best = max(values)
            if best - _TIE <= max(others, 0.0):
                break
            place = next(i for i, value in enumerate(values) if value >= best - _TIE)
            step = closer[place].clone()
            threshold(closer.sub_(step), _TIE, 0.0, inplace=True)
            places.append(place)
            steps.append(step)
            gains.append(values[place])
            if len(gains) in (1, k):
                break
        if places:
            change = torch.stack(steps)
            order = torch.arange(len(places), device=change.device)
            last = torch.where(change > 0, order[:, None], -1).amax(dim=0)
            fell = last >= 0
            owner, by_pick = last[fell].sort(stable=True)
            index = columns[fell][by_pick]
            before = nearest[index]
            nearest[index] = after = before - change[:, fell].sum(dim=0)[by_pick]
            assignment[index] = owner + len(picks)
            picks += block[places].tolist()
            if len(picks) < k:
                if 2 * len(index) > n:
                    bounds = space.bounds(nearest)
                else:
                    space.lower(bounds, index, before, after)
        bounds[block] = gain
        bounds[picks] = -math.inf
        size = _CANDIDATES if places else 2 * size
    if len(picks) < k:
        picks += (bounds > -math.inf).nonzero()[: k - len(picks), 0].tolist()
        gains += [0.0] * (k - len(gains))
    return _medoids(
        space, torch.tensor(picks), torch.tensor(gains, dtype=torch.float64), assignment
    )


def _medoids(space: _Space, picks: Tensor, gains: Tensor, assignment: Tensor) -> Medoids:
    device = space.weights.device
    return Medoids(
        picks.to(device),
        gains.to(device) * space.unit,
        assignment,
        torch.bincount(assignment, minlength=len(picks)),
    )


def _stochastic(space: _Space, k: int, sample: int, generator: torch.Generator) -> Medoids:
    """At each pick the best of a random sample of the candidates left."""
    n, device = len(space.weights), space.weights.device
    everyone = torch.arange(n, device=device)
    nearest, left = space.farthest(), torch.ones(n, dtype=torch.bool, device=device)
    picks, gains, assignment = [], [], torch.zeros_like(everyone)
    for position in range(k):
        drawn = torch.randperm(n, generator=generator, device=generator.device).to(device)
        block = drawn[left[drawn]][:sample].sort().values
        closer = threshold(nearest - space.losses(block, everyone), _TIE, 0.0)
        values = (closer @ space.weights).tolist()
        place = next(i for i, value in enumerate(values) if value >= max(values) - _TIE)
        assignment[closer[place] > 0] = position
        nearest = nearest - closer[place]
        picks.append(int(block[place]))
        gains.append(values[place])
        left[picks[-1]] = False
    return _medoids(
        space, torch.tensor(picks), torch.tensor(gains, dtype=torch.float64), assignment
    )


def _following(space: _Space, picks: Tensor) -> Medoids:
    """Gains, assignment and weights of picks that were made elsewhere."""
    n = len(space.weights)
    everyone = torch.arange(n, device=picks.device)
    assignment = torch.zeros_like(everyone)
    gains = torch.zeros(len(picks), dtype=torch.float64, device=picks.device)
    for some in everyone.split(max(1, _BLOCK // len(picks))):
        loss = space.losses(some, picks)
        nearest = torch.cat([space.farthest()[some, None], loss], dim=1).cummin(dim=1).values
        gains += space.weights[some] @ -nearest.diff(dim=1)
        near = loss <= nearest[:, -1:] + _TIE
        assignment[some] = near.to(torch.int8).argmax(dim=1)
    return _medoids(space, picks, gains, assignment)


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or 0 in features.shape or features.is_complex():
        raise ContractError(
            f"features must be real, one row for each of n >= 1 examples, got shape "
            f"{tuple(features.shape)} of {features.dtype}"
        )
    finite = torch.isfinite(features).all(dim=1)
    if not bool(finite.all()):
        first = int(finite.int().argmin())
        raise ContractError(
            f"features must be finite, but {int((~finite).sum())} of {len(features)} rows are not, "
            f"the first is row {first}; look for a diverged model"
        )
    return features.detach()
