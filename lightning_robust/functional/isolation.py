"""Isolated examples: those whose gradient no other example of their class has a share in.

This is the decision of EPIC (thesis chapter 4, Algorithm 3): the medoids of a class, by gradient,
that stand for nothing but themselves are dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.contracts import ContractError, check_in_range, check_integer
from lightning_robust.functional.facility_location import facility_location


def medoid_budgets(counts: Tensor, fraction: float) -> Tensor:
    """How many medoids each class gets: its share of ``fraction`` of all examples.

    The whole number ``floor(fraction * n)`` is shared out in proportion to the classes by largest
    remainder, of equal ones to the class with the smaller number. A class gets fewer medoids than
    it has examples, so that in each at least two examples share a cluster.

    Args:
        counts: (C,) int64 >= 0, examples of each class.
        fraction: In (0, 1).

    Returns:
        (C,) int64.

    Raises:
        ContractError: If ``fraction`` is out of range.

    Example:
        >>> medoid_budgets(torch.tensor([60, 40, 20]), 0.3)
        tensor([18, 12,  6])
        >>> medoid_budgets(torch.tensor([100, 15, 5]), 0.1)
        tensor([10,  2,  0])
        >>> medoid_budgets(torch.tensor([3, 1]), 0.9)
        tensor([2, 0])
    """
    check_in_range("fraction", fraction, 1e-9, 1 - 1e-9)
    total, n = int(fraction * int(counts.sum()) + 1e-9), max(1, int(counts.sum()))
    shares = counts * total
    budgets = shares // n
    left = total - int(budgets.sum())
    budgets[(shares % n).argsort(descending=True, stable=True)[:left]] += 1
    return torch.minimum(budgets, (counts - 1).clamp(min=0))


def cluster_sizes(gradients: Tensor, num_medoids: int) -> Tensor:
    """The size of the cluster each example is in, clusters being around greedy medoids.

    Medoids are those of :func:`~lightning_robust.functional.facility_location.facility_location`;
    an example belongs to the nearest. A medoid that repeats another exactly belongs to that one:
    it has company, so neither is isolated.

    Args:
        gradients: (n, d) real and finite, of the examples of one class.
        num_medoids: k; 0 puts all examples into one cluster.

    Returns:
        (n,) int64, at least 1.

    Raises:
        ContractError: If an argument is not as above.

    Example:
        >>> cluster_sizes(torch.tensor([[0.0], [0.1], [9.0], [0.2]]), 2)
        tensor([3, 3, 1, 3])
    """
    check_integer("num_medoids", num_medoids)
    if num_medoids == 0:
        return torch.full((len(gradients),), len(gradients))
    found = facility_location(gradients, num_medoids)
    return found.weights[found.assignment].cpu()


def isolated(
    sizes: Tensor,
    threshold: int = 1,
) -> Tensor:
    """Which examples of a class are in clusters of at most ``threshold`` examples.

    None are where all would be: a class is never emptied.

    Args:
        sizes: (n,) int64, of the cluster each example of a class is in.
        threshold: The largest size that counts as isolated.

    Returns:
        (n,) bool.

    Example:
        >>> isolated(torch.tensor([3, 3, 1, 3]))
        tensor([False, False,  True, False])
    """
    small = sizes <= threshold
    return small & ~small.all()


def isolated_examples(
    gradients: Tensor, targets: Tensor, fraction: float, threshold: int = 1
) -> Tensor:
    """What EPIC drops in one round.

    Args:
        gradients: (n, C) real and finite, such as softmax - one-hot, of the remaining examples.
        targets: (n,) int64, their classes.
        fraction: Medoids over examples, in (0, 1).
        threshold: The largest size of a cluster that is dropped.

    Returns:
        (n,) bool.

    Raises:
        ContractError: If an argument is not as above.

    References:
        Thesis Algorithm 3, where each class has k / C medoids. Departure: a class has medoids in
        proportion to its size, as in the authors' code, whose random rounding is replaced by
        largest remainders.

    Example:
        >>> gradients = torch.tensor([[0.0], [0.1], [9.0], [0.2], [0.0], [0.1], [0.2], [0.3]])
        >>> isolated_examples(gradients, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), fraction=0.5)
        tensor([False, False,  True, False, False, False, False,  True])
    """
    if gradients.ndim != 2 or targets.shape != (len(gradients),):
        raise ContractError(
            "gradients (n, d) must have a row for each of the targets (n,), got shapes "
            f"{tuple(gradients.shape)} and {tuple(targets.shape)}"
        )
    check_integer("threshold", threshold, 1)
    counts = torch.bincount(targets)
    dropped = torch.zeros(len(targets), dtype=torch.bool)
    for label, budget in enumerate(medoid_budgets(counts, fraction).tolist()):
        members = (targets == label).nonzero().squeeze(1)
        if len(members):
            dropped[members] = isolated(cluster_sizes(gradients[members], budget), threshold)
    return dropped
