from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_robust.functional.groups import (
    balancing_weights,
    draw_from_groups,
    even_quotas,
    exponentiated_gradient,
    group_sums,
)

ids = st.lists(st.integers(0, 4), min_size=1, max_size=30)


@settings(deadline=None)
@given(ids)
def test_sums_and_counts_are_those_of_a_loop(groups):
    values = [0.5 * i - 3 for i in range(len(groups))]
    sums, counts = group_sums(torch.tensor(values).double(), torch.tensor(groups), 5)
    for group in range(5):
        members = [value for value, g in zip(values, groups, strict=True) if g == group]
        assert counts[group] == len(members)
        assert sums[group].item() == pytest.approx(sum(members), abs=1e-12)


def test_sums_of_nothing_are_zero():
    sums, counts = group_sums(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 3)
    assert sums.tolist() == counts.tolist() == [0, 0, 0]


@settings(deadline=None)
@given(ids)
def test_every_group_that_is_there_gets_the_same_share(groups):
    weights = balancing_weights(torch.tensor(groups), 5)
    present = set(groups)
    assert weights.mean().item() == pytest.approx(1, rel=1e-12)
    for group in present:
        mine = [w for w, g in zip(weights.tolist(), groups, strict=True) if g == group]
        assert sum(mine) / weights.sum().item() == pytest.approx(1 / len(present), rel=1e-12)
        assert max(mine) == min(mine)


@pytest.mark.parametrize("number", range(1, 13))
def test_balanced_groups_weigh_exactly_one(number):
    """Exactly: a plan of ones is played without replacement."""
    for size in (1, 3, 7, 49, 1000):
        groups = torch.arange(number).repeat(size)
        assert (balancing_weights(groups, number + 2) == 1).all()


def test_one_step_of_the_ascent_by_hand():
    q = [0.2, 0.5, 0.3]
    losses = [1.5, 0.25, 4.0]
    raised = [q[0] * math.exp(0.1 * 1.5), q[1] * math.exp(0.1 * 0.25), q[2]]  # group 2 is absent
    expected = [value / sum(raised) for value in raised]
    found = exponentiated_gradient(
        torch.tensor(q, dtype=torch.float64),
        torch.tensor(losses, dtype=torch.float64),
        0.1,
        torch.tensor([True, True, False]),
    )
    assert found.tolist() == pytest.approx(expected, rel=1e-14)


def test_the_numbers_of_the_authors_code_with_adjustment():
    """q after one batch of the authors' code: eta 0.01, C = 1, group sizes [5, 1, 2, 4].

    Losses are taken back from that q, so this pins how q and C / sqrt(n_g) enter.
    """
    q = torch.tensor([0.2470173, 0.2494321, 0.2492642, 0.2542864], dtype=torch.float64)
    adjusted = (q / 0.25).log() / 0.01
    adjusted = adjusted - adjusted.mean()
    found = exponentiated_gradient(
        torch.full((4,), 0.25, dtype=torch.float64), adjusted, 0.01, torch.ones(4, dtype=torch.bool)
    )
    assert torch.allclose(found, q / q.sum(), rtol=1e-12)


def test_huge_losses_do_not_overflow():
    found = exponentiated_gradient(
        torch.tensor([0.5, 0.5]), torch.tensor([1e6, 1e6 + 1]), 1.0, torch.tensor([True, True])
    )
    assert torch.allclose(found, F.softmax(torch.tensor([0.0, 1.0]), 0))


def test_a_group_without_mass_stays_without():
    found = exponentiated_gradient(
        torch.tensor([1.0, 0.0]), torch.tensor([0.0, 50.0]), 1.0, torch.tensor([True, True])
    )
    assert found.tolist() == [1, 0]


def test_a_step_of_zero_changes_nothing():
    q = torch.tensor([0.25, 0.25, 0.5])
    found = exponentiated_gradient(q, torch.rand(3), 0.0, torch.tensor([True, False, True]))
    assert torch.equal(found, q)


@settings(deadline=None)
@given(ids, st.lists(st.integers(0, 12), min_size=5, max_size=5), st.integers(0, 9))
def test_draws_what_is_asked_of_each_group(groups, sizes, seed):
    kept = draw_from_groups(
        torch.tensor(groups), torch.tensor(sizes), torch.Generator().manual_seed(seed)
    )
    drawn = [groups[i] for i in range(len(groups)) if kept[i]]
    for group in range(5):
        assert drawn.count(group) == min(groups.count(group), sizes[group])


def test_draws_are_uniform_inside_a_group():
    groups = torch.tensor([0, 1, 0, 1, 1, 0, 0])
    g = torch.Generator().manual_seed(0)
    kept = sum(draw_from_groups(groups, torch.tensor([1, 2]), g).double() for _ in range(4000))
    expected = torch.where(groups == 0, 1 / 4, 2 / 3)
    # four standard deviations of a share of 4,000 draws
    assert torch.allclose(kept / 4000, expected.double(), atol=0.03)


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.integers(0, 40), st.integers(0, 9))
def test_even_quotas_deal_one_at_a_time(available, total, seed):
    """As if cards were dealt round and round to whoever can still take one."""
    quotas = even_quotas(torch.tensor(available), total, torch.Generator().manual_seed(seed))
    dealt, left = [0] * len(available), min(total, sum(available))
    while left:
        open_places = [i for i in range(len(available)) if dealt[i] < available[i]]
        for i in sorted(open_places, key=lambda i: -available[i])[:left]:
            dealt[i] += 1
        left = min(total, sum(available)) - sum(dealt)
    assert sorted(quotas.tolist()) == sorted(dealt)
    assert all(q <= a for q, a in zip(quotas.tolist(), available, strict=True))
