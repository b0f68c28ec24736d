"""Losses against autograd, loops and a linear program."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog
from torch.nn import functional as F

from lightning_robust.functional.losses import (
    effective_number_weights,
    focal_weights,
    generalised_cross_entropy,
    moving_average,
    tail_weights,
)


def some(scale=3.0):
    g = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(40, 4, generator=g, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(4, (40,), generator=g)


def gradient(losses, logits):
    return torch.autograd.grad(losses.sum(), logits)[0]


@pytest.mark.parametrize("exponent", [0.3, 0.7, 1.0])
def test_generalised_cross_entropy_and_its_gradient(exponent):
    """Its gradient is p^q times the cross-entropy's (Zhang and Sabuncu)."""
    logits, targets = some()
    p = logits.softmax(1)[torch.arange(40), targets]
    losses = generalised_cross_entropy(logits, targets, exponent)
    torch.testing.assert_close(losses, (1 - p**exponent) / exponent)
    plain = gradient(F.cross_entropy(logits, targets, reduction="none"), logits)
    wanted = p.detach().unsqueeze(1) ** exponent * plain
    torch.testing.assert_close(gradient(losses, logits), wanted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_weights_times_the_gradient_is_the_focal_gradient(gamma):
    logits, targets = some()
    log_p = logits.log_softmax(1)[torch.arange(40), targets]
    wanted = gradient(-((1 - log_p.exp()) ** gamma) * log_p, logits)
    plain = gradient(F.cross_entropy(logits, targets, reduction="none"), logits)
    found = focal_weights(logits.detach(), targets, gamma).unsqueeze(1) * plain
    torch.testing.assert_close(found, wanted)


def test_focal_weights_are_finite_for_certain_models():
    weights = focal_weights(torch.tensor([[200.0, 0.0], [200.0, 0.0]]), torch.tensor([0, 1]), 0.5)
    assert weights.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("alpha", [0.05, 0.37, 0.5, 1.0])
def test_tail_weights_solve_the_linear_program(alpha):
    """The weights in [0, 1 / alpha] of mean 1 under which the mean loss is largest."""
    losses = torch.rand(13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solved = linprog(-losses.numpy(), A_eq=[[1.0] * 13], b_eq=[13.0], bounds=(0, 1 / alpha)).x
    assert tail_weights(losses, alpha).tolist() == pytest.approx(solved.tolist(), abs=1e-7)


def test_moving_averages_by_a_loop():
    values = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
    for row, found in zip(values.tolist(), moving_average(values, 0.7).tolist(), strict=True):
        average = row[0]
        for value, one in zip(row, found, strict=True):
            average = 0.7 * average + 0.3 * value
            assert one == pytest.approx(average)


@pytest.mark.parametrize("beta", [0.0, 0.99, 1.0])
def test_effective_numbers_weigh_one_on_average(beta):
    """The effective number of n examples is the sum of the first n powers of beta."""
    counts = torch.tensor([40, 0, 7, 1])
    weights = effective_number_weights(counts, beta)
    numbers = [sum(beta**power for power in range(n)) for n in counts.tolist()]
    ratios = [float(w) * number for w, number in zip(weights, numbers, strict=True) if number]
    assert ratios == pytest.approx([ratios[0]] * 3)
    assert float((weights * counts).sum()) == pytest.approx(48)
