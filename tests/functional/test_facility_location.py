from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_robust.contracts import ContractError
from lightning_robust.functional.facility_location import (
    Medoids,
    _in_rounds,
    _one_by_one,
    facility_location,
    facility_location_batch,
    greedi,
)

SIMILARITIES = ["euclidean", "exp"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def similarities(features: Tensor, similarity: str = "euclidean") -> np.ndarray:
    """The definition, from differences of coordinates."""
    x = features.double().numpy()
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=-1))
    if similarity == "exp":
        return np.exp(-distances / x.shape[1])
    return 2 * np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1)).max() - distances


def naive(features: Tensor, k: int, similarity: str = "euclidean") -> Medoids:
    """Every gain at every pick; gains and similarities within 1e-9 of the largest are ties."""
    similar = similarities(features, similarity)
    tie = 1e-9 * similar.max()
    best, assignment = np.zeros(len(similar)), np.zeros(len(similar), dtype=np.int64)
    picks: list[int] = []
    gains = []
    for position in range(min(k, len(similar))):
        gain = np.maximum(similar - best[:, None], 0).sum(axis=0)
        gain[picks] = -np.inf
        picks.append(int(np.flatnonzero(gain >= gain.max() - tie)[0]))
        gains.append(float(gain[picks[-1]]))
        if position:
            assignment[similar[:, picks[-1]] > best + tie] = position
        best = np.maximum(best, similar[:, picks[-1]])
    assigned = torch.from_numpy(assignment)
    weights = torch.bincount(assigned, minlength=len(picks))
    return Medoids(torch.tensor(picks), torch.tensor(gains, dtype=torch.float64), assigned, weights)


def assert_equal(found: Medoids, wanted: Medoids, scale: float, rel: float = 1e-9) -> None:
    assert found.indices.tolist() == wanted.indices.tolist()
    assert found.assignment.tolist() == wanted.assignment.tolist()
    assert found.weights.tolist() == wanted.weights.tolist()
    assert found.gains.tolist() == pytest.approx(wanted.gains.tolist(), abs=rel * scale)


