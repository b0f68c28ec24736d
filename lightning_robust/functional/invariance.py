"""Penalties on what differs between the environments of a class."""

from __future__ import annotations

import torch
from torch import Tensor


def class_predictions(logits: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Sum of the softmax outputs, and number of examples, of each group of a batch.

    Args:
        logits: (B, C).
        groups: (B,) int64 in ``[0, num_groups)``.
        num_groups: G.

    Returns:
        (G, C) and (G,), at least float32.

    Example:
        >>> sums, counts = class_predictions(torch.zeros(3, 2), torch.tensor([0, 2, 2]), 3)
        >>> sums, counts
        (tensor([[0.5000, 0.5000],
                [0.0000, 0.0000],
                [1.0000, 1.0000]]), tensor([1., 0., 2.]))
    """
    probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    sums = probs.new_zeros(num_groups, logits.shape[1]).index_add(0, groups, probs)
    counts = probs.new_zeros(num_groups).index_add(0, groups, torch.ones_like(probs[:, 0]))
    return sums, counts


def group_invariance_penalty(sums: Tensor, counts: Tensor) -> Tensor:
    """How far the mean predictions of a class differ between its two environments.

    The mean over classes of ``KL(p_c || q_c)``, p_c and q_c being the mean softmax over the
    examples of class c in the first and in the second environment (predictive group invariance,
    Ahmed et al., 2021). A class without examples of both takes no part in the mean.

    Args:
        sums: (2C, C), of :func:`class_predictions` of the groups ``2 * target + environment``.
        counts: (2C,).

    Returns:
        A scalar >= 0 in nats.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
        >>> sums, counts = class_predictions(logits, torch.tensor([0, 1, 2]), 4)
        >>> group_invariance_penalty(sums, counts)  # class 1 has one environment only
        tensor(0.4338)
    """
    means = sums / counts.clamp(min=1).unsqueeze(1)
    both = (counts.view(-1, 2) > 0).all(1)
    first, second = means.view(len(both), 2, -1)[both].unbind(1)
    tiny = torch.finfo(means.dtype).tiny
    logs = first.clamp(min=tiny).log() - second.clamp(min=tiny).log()
    return (first * logs).sum() / both.sum().clamp(min=1)
