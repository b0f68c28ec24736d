"""EPIC's decision against Algorithm 3 written out in loops, and against counts by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_robust.contracts import ContractError
from lightning_robust.functional.isolation import (
    cluster_sizes,
    isolated,
    isolated_examples,
    medoid_budgets,
)


def points(counts: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Softmax minus one-hot of classes of these sizes, shuffled."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    targets = targets[torch.randperm(len(targets), generator=random)]
    logits = 2 * torch.randn(len(targets), len(counts), generator=random, dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(targets, len(counts))
    return (logits + 2 * one_hot).softmax(1) - one_hot, targets


def looped(gradients: Tensor, targets: Tensor, budgets: list[int]) -> set[int]:
    """Algorithm 3, one example at a time: Z, the medoids that stand for themselves only."""
    rows, isolated_ones = gradients.tolist(), set()
    for label, budget in enumerate(budgets):
        members = [i for i, target in enumerate(targets.tolist()) if target == label]
        medoids: list[int] = []
        while len(medoids) < budget:
            costs = {
                e: sum(min(math.dist(rows[i], rows[s]) for s in [*medoids, e]) for i in members)
                for e in members
                if e not in medoids
            }
            medoids.append(min(costs, key=lambda e: costs[e]))
        stands_for = dict.fromkeys(medoids, 0)
        for i in members:
            if medoids:
                stands_for[min(medoids, key=lambda s, i=i: math.dist(rows[i], rows[s]))] += 1
        isolated_ones |= {j for j, count in stands_for.items() if count == 1}
    return isolated_ones


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("counts", "fraction", "budgets"),
    [([60, 40, 20], 0.3, [18, 12, 6]), ([50, 8, 3], 0.3, [15, 2, 1]), ([7, 7], 0.5, [4, 3])],
)
def test_the_rule_is_algorithm_3(counts, fraction, budgets, seed):
    gradients, targets = points(counts, seed)
    assert medoid_budgets(torch.tensor(counts), fraction).tolist() == budgets
    found = isolated_examples(gradients, targets, fraction)
    assert set(found.nonzero().squeeze(1).tolist()) == looped(gradients, targets, budgets)
    assert found.any()


def test_classes_of_unequal_size_are_counted_by_themselves():
    """Where budgets differ, the authors' code counts clusters at wrong offsets."""
    gradients, targets = points([60, 40, 20])
    together = isolated_examples(gradients, targets, 0.3)
    for label, budget in enumerate([18, 12, 6]):
        own = targets == label
        assert torch.equal(together[own], isolated(cluster_sizes(gradients[own], budget)))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=50)
def test_budgets_are_proportional(counts, fraction):
    sizes = torch.tensor(counts)
    budgets = medoid_budgets(sizes, fraction)
    assert (budgets < sizes.clamp(min=1)).all()
    total = math.floor(fraction * sum(counts) + 1e-9)
    assert int(budgets.sum()) <= total
    for count, budget in zip(counts, budgets.tolist(), strict=True):
        exact = total * count / max(1, sum(counts))
        assert math.floor(exact) <= budget <= math.ceil(exact) or budget == max(0, count - 1)


def test_exact_duplicates_are_company():
    gradients = torch.tensor([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0], [5.0, 0.0], [0.0, 9.0]])
    assert cluster_sizes(gradients, 3).tolist() == [2, 2, 2, 2, 1]
    # Medoid 4 and beyond repeat others: nothing becomes isolated by having more of them.
    assert cluster_sizes(gradients, 4).tolist() == [2, 2, 2, 2, 1]
    same = torch.zeros(6, 3)
    assert not isolated(cluster_sizes(same, 5)).any()


@pytest.mark.parametrize("threshold", [1, 2, 100])
@pytest.mark.parametrize("counts", [[1], [1, 1, 30], [2, 30], [3, 0, 4]])
def test_no_class_is_emptied(counts, threshold):
    gradients, targets = points(counts)
    dropped = isolated_examples(gradients, targets, 0.9, threshold)
    left = torch.bincount(targets[~dropped], minlength=len(counts))
    assert ((left > 0) == (torch.tensor(counts) > 0)).all()


def test_a_threshold_drops_whole_clusters():
    gradients = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [9.0]])
    targets = torch.zeros(6, dtype=torch.int64)
    for threshold, kept in ((1, 5), (2, 3), (3, 6)):
        assert int((~isolated_examples(gradients, targets, 0.5, threshold)).sum()) == kept


def test_refuses():
    gradients, targets = points([4, 4])
    with pytest.raises(ContractError, match=r"fraction .* 1\.0"):
        isolated_examples(gradients, targets, 1.0)
    with pytest.raises(ContractError, match="threshold"):
        isolated_examples(gradients, targets, 0.5, 0)
    with pytest.raises(ContractError, match=r"\(8, 2\) and \(7,\)"):
        isolated_examples(gradients, targets[1:], 0.5)
    gradients[3] = float("nan")
    with pytest.raises(ContractError, match="finite"):
        isolated_examples(gradients, targets, 0.5)
