"""Selection by loss trajectories against Algorithm 2 written as its loop."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from lightning_robust.contracts import ContractError
from lightning_robust.functional.trajectories import (
    check_trajectories,
    cluster_trajectories,
    load_trajectories,
    select_evenly,
)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def sizes_by_algorithm_2(sizes, budget):
    """Lines 3 to 10: from the smallest cluster to the largest, R_k = (B - |S|) / (K - k + 1)."""
    taken, selected = [], 0
    for k, size in enumerate(sorted(sizes)):
        share = (budget - selected) // (len(sizes) - k)
        taken.append(min(size, share))
        selected += taken[-1]
    return taken


@pytest.mark.parametrize("budget", [1, 7, 40, 66, 67, 100, 150, 151, 500])
def test_quotas_are_those_of_the_algorithm(budget):
    sizes = [3, 50, 11, 1, 86]
    clusters = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
    clusters = clusters[torch.randperm(len(clusters), generator=random())]
    kept = select_evenly(clusters, torch.zeros_like(clusters), budget, random(budget))
    assert int(kept.sum()) == min(budget, 151)
    found = torch.bincount(clusters[kept], minlength=5).tolist()
    assert sorted(found) == sorted(sizes_by_algorithm_2(sizes, budget))


def test_small_clusters_are_a_last_resort():
    """As in the authors' code, with clusters of 1 and 2 against one of 6."""
    clusters = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2, 2])
    zeros = torch.zeros_like(clusters)
    for budget, from_large in ((4, 4), (6, 6), (8, 6)):
        kept = select_evenly(clusters, zeros, budget, random(), min_cluster_size=3)
        assert int(kept.sum()) == budget
        assert int((kept & (clusters == 2)).sum()) == from_large


def test_each_source_gives_an_even_share():
    sources = torch.tensor([0] * 4 + [1] * 20 + [2] * 76)
    clusters = torch.arange(100) // 2
    kept = select_evenly(clusters, sources, 40, random())
    assert torch.bincount(sources[kept]).tolist() == [4, 18, 18]


def test_draws_are_uniform_within_a_cluster():
    clusters = torch.tensor([0] * 4 + [1] * 8)
    counts = torch.zeros(12)
    for seed in range(2000):
        counts += select_evenly(clusters, torch.zeros_like(clusters), 6, random(seed))
    torch.testing.assert_close(counts[:4] / 2000, torch.full((4,), 0.75), atol=0.04, rtol=0)
    torch.testing.assert_close(counts[4:] / 2000, torch.full((8,), 0.375), atol=0.04, rtol=0)


def test_clusters_are_found_within_each_source():
    kinds = torch.arange(120) % 3
    sources = (torch.arange(120) >= 60).long()
    curves = torch.tensor([[3.0, 2.0, 1.0], [3.0, 0.1, 0.1], [3.0, 3.0, 2.9]])[kinds]
    curves = curves + 0.01 * torch.randn(120, 3, generator=random())
    found = cluster_trajectories(curves, 3, sources, random())
    assert adjusted_rand_score(found, kinds + 3 * sources) == 1
    assert found.unique().numel() == 6


def test_more_clusters_than_examples():
    found = cluster_trajectories(
        torch.randn(3, 2, generator=random()), 9, torch.zeros(3).long(), random()
    )
    assert found.unique().numel() == 3


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (torch.zeros(4, 2, dtype=torch.int64), "int64"),
        (torch.zeros(4), r"shape \(4,\)"),
        (torch.zeros(4, 0), r"shape \(4, 0\)"),
        (torch.zeros(3, 2), "3 rows and the training set 4"),
        (torch.tensor([[0.0], [1.0], [torch.nan], [0.0]]), "not finite for example 2"),
    ],
)
def test_refuses_what_cannot_be_trajectories(table, words):
    with pytest.raises(ContractError, match=words):
        check_trajectories(table, 4)


def test_refuses_files_that_hold_something_else(tmp_path):
    with pytest.raises(ContractError, match=r"trajectories=.*no such file"):
        load_trajectories(tmp_path / "none.pt")
    torch.save({"other": 1}, tmp_path / "other.pt")
    with pytest.raises(ContractError, match="holds a dict"):
        load_trajectories(tmp_path / "other.pt")
