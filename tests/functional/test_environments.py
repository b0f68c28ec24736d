"""Environments against autograd, all memberships there are, and the authors' way of searching."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from lightning_robust.functional.environments import (
    environment_penalty,
    infer_environments,
    scale_gradients,
)


def some(n, seed=0, scale=1.5):
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, 3, generator=g, dtype=torch.float64)
    return logits, torch.randint(3, (n,), generator=g)


def penalty_by_autograd(logits, targets, membership):
    """IRMv1's, of losses that are weighed by membership and divided by all n."""
    total = 0.0
    for q in (membership, 1 - membership):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        losses = F.cross_entropy(scale * logits, targets, reduction="none")
        [slope] = torch.autograd.grad((q * losses).mean(), scale, create_graph=True)
        total = total + slope**2
    return total / 2


def test_one_number_an_example_is_enough_for_the_penalty():
    logits, targets = some(20)
    membership = torch.rand(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = environment_penalty(scale_gradients(logits, targets), membership)
    torch.testing.assert_close(found, penalty_by_autograd(logits, targets, membership).detach())


@pytest.mark.parametrize("seed", range(3))
def test_no_split_has_a_larger_penalty(seed):
    logits, targets = some(10, seed)
    gradients = scale_gradients(logits, targets)
    best = max(
        environment_penalty(gradients, torch.tensor(split, dtype=torch.float64))
        for split in itertools.product((0.0, 1.0), repeat=10)
    )
    found = infer_environments(logits, targets)
    assert 0 < found.sum() < 10
    torch.testing.assert_close(environment_penalty(gradients, found.double()), best)


def test_adam_from_random_memberships_ends_there():
    """As the authors search: soft members, learning rate .01; which one is first is chance."""
    logits, targets = some(60)
    raw = torch.randn(60, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.01)
    gradients = scale_gradients(logits, targets)
    for _ in range(1500):
        optimizer.zero_grad()
        (-environment_penalty(gradients, raw.sigmoid())).backward()
        optimizer.step()
    searched, found = raw > 0, infer_environments(logits, targets)
    assert torch.equal(searched, found) or torch.equal(searched, ~found)
