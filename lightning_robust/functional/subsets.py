"""Subsets of a given size: how many of each class, and which by their scores or features.

A budget is a share of the training set. What it comes to in examples is decided here, once for all
methods: by :func:`size_of_subset`, and for each class by :func:`proportional_quotas`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from lightning_robust.contracts import check_choice

Keeps = Literal["highest", "middle", "lowest"]


def size_of_subset(fraction: float, num_examples: int) -> int:
    """How many examples a share of the training set is: rounded, and at least one.

    Args:
        fraction: In (0, 1]; halves are rounded to even.
        num_examples: n >= 1.

    Example:
        >>> size_of_subset(0.1, 48), size_of_subset(0.01, 10), size_of_subset(1.0, 7)
        (5, 1, 7)
    """
    return max(1, round(fraction * num_examples))


def proportional_quotas(counts: Tensor, total: int) -> Tensor:
    """How many to take of each class so that they have about their shares of a subset.

    Every class that is there gives one, if the subset is that large; the rest goes in proportion
    to what a class's share, ``counts * total / n``, exceeds one by. Shares are rounded down, and
    what is missing falls to the largest remainders, among equals to the smaller class number.

    Args:
        counts: (C,) int64 >= 0, how many each class has.
        total: Size of the subset, from 1 to the sum of counts.

    Returns:
        (C,) int64, summing to ``total``, at most ``counts``.

    Example:
        >>> proportional_quotas(torch.tensor([60, 30, 10]), 10)
        tensor([6, 3, 1])
        >>> proportional_quotas(torch.tensor([98, 0, 2]), 10)
        tensor([9, 0, 1])
    """
    present = (counts > 0).long()
    first = present if total >= int(present.sum()) else torch.zeros_like(counts)
    left = total - int(first.sum())
    if left == 0:
        return first
    shares = (counts.double() * total / counts.sum() - first).clamp(min=0)
    shares = shares * left / shares.sum()
    quotas = (shares + 1e-9).long()
    remainders = shares - quotas
    rest = left - int(quotas.sum())
    quotas[remainders.argsort(descending=True, stable=True)[:rest]] += 1
    return first + quotas


def members_and_quotas(classes: Tensor | None, n: int, total: int) -> Iterator[tuple[Tensor, int]]:
    """The examples of each class, and how many to take of them; without classes, of all.

    Args:
        classes: (n,) int64, or ``None``.
        n: Number of examples.
        total: Size of the subset.

    Yields:
        Indices (n_c,) in rising order, and a number from 1 to n_c.

    Example:
        >>> for members, quota in members_and_quotas(torch.tensor([0, 1, 0, 0]), 4, 3):
        ...     print(members.tolist(), quota)
        [0, 2, 3] 2
        [1] 1
    """
    if classes is None:
        yield torch.arange(n), total
        return
    for label, quota in enumerate(proportional_quotas(torch.bincount(classes), total).tolist()):
        if quota:
            yield (classes == label).nonzero().squeeze(1), quota


def keep_by_score(
    scores: Tensor, total: int, keeps: Keeps = "highest", classes: Tensor | None = None
) -> Tensor:
    """The examples with the highest, lowest or middle scores.

    Args:
        scores: (n,).
        total: How many are kept.
        keeps: ``"middle"`` leaves out as many above as below, or one more below. Of examples with
            equal scores those with smaller indices count as lower.
        classes: (n,) int64: rank the examples of each class among themselves, and keep classes at
            their shares (:func:`proportional_quotas`).

    Returns:
        (n,) bool.

    Example:
        >>> keep_by_score(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), 3, "middle")
        tensor([False, False,  True,  True,  True])
    """
    check_choice("keeps", keeps, ("highest", "middle", "lowest"))
    kept = torch.zeros(len(scores), dtype=torch.bool)
    for members, quota in members_and_quotas(classes, len(scores), total):
        rising = members[scores[members].argsort(stable=True)]
        left_out = len(members) - quota
        start = {"lowest": 0, "middle": (left_out + 1) // 2, "highest": left_out}[keeps]
        kept[rising[start : start + quota]] = True
    return kept


def window_by_score(scores: Tensor, total: int, place: float) -> Tensor:
    """The examples at a place of the ranking, from the highest scores (0) to the lowest (1).

    Args:
        scores: (n,).
        total: How many are kept.
        place: In [0, 1].

    Returns:
        (n,) bool.

    Example:
        >>> window_by_score(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), 2, 0.0)
        tensor([ True, False,  True, False, False])
        >>> window_by_score(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), 2, 1.0)
        tensor([False,  True, False,  True, False])
    """
    start = round(place * (len(scores) - total))
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[start : start + total]] = True
    return kept


def k_center(features: Tensor, count: int) -> Tensor:
    """Examples such that the farthest of all is near to one of them, picked greedily.

    The first is the example nearest to the mean, each other the one farthest from those picked.
    The largest distance is at most twice the smallest that so many examples can have.

    Args:
        features: (n, d).
        count: From 1 to n.

    Returns:
        (count,) int64, different indices in the order of picking; of equals the smallest.

    References:
        Sener and Savarese, ICLR 2018, Algorithm 1; Gonzalez, 1985.

    Example:
        >>> k_center(torch.tensor([[0.0], [1.0], [4.0], [9.0]]), 3)
        tensor([2, 3, 0])
    """
    points = features.double()
    picks = [(points - points.mean(0)).norm(dim=1).argmin()]
    nearest = torch.full((len(points),), float("inf"), dtype=points.dtype, device=points.device)
    while len(picks) < count:
        nearest = torch.minimum(nearest, (points - points[picks[-1]]).norm(dim=1))
        nearest[picks[-1]] = -1.0
        picks.append(nearest.argmax())
    return torch.stack(picks)


def herding(features: Tensor, count: int) -> Tensor:
    """Examples whose mean is near to the mean of all, picked greedily.

    Each is the one with which the mean of those picked comes nearest to that of all.

    Args:
        features: (n, d).
        count: From 1 to n.

    Returns:
        (count,) int64, different indices in the order of picking; of equals the smallest.

    References:
        Chen, Welling and Smola, Super-samples from kernel herding, UAI 2010, Section 2.

    Example:
        >>> herding(torch.tensor([[0.0], [1.0], [4.0], [9.0]]), 2)
        tensor([2, 1])
    """
    points = features.double() - features.double().mean(0)
    squares, total = points.square().sum(1), torch.zeros_like(points[0])
    picks: list[Tensor] = []
    while len(picks) < count:
        # |total + x|^2 without |total|^2, which is the same for all.
        distances = squares + 2 * points @ total
        if picks:
            distances[torch.stack(picks)] = float("inf")
        picks.append(distances.argmin())
        total = total + points[picks[-1]]
    return torch.stack(picks)