def problem(kind: str, n: int, d: int, generator: torch.Generator) -> Tensor:
    if kind == "grid":  # many equal distances, and equal rows
        return torch.randint(4, (n, d), generator=generator).double()
    features = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if kind == "repeated":
        return features[torch.randint(n, (n,), generator=generator)]
    if kind == "dense":  # most examples close together and away from the mean, as if learned
        features[: n - n // 5] = 1e-3 * features[: n - n // 5] + 1
    return features


KINDS = ["normal", "repeated", "grid", "dense"]


# --- greedy picks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_picks_are_those_of_the_naive_algorithm(kind: str, similarity: str) -> None:
    generator = seeded(KINDS.index(kind))
    for _ in range(150):
        n, d = (int(torch.randint(1, high, (), generator=generator)) for high in (40, 5))
        k = int(torch.randint(1, n + 3, (), generator=generator))
        features = problem(kind, n, d, generator)
        found = facility_location(features, k, similarity=similarity)
        scale = n * similarities(features, similarity).max()
        assert_equal(found, naive(features, k, similarity), scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_picks_over_several_tiles(kind: str, similarity: str, dtype: torch.dtype) -> None:
    features = problem(kind, 1100, 3, seeded(5))
    found = facility_location(features, 120, similarity=similarity, dtype=dtype)
    scale = 1100 * similarities(features, similarity).max()
    assert_equal(found, naive(features, 120, similarity), scale)


@pytest.mark.parametrize(
    ("similarity", "gains"),
    [
        ("exp", [18.158, 1.911, 0.951, 0.732, 0.660, 0.571]),  # submodlib's
        ("euclidean", None),
    ],
)
def test_golden_picks(similarity: str, gains: list[float] | None) -> None:
    features = torch.from_numpy(np.random.RandomState(0).randn(30, 4))
    found = facility_location(features, 6, similarity=similarity)
    assert found.indices.tolist() == [3, 19, 28, 6, 7, 20]
    if gains:
        assert found.gains.tolist() == pytest.approx(gains, abs=5e-4)


def test_golden_crest_class() -> None:
    """Class 0 of CREST's example: submodlib's picks but for ties, and its weights."""
    noise = 2 * np.random.RandomState(0).randn(500, 10)
    labels = np.repeat(np.arange(10), 50)
    noise[np.arange(500), labels] += 2
    logits = torch.from_numpy(noise)
    gradients = logits.softmax(1) - torch.nn.functional.one_hot(torch.from_numpy(labels))
    found = facility_location(gradients[:50].float(), 13, similarity="exp")
    # 45 and 46, and 14 and 49, are each other's nearest: submodlib picks the larger of the two.
    assert found.indices.tolist() == [37, 5, 17, 2, 19, 45, 16, 35, 26, 9, 4, 18, 14]
    assert found.weights.tolist() == [5, 5, 9, 3, 3, 2, 4, 4, 8, 3, 1, 1, 2]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("seed", range(5))
def test_objective_is_near_the_best_of_all_sets(seed: int, similarity: str) -> None:
    features = torch.randn(9, 2, generator=seeded(seed), dtype=torch.float64)
    similar = similarities(features, similarity)
    for k in (1, 2, 3):
        sets = itertools.combinations(range(9), k)
        best = max(similar[:, list(some)].max(axis=1).sum() for some in sets)
        found = facility_location(features, k, similarity=similarity)
        reached = similar[:, found.indices.tolist()].max(axis=1).sum()
        assert found.gains.sum() == pytest.approx(reached)
        assert reached >= (1 - 1 / math.e) * best
        if k == 1:
            assert reached == pytest.approx(best)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_single_precision_is_safe_from_cancellation(shift: float) -> None:
    """Close pairs far from the origin, and a gap a million times as wide."""
    features = torch.rand(600, 4, generator=seeded(), dtype=torch.float64).float()
    features = torch.cat([features, 1e-3 * features + 40]).float() + shift
    found = facility_location(features, 400)
    wanted = naive(features, 400)
    assert found.indices.tolist() == wanted.indices.tolist()
    assert torch.allclose(found.gains, wanted.gains, rtol=1e-7, atol=1e-6)


def test_ignores_the_order_of_untied_examples() -> None:
    features = torch.randn(700, 6, generator=seeded(3))
    order = torch.randperm(700, generator=seeded(4))
    one, other = facility_location(features, 90), facility_location(features[order], 90)
    assert torch.equal(one.weights, other.weights)
    assert torch.equal(one.assignment[order], other.assignment)
    assert torch.allclose(one.gains, other.gains)


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_one_example(similarity: str) -> None:
    found = facility_location(torch.tensor([[3.0, 4.0]]), 5, similarity=similarity)
    assert found.indices.tolist() == found.assignment.tolist() == [0]
    assert found.weights.tolist() == [1]
    assert found.gains.tolist() == [1.0 if similarity == "exp" else 0.0]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equal_rows_are_all_assigned_to_the_first(similarity: str) -> None:
    found = facility_location(torch.full((200, 3), 0.1), 90, similarity=similarity)
    assert found.indices.tolist() == list(range(90))
    assert found.weights.tolist() == [200] + [0] * 89
    assert found.gains[1:].tolist() == [0.0] * 89


def test_every_example_is_picked_when_k_is_large() -> None:
    features = torch.randn(40, 2, generator=seeded())
    found = facility_location(features, 1000)
    assert sorted(found.indices.tolist()) == list(range(40))
    assert found.weights.tolist() == [1] * 40
    assert found.assignment[found.indices].tolist() == list(range(40))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_takes_any_real_type(dtype: torch.dtype) -> None:
    features = (10 * torch.randn(60, 2, generator=seeded())).to(dtype)
    scale = 60 * similarities(features).max()
    assert_equal(facility_location(features, 9), naive(features, 9), scale)


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_any_magnitude(magnitude: float) -> None:
    features = torch.randn(60, 2, generator=seeded())
    found = facility_location(features * magnitude, 9)
    wanted = facility_location(features, 9)
    assert torch.equal(found.indices, wanted.indices)
    assert torch.allclose(found.gains / magnitude, wanted.gains, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be an integer >= 1, got 0"),
        ({"k": 2.0}, "k must be an integer"),
        ({"features": torch.zeros(4)}, r"features must be .* got shape \(4,\)"),
        ({"features": torch.zeros(0, 2)}, "features must be"),
        ({"features": torch.zeros(3, 0)}, "features must be"),
        (
            {"features": torch.tensor([[0.0], [math.nan]])},
            "1 of 2 rows are not, the first is row 1",
        ),
        ({"features": torch.tensor([[math.inf], [0.0]])}, "the first is row 0"),
        ({"similarity": "cosine"}, "similarity must be one of 'euclidean', 'exp'"),
        ({"dtype": torch.float16}, "dtype must be one of"),
        ({"method": "lazy"}, "method must be one of 'exact', 'stochastic'"),
        ({"method": "stochastic"}, "generator must be given"),
        ({"fraction": 0.5}, "generator must be given"),
        ({"fraction": 0.0}, "fraction must be"),
        ({"epsilon": 0.0}, "epsilon must be"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    arguments = {"features": torch.zeros(4, 2), "k": 2} | change
    with pytest.raises(ContractError, match=message):
        facility_location(**arguments)


# --- random candidates, parts, batches ------------------------------------------------------------


def random_objective(features: Tensor, k: int) -> float:
    similar = similarities(features)
    return float(similar[:, torch.randperm(len(features), generator=seeded(9))[:k]].max(1).sum())


@pytest.mark.parametrize(
    ("options", "least"), [({"method": "stochastic"}, 0.95), ({"fraction": 0.5}, 0.97)]
)
def test_random_candidates(options: dict[str, object], least: float) -> None:
    features = torch.randn(400, 3, generator=seeded(1), dtype=torch.float64)
    similar = similarities(features)
    exact = float(facility_location(features, 40).gains.sum())
    before = torch.get_rng_state()
    found = facility_location(features, 40, generator=seeded(2), **options)
    again = facility_location(features, 40, generator=seeded(2), **options)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found.indices, again.indices)
    assert len(set(found.indices.tolist())) == 40
    reached = similar[:, found.indices]
    assert float(found.gains.sum()) == pytest.approx(reached.max(axis=1).sum())
    assert found.assignment.tolist() == reached.argmax(axis=1).tolist()
    assert found.weights.tolist() == torch.bincount(found.assignment, minlength=40).tolist()
    assert max(least * exact, random_objective(features, 40)) < float(found.gains.sum()) <= exact


def test_stochastic_picks_among_all_candidates_are_exact() -> None:
    features = problem("grid", 50, 3, seeded())
    found = facility_location(features, 20, method="stochastic", generator=seeded(), epsilon=1e-9)
    assert_equal(found, naive(features, 20), 50 * 4)


def test_greedi_of_one_part_picks_the_same() -> None:
    features = problem("repeated", 60, 3, seeded())
    found, wanted = greedi([features], 20), facility_location(features, 20)
    assert sorted(found.indices.tolist()) == sorted(wanted.indices.tolist())
    assert float(found.gains.sum()) == pytest.approx(float(wanted.gains.sum()))


def test_greedi_of_several_parts() -> None:
    features = torch.randn(400, 3, generator=seeded(1), dtype=torch.float64)
    similar = similarities(features)
    exact = float(facility_location(features, 40).gains.sum())
    found = greedi(features.split([90, 150, 10, 150]), 40)
    assert len(set(found.indices.tolist())) == 40
    reached = similar[:, found.indices]
    assert float(found.gains.sum()) == pytest.approx(reached.max(axis=1).sum())
    assert found.assignment.tolist() == reached.argmax(axis=1).tolist()
    assert 0.98 * exact < float(found.gains.sum()) <= exact


def test_greedi_picks_everything_when_k_is_large() -> None:
    features = torch.randn(9, 3, generator=seeded())
    assert sorted(greedi(features.split(4), 20).indices.tolist()) == list(range(9))


def test_greedi_refuses_no_parts() -> None:
    with pytest.raises(ContractError, match="the number of parts must be"):
        greedi([], 3)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 30, 2), (2, 600, 4)])
