"""Thresholds by trying all of them; the predictor by autograd and on groups that are plain."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_robust.functional.pseudo_groups import even_confidence, fit_group_predictor


@pytest.mark.parametrize("seed", range(6))
def test_thresholds_are_the_lowest_that_keep_groups_even(seed):
    g = torch.Generator().manual_seed(seed)
    confidence = (20 * torch.rand(40, generator=g)).round() / 20  # with ties
    groups = torch.randint(4, (40,), generator=g) * torch.randint(2, (40,), generator=g)
    known = torch.randint(1, 9, (5,), generator=g)
    known[3], known[4] = 0, 30
    pairs = list(zip(confidence.tolist(), groups.tolist(), strict=True))

    def size(group: int, threshold: float) -> int:
        return int(known[group]) + sum(c >= threshold and k == group for c, k in pairs)

    present = [0, 1, 2, 4]
    smallest = min(size(group, 0.6) for group in present)
    expected = torch.zeros(40, dtype=torch.bool)
    for group in present:
        candidates = sorted({0.6, *(c for c in confidence.tolist() if c >= 0.6), 2.0})
        fitting = [t for t in candidates if size(group, t) <= smallest]
        if fitting:
            expected |= (confidence >= fitting[0]) & (groups == group)
    assert torch.equal(even_confidence(confidence, groups, known, 0.6), expected)
    assert 0 < int(expected.sum()) < 40


def test_the_predictor_is_at_a_minimum_of_its_objective():
    """At the end, autograd finds no slope in the loss of what is then believed."""
    g = torch.Generator().manual_seed(3)
    classes, other_classes = torch.arange(30) % 2, torch.arange(50) % 2
    groups = 2 * classes + (torch.rand(30, generator=g) < 0.4)
    x = torch.randn(30, 3, generator=g) + groups[:, None] * torch.tensor([0.0, 1.0, -1.0])
    others = 2 * torch.randn(50, 3, generator=g)
    table = torch.tensor([[True, True, False, False], [False, False, True, True]])
    found = fit_group_predictor(
        x,
        groups,
        table[classes],
        others,
        table[other_classes],
        threshold=0.8,
        num_steps=4000,
        penalty=0.05,
    )
    weight, bias = (part.clone().requires_grad_() for part in found)
    z = (x.double() @ weight.T + bias).masked_fill(~table[classes], -1e9)
    z_others = (others.double() @ weight.T + bias).masked_fill(~table[other_classes], -1e9)
    confidence, guesses = z_others.detach().softmax(1).max(1)
    believed = even_confidence(confidence, guesses, torch.bincount(groups, minlength=4), 0.8)
    assert 3 < int(believed.sum()) < 50
    unknown = F.cross_entropy(z_others, guesses, reduction="none")[believed].sum() / 50
    (F.cross_entropy(z, groups) + unknown + 0.025 * weight.square().sum()).backward()
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), atol=1e-4, rtol=0)
    torch.testing.assert_close(bias.grad, torch.zeros_like(bias), atol=1e-4, rtol=0)
