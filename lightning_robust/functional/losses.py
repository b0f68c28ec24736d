"""Losses other than the cross-entropy, and the weights and margins that turn it into them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def generalised_cross_entropy(logits: Tensor, targets: Tensor, exponent: float = 0.7) -> Tensor:
    """The loss ``(1 - p_y^q) / q`` of each example (Zhang and Sabuncu, NeurIPS 2018).

    Its gradient is ``p_y^q`` times that of the cross-entropy: what the model gets right already
    counts more, so a model trained by it holds on to what is easy, and becomes biased.

    Args:
        logits: (B, C).
        targets: (B,) int64.
        exponent: q > 0; towards 0 it becomes the cross-entropy.

    Returns:
        (B,) in [0, 1/q].

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        >>> generalised_cross_entropy(logits, torch.tensor([0, 1]))
        tensor([0.1215, 1.1062])
    """
    return -torch.expm1(-exponent * F.cross_entropy(logits, targets, reduction="none")) / exponent


def relative_difficulty(biased: Tensor, losses: Tensor) -> Tensor:
    """How much harder an example is for the biased model: ``L_b / (L_b + L_d)``.

    The weight of learning from failure (Nam et al., NeurIPS 2020).

    Args:
        biased: (B,) >= 0, losses of the biased model.
        losses: (B,) >= 0, losses of the model to be debiased.

    Returns:
        (B,) in [0, 1].

    Example:
        >>> relative_difficulty(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]))
        tensor([0.7500, 0.0000])
    """
    return biased / (biased + losses + 1e-8)


def class_maxima(values: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """The largest value of each class, and 0 where there is none.

    Args:
        values: (B,) >= 0.
        targets: (B,) int64 in ``[0, num_classes)``.
        num_classes: C.

    Returns:
        (C,).

    Example:
        >>> class_maxima(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 0, 2]), 3)
        tensor([3., 0., 2.])
    """
    return values.new_zeros(num_classes).scatter_reduce(0, targets, values, "amax")


def moving_average(values: Tensor, momentum: float) -> Tensor:
    """Exponential moving averages over the last dimension, that begin at its first value.

    Args:
        values: (..., T).
        momentum: Share of what was before, in [0, 1].

    Returns:
        (..., T): ``m_t = momentum * m_{t-1} + (1 - momentum) * x_t``, ``m_0 = x_0``.

    Example:
        >>> moving_average(torch.tensor([1.0, 0.0, 0.0]), 0.5)
        tensor([1.0000, 0.5000, 0.2500])
    """
    averages = [values[..., 0]]
    for column in values.unbind(-1)[1:]:
        averages.append(momentum * averages[-1] + (1 - momentum) * column)
    return torch.stack(averages, -1)


def tail_weights(losses: Tensor, alpha: float) -> Tensor:
    """Weights that make the mean of the losses their conditional value at risk.

    The largest ``alpha B`` losses weigh ``1 / alpha``, the next one what is left, the others
    nothing: the weights in ``[0, 1 / alpha]`` of mean 1 under which the mean loss is largest.

    Args:
        losses: (B,).
        alpha: In (0, 1]; 1 is the plain mean.

    Returns:
        (B,), summing to B.

    Example:
        >>> tail_weights(torch.tensor([1.0, 4.0, 3.0, 2.0]), alpha=0.375)
        tensor([0.0000, 2.6667, 1.3333, 0.0000])
    """
    if alpha == 1:
        return torch.ones_like(losses)
    size = alpha * len(losses)
    rank = torch.empty_like(losses)
    rank[losses.argsort(descending=True, stable=True)] = torch.arange(
        len(losses), dtype=losses.dtype, device=losses.device
    )
    return (size - rank).clamp(0, 1) / alpha


def focal_weights(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """What multiplies the gradient of the cross-entropy to make it that of the focal loss.

    The focal loss is ``-(1 - p)^gamma log p`` with p the probability of the target (Lin et al.,
    ICCV 2017, Eq. 4). Both losses depend on the logits through p alone, so their gradients differ
    by the factor ``(1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p``: exactly, with nothing
    detached.

    Args:
        logits: (B, C).
        targets: (B,) int64.
        gamma: >= 0; 0 is the cross-entropy.

    Returns:
        (B,) >= 0; it may exceed 1 where p is small.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        >>> focal_weights(logits, torch.tensor([0, 1]), gamma=2.0)
        tensor([0.0409, 1.2224])
    """
    log_p = -F.cross_entropy(logits, targets, reduction="none")
    rest = -torch.expm1(log_p)  # 1 - p
    # -log p / (1 - p) tends to 1 where p does.
    ratio = torch.where(rest > 0, -log_p / rest.clamp(min=1e-30), torch.ones_like(rest))
    return rest**gamma * (1 + gamma * log_p.exp() * ratio)


def label_margins(counts: Tensor, largest: float) -> Tensor:
    """Margins ``C / n_j^(1/4)`` with the constant chosen such that the largest is ``largest``.

    Label-distribution-aware margins (Cao et al., NeurIPS 2019).

    Args:
        counts: (G,) >= 0; a class without an example has margin 0.
        largest: Margin of the smallest class.

    Returns:
        (G,) float64.

    Example:
        >>> label_margins(torch.tensor([16, 1, 0]), largest=0.5)
        tensor([0.2500, 0.5000, 0.0000], dtype=torch.float64)
    """
    inverse = torch.where(counts > 0, counts.clamp(min=1).double() ** -0.25, 0.0)
    return largest * inverse / inverse.max()


def effective_number_weights(counts: Tensor, beta: float) -> Tensor:
    """A weight a class, ``(1 - beta) / (1 - beta^n_j)``, such that examples weigh 1 on average.

    The class-balanced loss (Cui et al., CVPR 2019); beta = 1 is its limit 1 / n_j.

    Args:
        counts: (G,) >= 0.
        beta: In [0, 1]; 0 weighs all alike.

    Returns:
        (G,) float64; 0 for a class without an example.

    Example:
        >>> effective_number_weights(torch.tensor([3, 1, 0]), beta=1.0)
        tensor([0.6667, 2.0000, 0.0000], dtype=torch.float64)
    """
    n = counts.double()
    numbers = n if beta == 1 else (1 - beta**n) / (1 - beta)
    weights = torch.where(counts > 0, 1 / numbers.clamp(min=1), 0.0)
    return weights * n.sum() / (weights * n).sum()
