from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_robust.contracts import ContractError
from lightning_robust.functional.subsets import (
    herding,
    k_center,
    keep_by_score,
    proportional_quotas,
    size_of_subset,
    window_by_score,
)

counts_and_total = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)
scores_of = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("fraction", "n", "size"), [(1.0, 60, 60), (0.9, 61, 55), (0.1, 3, 1), (0.5, 9, 4)]
)
def test_sizes(fraction, n, size):
    assert size_of_subset(fraction, n) == size


@settings(deadline=None)
@example([1, 1, 12], 0.1875)
@given(counts_and_total, st.floats(0.001, 1))
def test_quotas(counts, fraction):
    total = size_of_subset(fraction, sum(counts))
    quotas = proportional_quotas(torch.tensor(counts), total).tolist()
    assert sum(quotas) == total
    present = sum(count > 0 for count in counts)
    for count, quota in zip(counts, quotas, strict=True):
        assert 0 <= quota <= count
        if total >= present:
            assert (quota > 0) == (count > 0)
    shares = [count * total / sum(counts) for count in counts]
    if all(share >= 1 or share == 0 for share in shares):  # nobody is helped to one
        for share, quota in zip(shares, quotas, strict=True):
            assert math.floor(share + 1e-9) <= quota <= math.ceil(share - 1e-9)


def test_quotas_of_all_are_all():
    counts = torch.tensor([7, 0, 49, 1, 1000])
    assert torch.equal(proportional_quotas(counts, int(counts.sum())), counts)


def test_quotas_are_the_nearest_to_the_shares():
    """Largest remainders minimise the sum of absolute differences; all quotas are tried."""
    counts, total = [12, 9, 6], 8
    shares = [count * total / 27 for count in counts]
    best = min(
        (q for q in itertools.product(range(9), repeat=3) if sum(q) == total),
        key=lambda q: sum(abs(a - b) for a, b in zip(q, shares, strict=True)),
    )
    assert tuple(proportional_quotas(torch.tensor(counts), total).tolist()) == best


@settings(deadline=None)
@given(scores_of, st.integers(1, 12), st.sampled_from(["highest", "lowest", "middle"]))
def test_what_is_kept_is_a_stretch_of_the_sorted_list(scores, total, keeps):
    total = min(total, len(scores))
    kept = keep_by_score(torch.tensor(scores).float(), total, keeps)
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    below = next(place for place, i in enumerate(order) if kept[i])
    above = len(scores) - total - below
    assert [i for i in order if kept[i]] == order[below : below + total]
    expected = {"highest": above == 0, "lowest": below == 0, "middle": below - above in (0, 1)}
    assert expected[keeps]


def test_classes_are_ranked_among_themselves():
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 0.0])
    classes = torch.tensor([0, 0, 0, 0, 1, 1])
    kept = keep_by_score(scores, 3, "highest", classes)
    assert kept.nonzero().squeeze(1).tolist() == [0, 1, 4]
    assert keep_by_score(scores, 3).nonzero().squeeze(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 1.0])
def test_a_window_slides_down_the_ranking(place):
    scores = torch.randn(21, generator=torch.Generator().manual_seed(0))
    kept = window_by_score(scores, 5, place)
    falling = sorted(range(21), key=lambda i: -scores[i].item())
    start = round(16 * place)
    assert set(kept.nonzero().squeeze(1).tolist()) == set(falling[start : start + 5])


def test_refuses_what_is_not_a_side():
    with pytest.raises(ContractError, match="keeps must be one of"):
        keep_by_score(torch.zeros(2), 1, "best")


def points_of(n: int, seed: int = 0, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_k_center_by_a_double_loop(count):
    points = points_of(20)
    picks = [min(range(20), key=lambda i: float((points[i] - points.mean(0)).norm()))]
    while len(picks) < count:
        distances = {
            i: min(float((points[i] - points[j]).norm()) for j in picks)
            for i in range(20)
            if i not in picks
        }
        picks.append(max(distances, key=lambda i: distances[i]))
    assert k_center(points, count).tolist() == picks


@pytest.mark.parametrize("seed", range(5))
def test_k_center_covers_with_at_most_twice_the_best_radius(seed):
    """Of all subsets of three."""
    distances = torch.cdist(points_of(9, seed), points_of(9, seed))

    def radius(picks):
        return float(distances[list(picks)].amin(0).max())

    best = min(map(radius, itertools.combinations(range(9), 3)))
    assert best <= radius(k_center(points_of(9, seed), 3).tolist()) <= 2 * best


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_herding_by_a_double_loop(count):
    points = points_of(20)
    picks: list[int] = []
    while len(picks) < count:
        gaps = {
            i: float((points[[*picks, i]].mean(0) - points.mean(0)).norm())
            for i in range(20)
            if i not in picks
        }
        picks.append(min(gaps, key=lambda i: gaps[i]))
    assert herding(points, count).tolist() == picks


def test_herding_is_wellings_rule_for_features_of_equal_length():
    """x_t maximises <w, x>, and w grows by mean - x_t, from the mean."""
    points = points_of(40, d=6)
    points = points / points.norm(dim=1, keepdim=True)
    w, picks = points.mean(0), []
    for _ in range(8):
        order = (points @ w).argsort(descending=True).tolist()
        picks.append(next(i for i in order if i not in picks))
        w = w + points.mean(0) - points[picks[-1]]
    assert herding(points, 8).tolist() == picks


@pytest.mark.parametrize("select", [k_center, herding])
def test_equal_features_are_picked_once_each(select):
    assert sorted(select(torch.ones(4, 2), 4).tolist()) == [0, 1, 2, 3]
