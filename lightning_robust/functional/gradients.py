"""Gradients and curvature of a loss, and the quadratic model they make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def logit_gradients(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of each example's cross-entropy with respect to its logits: softmax - one-hot.

    Args:
        logits: (n, C).
        targets: (n,) int64.

    Returns:
        (n, C).

    Example:
        >>> logit_gradients(torch.zeros(1, 2), torch.tensor([1]))
        tensor([[ 0.5000, -0.5000]])
    """
    return logits.softmax(1) - F.one_hot(targets, logits.shape[1])


def rademacher(num_probes: int, size: int, generator: torch.Generator) -> Tensor:
    """Random signs, (num_probes, size) float32.

    Example:
        >>> rademacher(1, 4, torch.Generator().manual_seed(0)).abs()
        tensor([[1., 1., 1., 1.]])
    """
    return torch.randint(2, (num_probes, size), generator=generator).float() * 2 - 1


def gradient_and_curvature(
    loss: Tensor, parameters: Sequence[Tensor], probes: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of a loss, and Hutchinson's estimate of the diagonal of its Hessian.

    The estimate is the mean of z * (H z) over the probes z (Eq. 2.7 of CREST; Hutchinson 1989),
    exact in expectation, and for a diagonal Hessian with any one probe.

    Args:
        loss: A scalar that depends on the parameters.
        parameters: Together of D numbers; those that the loss does not depend on, or that require
            no gradient, have gradient 0.
        probes: (num_probes, D), of +1 and -1, on the parameters' device.

    Returns:
        Gradient (D,) and diagonal (D,), float32, without graph.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = (torch.tensor([3.0, 0.5]) * w**2).sum()
        >>> gradient_and_curvature(loss, [w], torch.tensor([[1.0, -1.0]]))
        (tensor([6., 2.]), tensor([6., 1.]))
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]

    def by_parameter(scalar: Tensor, *, graph: bool) -> Tensor:
        found = iter(
            torch.autograd.grad(
                scalar, wanted, create_graph=graph, retain_graph=True, allow_unused=True
            )
        )
        return flattened(parameters, [next(found) if p.requires_grad else None for p in parameters])

    gradient = by_parameter(loss, graph=True)
    diagonal = torch.zeros_like(gradient, requires_grad=False)
    if gradient.requires_grad:
        for probe in probes:
            diagonal += probe * by_parameter(gradient @ probe, graph=False).detach()
    return gradient.detach(), diagonal / len(probes)


def flattened(parameters: Sequence[Tensor], values: Sequence[Tensor | None]) -> Tensor:
    """What belongs to each parameter, in one row of float32; ``None`` is zeros."""
    return torch.cat(
        [
            (torch.zeros_like(parameter) if value is None else value).float().flatten()
            for parameter, value in zip(parameters, values, strict=True)
        ]
    )


def moving_average(average: Tensor | None, value: Tensor, decay: float) -> Tensor:
    """Exponential moving average that starts at 0; divide by ``1 - decay**count`` (Eq. 2.8).

    Example:
        >>> average = moving_average(None, torch.tensor([2.0]), decay=0.9)
        >>> average / (1 - 0.9**1)
        tensor([2.])
    """
    new = (1 - decay) * value
    return new if average is None else decay * average.to(value.device) + new


@dataclass(frozen=True)
class QuadraticModel:
    """A loss around a point, with a diagonal Hessian (Eq. 2.6 of CREST).

    Args:
        loss: At the point.
        gradient: (D,).
        diagonal: (D,), of the Hessian.

    Example:
        >>> model = QuadraticModel(1.0, torch.tensor([2.0]), torch.tensor([4.0]))
        >>> model(torch.tensor([0.5]))
        2.5
    """

    loss: float
    gradient: Tensor
    diagonal: Tensor

    def __call__(self, delta: Tensor) -> float:
        """The loss that the model expects at a distance ``delta`` (D,) from the point."""
        linear, curved = self.gradient @ delta, 0.5 * (self.diagonal * delta) @ delta
        return self.loss + float(linear + curved)


def relative_error(expected: float, actual: float) -> float:
    """The error rho of Eq. 2.10: absolute difference of two losses over the actual one.

    Example:
        >>> relative_error(0.9, 1.0)
        0.09999999999999998
        >>> relative_error(0.0, 0.0)
        0.0
    """
    difference = abs(expected - actual)
    if actual == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / actual