def test_batch_picks_are_those_of_each_problem(
    shape: tuple[int, int, int], kind: str, similarity: str
) -> None:
    generator = seeded(6)
    features = torch.stack([problem(kind, *shape[1:], generator) for _ in range(shape[0])])
    found = facility_location_batch(features, 25, similarity=similarity)
    for p, part in enumerate(features):
        one = Medoids(found.indices[p], found.gains[p], found.assignment[p], found.weights[p])
        scale = shape[1] * similarities(part, similarity).max()
        assert_equal(one, facility_location(part, 25, similarity=similarity), scale)


@pytest.mark.parametrize("k", [1, 20, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_an_accelerator_picks_the_same(kind: str, k: int) -> None:
    features = torch.stack([problem(kind, 90, 3, seeded(number)) for number in range(3)])
    losses = torch.cdist(features, features)
    nearest = losses.amax(dim=(1, 2))[:, None].expand(3, 90).clone()
    together = _in_rounds(losses, nearest.clone(), k)
    for picks, gains, assignment, *one in zip(*together, losses, nearest, strict=True):
        wanted = _one_by_one(*one, k)
        assert picks.tolist() == wanted[0].tolist()
        torch.testing.assert_close(gains, wanted[1])
        assert assignment.tolist() == wanted[2].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_batch_reaches_the_objective(kind: str) -> None:
    generator = seeded(7)
    features = torch.stack([problem(kind, 300, 3, generator) for _ in range(3)])
    found = facility_location_batch(features, 40, dtype=torch.float32)
    for picks, part in zip(found.indices, features, strict=True):
        similar = similarities(part)
        reached = similar[:, picks.tolist()].max(axis=1).sum()
        assert reached == pytest.approx(float(naive(part, 40).gains.sum()), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_features(dtype: torch.dtype) -> None:
    features = torch.randn(1500, 60, generator=seeded(8), dtype=torch.float64)
    found = facility_location(features, 30, dtype=dtype)
    wanted = naive(features, 30)
    assert float(found.gains.sum()) == pytest.approx(float(wanted.gains.sum()), rel=1e-4)
    if dtype == torch.float64:
        assert_equal(found, wanted, 1500 * similarities(features).max())


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(4, 2), r"\(P, r, d\)"),
        (torch.zeros(4, 0, 2), r"\(P, r, d\)"),
        (torch.full((2, 3, 4), math.nan), "features must be finite"),
    ],
)
def test_batch_refuses(features: Tensor, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        facility_location_batch(features, 2)
