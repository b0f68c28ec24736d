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
    # Tensor by tensor: Python's int / tensor is int * (1 / tensor), which makes 49 / 49 less than 1.
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
