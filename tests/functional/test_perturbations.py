"""Projected gradient ascent against closed forms."""

from __future__ import annotations

import torch

from lightning_robust.functional.perturbations import projected_gradient_ascent


def ascend(inputs, gradients, **settings):
    starts = [torch.zeros_like(x) for x in inputs]
    return projected_gradient_ascent(inputs, starts, gradients, **settings)


def test_a_linear_loss_is_largest_in_a_corner_of_the_box():
    x, w = torch.randn(4, 3), torch.tensor([1.0, -2.0, 0.0])
    [found] = ascend([x], lambda _: [w.expand(4, 3)], epsilon=0.3, step_size=0.2, num_steps=2)
    torch.testing.assert_close(found, x + 0.3 * w.sign())
    assert not found.requires_grad


def test_stays_in_the_box_and_within_bounds_from_any_start():
    x = torch.rand(50, 4)
    starts = [2 * torch.rand(50, 4) - 1]
    settings = {"epsilon": 0.2, "step_size": 0.15, "num_steps": 3, "minimum": 0.0, "maximum": 1.0}

    def gradients(inputs):
        return torch.autograd.grad((inputs[0] - 0.5).square().sum(), inputs)

    [found] = projected_gradient_ascent([x], starts, gradients, **settings)
    assert (found - x).abs().max() <= 0.2 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    begun = (x + 0.2 * starts[0]).clamp(0, 1)
    away = torch.where(begun > 0.5, x + 0.2, x - 0.2).clamp(0, 1)
    torch.testing.assert_close(found, away)


def test_the_loss_is_larger_than_at_random_points_of_the_box():
    w = torch.randn(6, 5)

    def loss(x):
        return torch.tanh(x @ w).sum(1)

    x = torch.randn(8, 6)
    [found] = ascend(
        [x],
        lambda inputs: torch.autograd.grad(loss(inputs[0]).sum(), inputs),
        epsilon=0.05,
        step_size=0.01,
        num_steps=20,
    )
    for _ in range(50):
        assert (loss(found) >= loss(x + 0.05 * (2 * torch.rand_like(x) - 1)) - 1e-4).all()


def test_what_has_no_gradient_stays():
    x, y = torch.zeros(2), torch.ones(2)
    found = projected_gradient_ascent(
        [x, y],
        [torch.ones(2), torch.ones(2)],
        lambda inputs: [torch.ones(2), None],
        epsilon=0.5,
        step_size=1.0,
        num_steps=2,
    )
    assert found[0].tolist() == [0.5, 0.5]
    assert found[1].tolist() == [1.0, 1.0]
