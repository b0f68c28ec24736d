"""Memorisation: how much what a model says of an example hangs on having been trained on it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_robust.contracts import (
    ContractError,
    check_choice,
    check_integer,
    check_positive,
)
from lightning_robust.functional.gradients import rademacher

_ROWS_A_BLOCK = 4096


def margin_gradients(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of each example's margin, log(p / (1 - p)), with respect to its logits.

    p is the probability of the target. The gradient is 1 at the target, and minus the softmax of
    the others at the others; that of the loss is -(1 - p) times it.

    Args:
        logits: (n, C).
        targets: (n,) int64.

    Returns:
        (n, C).

    Example:
        >>> margin_gradients(torch.zeros(1, 3), torch.tensor([1]))
        tensor([[-0.5000,  1.0000, -0.5000]])
    """
    own = F.one_hot(targets, logits.shape[1]).bool()
    return own.to(logits.dtype) - logits.masked_fill(own, -torch.inf).softmax(1)


def self_influence(
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    *,
    of: Literal["margin", "loss"] = "margin",
    ridge: float = 1e-3,
    num_projections: int = 4096,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How much the last layer's fit of each example comes from that example itself.

    The diagonal of TRAK's influence matrix, with gradients by weight and bias of the last layer in
    closed form: for the gradient g_i of an example's margin, and p_i the probability of its target,
    ``(1 - p_i) g_i' (sum_j g_j g_j' + r I)^-1 g_i``. The second factor is the leverage of the
    example, the first its residual.

    Args:
        features: (n, d), the inputs of the last layer.
        logits: (n, C).
        targets: (n,) int64.
        of: ``"margin"`` as above; ``"loss"``: the leverage of the gradient of the loss, without a
            factor, the influence function with the empirical Fisher matrix for the Hessian.
        ridge: r in units of the mean eigenvalue of the matrix, > 0.
        num_projections: If the last layer has more parameters than this, gradients are projected
            on as many random directions, each a product of random signs for features and logits.
        generator: Draws them; needed if they are.

    Returns:
        (n,) float64, from 0 to 1.

    Raises:
        ContractError: If an argument is not as above.

    References:
        Park et al., TRAK: attributing model behavior at scale, ICML 2023 (arXiv:2303.14186),
        Eq. 13; as memorisation: Eq. 8 and Section 4.2 of MAT (Pezeshki et al., ICLR 2025).
        Departures: the last layer only; a ridge, as its gradients are linearly dependent; in
        dimensions it can do without it, no projection.

    Example:
        >>> features = torch.tensor([[1.0], [1.0], [1.0], [-3.0]])
        >>> logits = torch.cat([-features, features], 1)
        >>> self_influence(features, logits, torch.tensor([1, 1, 1, 1]), ridge=0.01)
        tensor([0.0394, 0.0394, 0.0394, 0.9926], dtype=torch.float64)
    """
    n, num_classes = logits.shape
    if features.shape[:1] != (n,) or features.ndim != 2 or targets.shape != (n,):
        raise ContractError(
            "features (n, d), logits (n, C) and targets (n,) must have a row for each example, got "
            f"shapes {tuple(features.shape)}, {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    check_choice("of", of, ("margin", "loss"))
    check_positive("ridge", ridge)
    check_integer("num_projections", num_projections, 1)
    inputs = torch.cat([features.double(), features.new_ones(n, 1).double()], 1)
    outputs, targets = logits.double(), targets.to(logits.device)
    errors = margin_gradients(outputs, targets)
    residuals = 1 - outputs.softmax(1).gather(1, targets[:, None]).squeeze(1)
    if of == "loss":
        errors = errors * residuals[:, None]
    size, signs = num_classes * inputs.shape[1], None
    if size > num_projections:
        if generator is None:
            raise ContractError(
                f"the last layer has {size} parameters, more than num_projections="
                f"{num_projections}: give a generator to draw the projections, or a larger number"
            )
        signs = [
            rademacher(num_projections, width, generator).T.to(errors)
            for width in (num_classes, inputs.shape[1])
        ]
        size = num_projections

    def rows(start: int) -> Tensor:
        some = slice(start, start + _ROWS_A_BLOCK)
        if signs is None:
            return (errors[some, :, None] * inputs[some, None, :]).flatten(1)
        projected: Tensor = (errors[some] @ signs[0]) * (inputs[some] @ signs[1]) / size**0.5
        return projected

    starts = range(0, n, _ROWS_A_BLOCK)
    second_moment = torch.zeros(size, size, dtype=errors.dtype, device=errors.device)
    for start in starts:
        block = rows(start)
        second_moment.addmm_(block.T, block)
    mean = float(second_moment.diagonal().mean())
    second_moment.diagonal().add_(ridge * mean or 1.0)
    factor = torch.linalg.cholesky(second_moment)
    leverages = torch.cat(
        [
            torch.linalg.solve_triangular(factor, rows(start).T, upper=False).square().sum(0)
            for start in starts
        ]
    )
    return leverages if of == "loss" else residuals * leverages
