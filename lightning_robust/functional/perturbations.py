"""Adversarial perturbations of inputs within a box: projected gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Gradients = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]
"""Gradient of the loss by each of some inputs, ``None`` where it does not depend on one."""


def projected_gradient_ascent(
    inputs: Sequence[Tensor],
    starts: Sequence[Tensor],
    gradients: Gradients,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int,
    minimum: float | None = None,
    maximum: float | None = None,
) -> list[Tensor]:
    """Inputs with a larger loss, none of whose numbers is farther than ``epsilon`` from the given.

    Args:
        inputs: Of any shapes.
        starts: Of the same shapes, in [-1, 1]: where in the box the ascent starts.
        gradients: Of the loss.
        epsilon: Half the side of the box.
        step_size: By how much each number moves, by the sign of its gradient, in a step.
        num_steps: How many steps.
        minimum: The smallest number an input may hold; ``None``: any.
        maximum: The largest.

    Returns:
        The perturbed inputs, without graph; an input without gradient as it was.

    References:
        Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018
        (arXiv:1706.06083), Section 2.1.

    Example:
        >>> x = torch.tensor([0.2, 0.9])
        >>> away_from_zero = lambda inputs: [2 * inputs[0]]
        >>> projected_gradient_ascent(
        ...     [x], [torch.zeros(2)], away_from_zero, epsilon=0.3, step_size=0.2, num_steps=2,
        ...     maximum=1.0
        ... )
        [tensor([0.5000, 1.0000])]
    """

    def allowed(values: Tensor, centre: Tensor) -> Tensor:
        values = torch.minimum(torch.maximum(values, centre - epsilon), centre + epsilon)
        return values if minimum is None and maximum is None else values.clamp(minimum, maximum)

    centres = [x.detach() for x in inputs]
    moved = [allowed(x + epsilon * start, x) for x, start in zip(centres, starts, strict=True)]
    for _ in range(num_steps):
        slopes = gradients([x.requires_grad_() for x in moved])
        moved = [
            x.clone() if slope is None else allowed(at.detach() + step_size * slope.sign(), x)
            for x, at, slope in zip(centres, moved, slopes, strict=True)
        ]
    return [x.detach() for x in moved]
