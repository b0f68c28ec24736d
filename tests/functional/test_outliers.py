"""The three rules against scikit-learn and double loops."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.metrics import silhouette_score

from lightning_robust.functional.outliers import (
    outvoted,
    small_cluster,
    spectral_scores,
    whitened,
)


def features(n: int = 60, d: int = 7, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=random) @ torch.randn(d, d, generator=random) + 3


def with_a_cluster(n: int, distance: float) -> torch.Tensor:
    """Of 60 points n lie apart."""
    points = features()
    points[:n] += distance * torch.tensor([1.0, -1, 1, -1, 1, -1, 1])
    return points


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_spectral_scores_are_the_first_principal_component_squared():
    points = features()
    expected = PCA(1).fit_transform(points.double().numpy())[:, 0] ** 2
    torch.testing.assert_close(spectral_scores(points), torch.from_numpy(expected))


def test_distances_of_whitened_components_are_those_of_independent_ones():
    points = features()
    ica = FastICA(4, whiten="unit-variance", random_state=0, max_iter=2000, tol=1e-3)
    independent = torch.from_numpy(ica.fit_transform(points.double().numpy()))
    torch.testing.assert_close(
        torch.cdist(whitened(points, 4), whitened(points, 4)), torch.cdist(independent, independent)
    )


def test_features_of_low_rank_have_fewer_components():
    points = features()[:, :2] @ torch.ones(2, 9)
    assert whitened(points, 5).shape == (60, 1)
    assert whitened(torch.ones(4, 3), 5).shape == (4, 0)


@pytest.mark.parametrize("n", [4, 12, 25])
def test_a_small_cluster_is_that_of_scikit_learn(n):
    points = with_a_cluster(n, 30.0)
    reduced = PCA(2, whiten=True).fit_transform(points.double().numpy())
    labels = KMeans(2, n_init=50, random_state=0).fit_predict(reduced)
    small = labels == Counter(labels.tolist()).most_common()[-1][0]
    share, apart = small.mean(), silhouette_score(reduced, labels)
    for threshold in (apart - 0.01, apart + 0.01):
        for size in (share - 0.01, share + 0.01):
            found = small_cluster(points, 2, size, threshold, generator=generator())
            expected = small if size > share and threshold < apart else small & False
            assert found.tolist() == expected.tolist()
    assert small.tolist() == [True] * n + [False] * (60 - n)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_equal_features_are_no_clusters(n):
    same = torch.ones(n, 3)
    assert not small_cluster(same, 10, 0.5, -1.0, generator=generator()).any()
    assert spectral_scores(same).tolist() == [0.0] * n


@pytest.mark.parametrize("k", [1, 2, 5, 19, 59, 500])
def test_outvoted_by_a_double_loop(k):
    points, targets = features(), (torch.arange(60) ** 2) % 5
    expected = []
    for i in range(60):
        near = sorted(
            (j for j in range(60) if j != i), key=lambda j: float((points[i] - points[j]).norm())
        )
        votes = Counter(int(targets[j]) for j in near[:k])
        expected.append(votes[int(targets[i])] < max(votes.values()))
    assert outvoted(points, targets, k).tolist() == expected
    assert any(expected)
    rows = torch.tensor([7, 3, 59])
    assert outvoted(points, targets, k, rows).tolist() == [expected[i] for i in rows]
