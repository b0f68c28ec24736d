"""Gradients and curvature against autograd's full Hessian, closed forms, and the equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_robust.functional.gradients import (
    QuadraticModel,
    gradient_and_curvature,
    logit_gradients,
    moving_average,
    rademacher,
    relative_error,
)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_logit_gradients_are_autograds():
    logits = torch.randn(7, 4, generator=random(), dtype=torch.float64, requires_grad=True)
    targets = torch.arange(7) % 4
    F.cross_entropy(logits, targets, reduction="sum").backward()
    torch.testing.assert_close(logit_gradients(logits.detach(), targets), logits.grad)


def network_loss():
    x = torch.randn(9, 3, generator=random(1))
    y = torch.arange(9) % 2
    w = torch.randn(4, 3, generator=random(2), requires_grad=True)
    v = torch.randn(2, 4, generator=random(3), requires_grad=True)

    def loss(w, v):
        return F.cross_entropy(torch.tanh(x @ w.T) @ v.T, y)

    return loss, w, v


def test_all_sign_vectors_together_give_the_exact_diagonal():
    """The mean of z * Hz over every z in {-1, 1}^D is the diagonal (Eq. 2.7), here for D = 8."""
    x = torch.randn(6, 4, generator=random(4))
    w = torch.randn(2, 4, generator=random(5), requires_grad=True)

    def loss(w):
        return F.cross_entropy(x @ w.T, torch.arange(6) % 2)

    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 8)
    gradient, diagonal = gradient_and_curvature(loss(w), [w], signs)
    hessian = torch.autograd.functional.hessian(loss, w).view(8, 8)
    torch.testing.assert_close(diagonal, hessian.diagonal(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(w), w)[0].flatten())


def test_one_probe_is_z_times_hz_over_several_parameters():
    loss, w, v = network_loss()
    z = rademacher(1, 20, random(6))
    gradient, diagonal = gradient_and_curvature(loss(w, v), [w, v], z)
    blocks = torch.autograd.functional.hessian(loss, (w, v))
    rows = [
        torch.cat([blocks[i][j].reshape(n, -1) for j in range(2)], 1) for i, n in ((0, 12), (1, 8))
    ]
    hessian = torch.cat(rows)
    torch.testing.assert_close(diagonal, z[0] * (hessian @ z[0]), rtol=1e-4, atol=1e-6)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss(w, v), (w, v))])
    torch.testing.assert_close(gradient, expected)


def test_what_is_unused_or_frozen_has_gradient_zero_in_its_place():
    w, unused = torch.tensor([2.0], requires_grad=True), torch.ones(2, requires_grad=True)
    frozen = torch.tensor([5.0])
    gradient, diagonal = gradient_and_curvature(
        (w**3 * frozen).sum(), [unused, w, frozen], torch.ones(1, 4)
    )
    assert gradient.tolist() == [0, 0, 60, 0]
    assert diagonal.tolist() == [0, 0, 60, 0]


def test_a_linear_loss_has_no_curvature():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    gradient, diagonal = gradient_and_curvature(3 * w.sum(), [w], torch.ones(2, 2))
    assert gradient.tolist() == [3, 3]
    assert diagonal.tolist() == [0, 0]


def test_smoothing_is_the_sum_of_the_equation():
    """Eq. 2.8 written out, with t_l = 5."""
    values, beta = torch.randn(5, 3, generator=random(7)), 0.7
    average = None
    for value in values:
        average = moving_average(average, value, beta)
    weights = torch.tensor([(1 - beta) * beta ** (5 - t) for t in range(1, 6)])
    expected = weights @ values / (1 - beta**5)
    torch.testing.assert_close(average / (1 - beta**5), expected)
    assert math.isclose(float(weights.sum()), 1 - beta**5, rel_tol=1e-6)


def test_the_quadratic_model_is_taylors_of_a_quadratic_with_diagonal_hessian():
    curvature, slope = torch.tensor([2.0, 6.0]), torch.tensor([1.0, -1.0])

    def loss(w):
        return float(0.5 * (curvature * w) @ w + slope @ w)

    at = torch.tensor([0.3, -0.2])
    model = QuadraticModel(loss(at), curvature * at + slope, curvature)
    delta = torch.tensor([-1.5, 0.7])
    assert math.isclose(model(delta), loss(at + delta), rel_tol=1e-5)
    assert model(torch.zeros(2)) == model.loss


@pytest.mark.parametrize(
    ("expected", "actual", "rho"), [(1.5, 1.0, 0.5), (0.5, 1.0, 0.5), (1.0, 0.0, math.inf)]
)
def test_relative_error(expected, actual, rho):
    assert relative_error(expected, actual) == rho


def test_rademacher_is_signs_and_reproducible():
    z = rademacher(3, 1000, random(8))
    assert z.unique().tolist() == [-1, 1]
    assert z.mean().abs() < 0.1
    assert torch.equal(z, rademacher(3, 1000, random(8)))
