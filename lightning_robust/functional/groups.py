"""Counts, means and balancing weights of groups."""

from __future__ import annotations

import torch
from torch import Tensor


def group_sums(values: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Sum of the values and number of examples in each group.

    Args:
        values: (B,) floating.
        groups: (B,) int64 in ``[0, num_groups)``, on the device of ``values``.
        num_groups: G.

    Returns:
        Sums (G,) and counts (G,), both in the dtype of ``values``; 0 for absent groups.

    Example:
        >>> group_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 3)
        (tensor([1., 0., 6.]), tensor([1., 0., 2.]))
    """
    sums = values.new_zeros(num_groups).index_add_(0, groups, values)
    counts = values.new_zeros(num_groups).index_add_(0, groups, torch.ones_like(values))
    return sums, counts


def balancing_weights(groups: Tensor, num_groups: int) -> Tensor:
    """Sampling weights under which every non-empty group is drawn equally often.

    The weight of an example is ``n / (number of non-empty groups * size of its group)``: the mean
    weight is 1, and groups that are balanced already give exactly 1 everywhere.

    Args:
        groups: (n,) int64 in ``[0, num_groups)``.
        num_groups: G; groups without an example take no part.

    Returns:
        (n,) float64.

    Example:
        >>> balancing_weights(torch.tensor([0, 0, 0, 2]), 3)
        tensor([0.6667, 0.6667, 0.6667, 2.0000], dtype=torch.float64)
    """
    counts = torch.bincount(groups, minlength=num_groups)
    # Tensor by tensor: Python's int / tensor is int * (1 / tensor), where 49 / 49 is less than 1.
    total = torch.tensor(len(groups), dtype=torch.float64, device=groups.device)
    return (total / ((counts > 0).sum() * counts))[groups]


def exponentiated_gradient(
    weights: Tensor, losses: Tensor, step_size: float, present: Tensor
) -> Tensor:
    """One ascent step on the probability simplex: ``q_g <- q_g exp(eta * L_g)``, renormalised.

    Group DRO, Algorithm 1 (Sagawa et al., 2020): groups absent from the batch keep their mass
    before the renormalisation.

    Args:
        weights: q (G,), non-negative, summing to 1.
        losses: L (G,); entries of absent groups are ignored.
        step_size: eta >= 0.
        present: (G,) bool, the groups of this batch.

    Returns:
        The new q (G,).

    Example:
        >>> q = torch.tensor([0.5, 0.5])
        >>> exponentiated_gradient(q, torch.tensor([1.0, 0.0]), 1.0, torch.tensor([True, True]))
        tensor([0.7311, 0.2689])
    """
    exponent = torch.where(present, step_size * losses, torch.zeros_like(losses))
    raised = weights * torch.exp(exponent - exponent.max())
    return raised / raised.sum()


def draw_from_groups(groups: Tensor, sizes: Tensor, random: torch.Generator) -> Tensor:
    """A random subset with a given number of examples of each group, without replacement.

    Args:
        groups: (n,) int64 in ``[0, G)``, on the CPU.
        sizes: (G,) how many are wanted of each group; a group that has fewer gives all.
        random: Where the draws come from.

    Returns:
        (n,) bool, what is in the subset.

    Example:
        >>> groups = torch.tensor([0, 0, 0, 0, 1, 1, 2])
        >>> kept = draw_from_groups(groups, torch.tensor([2, 2, 2]), torch.Generator())
        >>> torch.bincount(groups[kept])
        tensor([2, 2, 1])
    """
    shuffled = torch.randperm(len(groups), generator=random)
    shuffled = shuffled[groups[shuffled].argsort(stable=True)]  # by group, at random inside it
    counts = torch.bincount(groups, minlength=len(sizes))
    place_in_group = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[groups[shuffled]]
    kept = torch.zeros(len(groups), dtype=torch.bool)
    kept[shuffled[place_in_group < sizes[groups[shuffled]]]] = True
    return kept


def even_quotas(available: Tensor, total: int, random: torch.Generator) -> Tensor:
    """How many to take of each group so that all give as equally many as they can.

    Groups that have too little give all of it and the others make up for them. What does not
    divide evenly falls to larger groups, among equals at random.

    Args:
        available: (G,) int64 >= 0, how many each group has.
        total: How many are wanted of all; more than there are means all.
        random: Decides among equals.

    Returns:
        (G,) int64, summing to ``total`` or to what there is.

    Example:
        >>> even_quotas(torch.tensor([9, 1, 9, 0]), 7, torch.Generator())
        tensor([3, 1, 3, 0])
    """
    ties = torch.rand(len(available), generator=random, dtype=torch.float64)
    left = min(total, int(available.sum()))
    quotas = torch.zeros_like(available)
    for place, group in enumerate((available + ties).argsort().tolist()):
        quotas[group] = min(int(available[group]), left // (len(available) - place))
        left -= int(quotas[group])
    return quotas
