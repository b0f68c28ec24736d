"""Linear classifiers on fixed features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sparse_logistic_regression(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    strength: float,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 2000,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with an L1 penalty on the weights, none on the biases.

    Minimises ``strength * sum of the cross-entropies + sum |weight|``, scikit-learn's objective
    with ``C=strength``, by accelerated proximal gradient steps (FISTA, Beck and Teboulle, 2009)
    that start their momentum anew where it points uphill. Nothing random.

    Args:
        features: (n, d) floating; standardise them first.
        targets: (n,) int64 in ``[0, num_classes)``.
        num_classes: C.
        strength: > 0; the smaller, the sparser.
        start: Weight and bias to start from, such as those of a neighbouring strength.
        tolerance: Stop when no entry of the (proximal) gradient of the mean objective is larger.
        max_iterations: Stop anyway.

    Returns:
        Weight (C, d) and bias (C,), in float64.

    Example:
        >>> x = torch.tensor([[-2.0, 0.3], [-1.0, -0.2], [1.0, 0.1], [2.0, -0.1]])
        >>> weight, _ = sparse_logistic_regression(x, torch.tensor([0, 0, 1, 1]), 2, strength=1.0)
        >>> weight.sign()
        tensor([[-1.,  0.],
                [ 1.,  0.]], dtype=torch.float64)
    """
    n = len(features)
    extended = F.pad(features.double(), (0, 1), value=1.0)
    one_hot = F.one_hot(targets, num_classes).double()
    penalty = torch.full((extended.shape[1],), 1 / (strength * n), dtype=torch.float64)
    penalty[-1] = 0.0
    # The Hessian of the mean cross-entropy is at most half of that of least squares.
    step = 2 * n / float(torch.linalg.matrix_norm(extended, 2)) ** 2
    found = extended.new_zeros(num_classes, extended.shape[1])
    if start is not None:
        found = torch.cat([start[0], start[1][:, None]], 1).double()
    ahead, momentum = found, 1.0
    for _ in range(max_iterations):
        gradient = ((extended @ ahead.T).softmax(1) - one_hot).T @ extended / n
        moved = F.relu((raw := ahead - step * gradient).abs() - step * penalty) * raw.sign()
        if float((moved - ahead).abs().max()) <= tolerance * step:
            found = moved
            break
        if float(((ahead - moved) * (moved - found)).sum()) > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / following * (moved - found)
        found, momentum = moved, following
    return found[:, :-1], found[:, -1]
