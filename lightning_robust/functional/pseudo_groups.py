"""Groups that are predicted from examples whose groups are known.

Spread spurious attribute (Nam et al., ICLR 2022, https://arxiv.org/abs/2204.02070).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def group_probabilities(logits: Tensor, options: Tensor) -> Tensor:
    """The softmax over the groups that an example can be of.

    Args:
        logits: (n, G).
        options: (n, G) bool, true for the groups of the example's class; at least one a row.

    Returns:
        (n, G), 0 where ``options`` is false.

    Example:
        >>> group_probabilities(torch.zeros(1, 3), torch.tensor([[True, False, True]]))
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    return logits.masked_fill(~options, -torch.inf).softmax(1)


def even_confidence(
    confidence: Tensor, groups: Tensor, known: Tensor, threshold: float = 0.95
) -> Tensor:
    """Which predicted groups to believe, so that large groups do not outnumber small ones.

    All of at least ``threshold`` are believed of the group that then is the smallest, counting the
    examples whose groups are known. Each other group has the lowest threshold of its own, not below
    that one, under which it is no larger (SSA, Section 3.2).

    Args:
        confidence: (n,) probability of the predicted group.
        groups: (n,) int64 in ``[0, G)``, the predicted group.
        known: (G,) how many examples are known to be of each group; one without any takes no part.
        threshold: That of the smallest group.

    Returns:
        (n,) bool.

    Example:
        >>> confidence = torch.tensor([0.96, 0.97, 0.99, 0.98, 0.5])
        >>> even_confidence(confidence, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 3]))
        tensor([False, False,  True,  True, False])
    """
    sure = (confidence >= threshold) & (known > 0)[groups]
    counts = known + torch.bincount(groups[sure], minlength=len(known))
    room = (counts[known > 0].min() - known).clamp(min=0)
    believed = torch.zeros_like(sure)
    for group in (known > 0).nonzero().flatten().tolist():
        members = (sure & (groups == group)).nonzero().flatten()
        values = confidence[members]
        if len(members) > room[group]:  # above the first that there is no room for, ties with it
            members = members[values > values.sort(descending=True).values[room[group]]]
        believed[members] = True
    return believed


def fit_group_predictor(
    features: Tensor,
    groups: Tensor,
    options: Tensor,
    others: Tensor,
    other_options: Tensor,
    *,
    threshold: float = 0.95,
    num_steps: int = 500,
    penalty: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """A linear predictor of groups, from examples of known groups and from believed predictions.

    Minimises the mean cross-entropy of the known, plus that of the unknown with what
    :func:`even_confidence` believes of them in each step, averaged over all unknown, plus
    ``penalty / 2 * |weight|^2``; by full-batch steps with momentum .9, from zero. Nothing random.

    Args:
        features: (m, d) floating, of the known; standardise them first.
        groups: (m,) int64 in ``[0, G)``.
        options: (m, G) bool, the groups of each one's class.
        others: (n, d), features of the unknown.
        other_options: (n, G) bool.
        threshold: Of the smallest group.
        num_steps: Number of steps.
        penalty: >= 0.

    Returns:
        Weight (G, d) and bias (G,), float64.

    Example:
        >>> x, every = torch.tensor([[-1.0], [1.0]]), torch.ones(2, 2, dtype=torch.bool)
        >>> weight, bias = fit_group_predictor(x, torch.tensor([0, 1]), every, x, every)
        >>> (x.double() @ weight.T + bias).argmax(1)
        tensor([0, 1])
    """
    num_groups = options.shape[1]
    known = torch.bincount(groups, minlength=num_groups)
    labels = F.one_hot(groups, num_groups).double()
    first, second = (F.pad(rows.double(), (0, 1), value=1.0) for rows in (features, others))
    decay = torch.full((first.shape[1],), penalty, dtype=torch.float64)
    decay[-1] = 0.0
    # The Hessian of a mean cross-entropy is at most half of that of least squares.
    curvature = sum(
        float(torch.linalg.matrix_norm(rows, 2)) ** 2 / (2 * max(1, len(rows)))
        for rows in (first, second)
    )
    found = torch.zeros(num_groups, first.shape[1], dtype=torch.float64)
    velocity = torch.zeros_like(found)
    for _ in range(num_steps):
        gradient = (group_probabilities(first @ found.T, options) - labels).T @ first / len(first)
        probs = group_probabilities(second @ found.T, other_options)
        confidence, guesses = probs.max(1)
        believed = even_confidence(confidence, guesses, known, threshold)
        residual = (probs - F.one_hot(guesses, num_groups)) * believed[:, None]
        gradient = gradient + residual.T @ second / max(1, len(second)) + decay * found
        velocity = 0.9 * velocity + gradient
        found = found - velocity / (curvature + penalty)
    return found[:, :-1], found[:, -1]
