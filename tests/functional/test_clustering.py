from __future__ import annotations

import itertools
import math
import resource

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as ReferenceKMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import silhouette_samples, silhouette_score
from torch import Tensor

from lightning_robust.contracts import ContractError
from lightning_robust.functional import clustering
from lightning_robust.functional.clustering import (
    choose_num_clusters,
    cluster_by_class,
    cluster_sampling_weights,
    cluster_silhouettes,
    kmeans,
    matched_recall,
    sampling_powers,
    silhouette,
    subclasses,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def blobs(n: int, centers: int, features: int = 2, std: float = 1.0, seed: int = 0) -> Tensor:
    points, _ = make_blobs(
        n, n_features=features, centers=centers, cluster_std=std, random_state=seed
    )
    return torch.from_numpy(points).float()


def softmax_outputs(n: int, classes: int, seed: int = 0) -> Tensor:
    """Softmax of a class whose minority (5 %) the network takes for another class."""
    logits = normal(n, classes, seed=seed)
    logits[:, 0] += 3
    logits[: n // 20, 0] -= 3
    logits[: n // 20, 1] += 4
    return (1.5 * logits).softmax(1)


def partition_inertia(points: Tensor, assignment: Tensor) -> float:
    clusters = [points[assignment == c].double() for c in assignment.unique()]
    return sum(float((part - part.mean(0)).square().sum()) for part in clusters)


def looped_silhouettes(points: Tensor, assignment: Tensor) -> list[float]:
    """The definition, point by point."""
    rows, labels = points.double().tolist(), assignment.tolist()
    values = []
    for i, row in enumerate(rows):
        distances: dict[int, list[float]] = {}
        for j, other in enumerate(rows):
            if i != j:
                distances.setdefault(labels[j], []).append(math.dist(row, other))
        own = distances.pop(labels[i], [])
        if not own or not distances:
            values.append(0.0)
            continue
        a = sum(own) / len(own)
        b = min(sum(others) / len(others) for others in distances.values())
        values.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return values


# --- k-means --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_kmeans_finds_the_best_of_all_partitions(seed: int, k: int) -> None:
    points = normal(7, 2, seed=seed)
    partitions = itertools.product(range(k), repeat=7)
    best = min(partition_inertia(points, torch.tensor(p)) for p in partitions)
    found = kmeans(points, k, generator=seeded(seed))
    assert found.inertia == pytest.approx(best, rel=1e-6)
    assert partition_inertia(points, found.assignment) == pytest.approx(best, rel=1e-6)


def test_kmeans_is_as_good_as_sklearn() -> None:
    sets = [
        blobs(600, 8, 5, 1.5),
        softmax_outputs(1000, 2),
        softmax_outputs(1000, 10),
        normal(100, 10),
        normal(400, 50),
        softmax_outputs(20_000, 3),  # beyond the size of the coreset
        blobs(20_000, 8, 5, 1.5),
    ]
    ratios = []
    for points, k in itertools.product(sets, (2, 5, 9)):
        reference = ReferenceKMeans(k, n_init=10, random_state=0).fit(points.double().numpy())
        ratios.append(kmeans(points, k, generator=seeded(k)).inertia / reference.inertia_)
    assert np.mean(ratios) < 1.004
    assert max(ratios) < 1.03


@pytest.mark.parametrize("n", [300, 20_000])
def test_kmeans_parts_agree_with_each_other(n: int) -> None:
    points = softmax_outputs(n, 3)
    found = kmeans(points, 4, generator=seeded())
    distances = torch.cdist(points.double(), found.centres)
    assert torch.equal(found.assignment, distances.argmin(1))
    assert found.inertia == pytest.approx(float(distances.amin(1).square().sum()), rel=1e-9)
    sizes = torch.bincount(found.assignment)
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    assert int(sizes.sum()) == n
    means = torch.stack([points[found.assignment == c].double().mean(0) for c in range(4)])
    # Converged: the next step moves the centres by less than scikit-learn's tolerance.
    assert (found.centres - means).square().sum() <= 1e-4 * points.var(0).mean()


@pytest.mark.parametrize("n", [300, 9_000])
def test_kmeans_is_a_function_of_its_arguments(n: int) -> None:
    points = normal(n, 4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (kmeans(points, 7, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first.assignment, again.assignment)
    assert torch.equal(first.centres, again.centres)
    assert first.inertia == again.inertia
    assert not torch.equal(first.centres, other.centres)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("distinct", [1, 2, 3])
@pytest.mark.parametrize("n", [3, 50, 9_000])
def test_kmeans_with_fewer_distinct_points_than_clusters(n: int, distinct: int) -> None:
    places = normal(distinct, 5, seed=3) + 7
    place = torch.arange(n) % distinct
    found = kmeans(places[place], 6, generator=seeded())
    assert len(found.centres) == distinct
    assert found.inertia == pytest.approx(0.0, abs=1e-12)
    pairs = torch.unique(torch.stack([place, found.assignment]), dim=1)
    assert pairs.shape[1] == distinct
    assert torch.allclose(found.centres[found.assignment], places[place].double())


def test_seeds_are_distinct() -> None:
    points = normal(3, 5).double()[torch.arange(12) % 3]
    seeds = clustering._seeds(points, torch.ones_like(points[:, 0]), 8, 4, seeded())
    assert seeds.shape == (4, 3, 5)
    for row in seeds:
        assert len(row.unique(dim=0)) == 3


def test_coreset_stands_for_all_points() -> None:
    points = blobs(100_000, 3)
    points[:20] *= 30
    frame = clustering._Frame.of(points)
    x = frame(points)
    far = (x - x.mean(0)).square().sum(1)
    coreset, weights = clustering._coreset(points, frame, far, seeded())
    assert len(coreset) == len(weights) < 10_000
    assert float(weights.sum()) == pytest.approx(100_000, rel=0.05)
    assert (weights @ coreset / weights.sum() - x.mean(0)).abs().max() < 0.002
    spread = weights @ (coreset - x.mean(0)).square().sum(1)
    assert float(spread) == pytest.approx(float(far.sum()), rel=0.05)


def test_a_centre_without_points_stays() -> None:
    points = torch.tensor([[0.0], [0.1], [1.0]], dtype=torch.float64)
    centres = torch.tensor([[[0.0], [0.9], [7.0]]], dtype=torch.float64)
    found = clustering._lloyd(lambda: [(points, torch.ones_like(points[:, 0]))], centres, 0.0)
    assert found.flatten().tolist() == pytest.approx([0.05, 1.0, 7.0])


def test_kmeans_of_one_point() -> None:
    found = kmeans(torch.tensor([[3.0, -1.0]]), 4, generator=seeded())
    assert found.assignment.tolist() == [0]
    assert found.centres.tolist() == [[3.0, -1.0]]
    assert found.inertia == 0.0


def test_kmeans_sees_few_far_points_among_many() -> None:
    points = torch.zeros(60_000, 2)
    points[[7, 30_000, 59_999]] = torch.tensor([1.0, 1.0])
    found = kmeans(points, 2, generator=seeded())
    assert found.assignment.nonzero().flatten().tolist() == [7, 30_000, 59_999]


def test_kmeans_splits_a_tight_clump_far_from_the_origin() -> None:
    offsets = torch.tensor([0.0, 1e-5, 2e-5, 9e-5, 10e-5], dtype=torch.float64)[:, None]
    points = torch.cat([offsets + 50.0, torch.zeros(1, 1, dtype=torch.float64)])
    found = kmeans(points, 3, generator=seeded())
    assert found.assignment.tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("points", "k", "message"),
    [
        (torch.zeros(5), 2, r"points must be real, one row .* got shape \(5,\)"),
        (torch.zeros(0, 2), 2, r"got shape \(0, 2\)"),
        (torch.tensor([[0.0], [math.nan], [math.inf]]), 2, "2 of 3 rows are not, .* row 1"),
        (torch.zeros(5, 2), 0, "k must be an integer >= 1, got 0"),
    ],
)
def test_kmeans_refuses(points: Tensor, k: int, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        kmeans(points, k, generator=seeded())


# --- silhouettes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(40, 1), (1300, 2), (700, 30)])
def test_silhouette_is_sklearns(n: int, d: int, dtype: torch.dtype) -> None:
    points = (normal(n, d) + 5).to(dtype)
    generator = seeded(1)
    assignments = [torch.randint(k, (n,), generator=generator) for k in (2, 3, 9)]
    assignments += [kmeans(points, k, generator=generator).assignment for k in (2, 5)]
    singletons = torch.zeros(n, dtype=torch.int64)
    singletons[:2] = torch.tensor([4, 9])  # and labels that leave gaps
    assignments.append(singletons)
    found = silhouette(points, torch.stack(assignments), generator=generator)
    for value, assignment in zip(found.tolist(), assignments, strict=True):
        reference = silhouette_score(points.double().numpy(), assignment.numpy())
        assert value == pytest.approx(reference, abs=1e-5)


def test_silhouette_does_not_depend_on_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs(230, 4)
    assignments = torch.stack([torch.arange(230) % 3, (points[:, 0] > 0).long()])
    references = [silhouette_score(points.double(), row) for row in assignments.numpy()]
    for tile in (1, 7, 50, 230, 300):
        monkeypatch.setattr(clustering, "_TILE", tile)
        found = silhouette(points, assignments, generator=seeded())
        assert found.tolist() == pytest.approx(references, abs=1e-6)


def test_silhouette_of_duplicates_follows_the_definition() -> None:
    place, copy = torch.arange(24) % 6, torch.arange(24) // 6
    points = normal(6, 7)[place]
    assignments = torch.stack(
        [
            place,
            2 * place + copy % 2,  # places split over two clusters: a = b = 0
            torch.arange(24),  # singletons only
            copy,
            (place == 2).long(),
        ]
    )
    expected = [np.mean(looped_silhouettes(points, row)) for row in assignments]
    assert expected[:3] == [1.0, 0.0, 0.0]
    found = silhouette(points, assignments, generator=seeded()).tolist()
    assert found[:3] == expected[:3]
    assert found[3:] == pytest.approx(expected[3:], abs=1e-6)


def test_silhouette_of_tight_clumps_far_apart() -> None:
    # In float32 products of these coordinates the distances within a clump would drown.
    points = normal(120, 2).double() * 1e-4
    points[60:] += 1.0
    points[110:] += 3e-4
    labels = torch.zeros(120, dtype=torch.int64)
    labels[60:], labels[110:] = 1, 2
    found = float(silhouette(points + 100, labels, generator=seeded()))
    assert found == pytest.approx(np.mean(looped_silhouettes(points, labels)), abs=1e-5)


def test_silhouette_does_not_depend_on_matmul_precision() -> None:
    points, labels = blobs(500, 3), torch.arange(500) % 4
    expected = silhouette_score(points.double().numpy(), labels.numpy())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert float(silhouette(points, labels, generator=seeded())) == pytest.approx(expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_silhouette_of_a_single_cluster_is_zero() -> None:
    points = normal(10, 2)
    assignments = torch.stack([torch.zeros(10, dtype=torch.int64), torch.arange(10) % 2])
    found = silhouette(points, assignments, generator=seeded())
    assert found[0] == 0
    assert found[1] != 0
    assert float(silhouette(points[:1], assignments[0, :1], generator=seeded())) == 0
    assert float(silhouette(torch.ones(9, 2), torch.arange(9) % 3, generator=seeded())) == 0


def test_silhouette_keeps_the_shape_of_the_assignments() -> None:
    points, assignments = normal(20, 2), torch.randint(3, (2, 4, 20), generator=seeded())
    found = silhouette(points, assignments, generator=seeded())
    assert found.shape == (2, 4)
    one = silhouette(points, assignments[1, 2], generator=seeded())
    assert one.shape == ()
    assert float(found[1, 2]) == pytest.approx(float(one), abs=1e-7)


@pytest.mark.parametrize("make", [softmax_outputs, blobs], ids=["softmax", "blobs"])
def test_sampled_silhouette_is_close_and_beats_plain_sampling(make) -> None:  # type: ignore[no-untyped-def]
    points = make(21_000, 6)
    assignments = torch.stack(
        [kmeans(points, k, generator=seeded(k)).assignment for k in (2, 4, 6)]
    )
    exact = silhouette(points, assignments, generator=seeded(), exact=True)
    generator = seeded(1)
    sampled = torch.stack(
        [silhouette(points, assignments, generator=generator, exact_up_to=0) for _ in range(6)]
    )
    errors = (sampled - exact).abs()
    assert 0 < errors.max() < 0.005
    # The values of a few hundred points, exact, give the error of a plain sample of the same size.
    some = slice(0, 21_000, 70)
    for assignment, error in zip(assignments, errors.square().mean(0).sqrt(), strict=True):
        values = silhouette_samples(points[some].double(), assignment[some])
        assert error < 0.5 * values.std() / math.sqrt(4_000)


def test_sampled_silhouette_is_right_on_average() -> None:
    points = blobs(600, 4, std=2.0)
    assignment = kmeans(points, 4, generator=seeded()).assignment
    exact = float(silhouette(points, assignment, generator=seeded()))
    generator = seeded(2)
    sampled = torch.stack(
        [
            silhouette(points, assignment, generator=generator, exact_up_to=0, sample=60)
            for _ in range(300)
        ]
    )
    assert sampled.std() > 0
    assert abs(float(sampled.mean()) - exact) < 4 * float(sampled.std()) / math.sqrt(300) + 1e-3


def test_silhouette_is_exact_where_the_sample_is_everything() -> None:
    points, assignment = normal(300, 2), torch.arange(300) % 3
    values = [
        float(silhouette(points, assignment, generator=seeded(), **options))
        for options in ({}, {"exact": True}, {"exact_up_to": 0}, {"exact_up_to": 0, "sample": 300})
    ]
    assert values == [values[0]] * 4


def test_silhouette_needs_memory_in_proportion_to_n() -> None:
    n = 16_000  # a square matrix in float32 takes 1 GB
    points = normal(n, 2)
    assignments = torch.stack([torch.arange(n) % 2, torch.arange(n) % 7])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    silhouette(points, assignments, generator=seeded(), exact=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB


@pytest.mark.parametrize(
    ("assignments", "options", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), {}, r"each of the 5 points .* shape \(4,\)"),
        (torch.zeros(0, 5, dtype=torch.int64), {}, r"assignments must hold .* shape \(0, 5\)"),
        (torch.zeros(5), {}, "assignments must hold one integer .* of torch.float32"),
        (torch.zeros(5, dtype=torch.int64), {"sample": 1}, "sample must be an integer >= 2"),
    ],
)
def test_silhouette_refuses(assignments: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        silhouette(normal(5, 2), assignments, generator=seeded(), **options)


# --- the number of clusters -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [300, 21_000])
@pytest.mark.parametrize("true", [2, 4, 7])
def test_choice_finds_the_number_of_blobs(n: int, true: int) -> None:
    angles = 2 * math.pi * torch.arange(true) / true
    centres = 10 * torch.stack([angles.cos(), angles.sin()], 1)
    points = centres[torch.arange(n) % true] + normal(n, 2)
    choice = choose_num_clusters(points, range(2, 10), generator=seeded())
    assert choice.k == true == len(choice.clustering.centres)
    assert list(choice.silhouettes) == list(range(2, 10))
    assert max(choice.silhouettes, key=choice.silhouettes.__getitem__) == true
    if n == 300:
        reference = silhouette_score(points.double(), choice.clustering.assignment)
        assert choice.silhouettes[true] == pytest.approx(reference, abs=1e-5)


def test_choice_of_equal_silhouettes_is_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    equal = torch.tensor([0.3, 0.5, 0.5 + 1e-12, 0.5, 0.4], dtype=torch.float64)
    monkeypatch.setattr(clustering, "silhouette", lambda *_, **__: equal)
    choice = choose_num_clusters(normal(50, 2), [6, 5, 4, 3, 2], generator=seeded())
    assert choice.k == 3


def test_choice_with_fewer_distinct_points_than_candidates() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0]])[torch.arange(30) % 3]
    choice = choose_num_clusters(points, [6, 5, 4, 3], generator=seeded())
    assert choice.k == 3
    assert choice.silhouettes == pytest.approx({3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0})


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_choice_among_few_points(n: int) -> None:
    choice = choose_num_clusters(normal(n, 2), range(2, 11), generator=seeded())
    assert choice.k <= max(1, n - 1)
    assert list(choice.silhouettes) == (list(range(2, n)) or [1])


def test_choice_refuses_bad_candidates() -> None:
    with pytest.raises(ContractError, match="candidates must be an integer >= 1, got 0"):
        choose_num_clusters(normal(5, 2), [2, 0], generator=seeded())
    with pytest.raises(ContractError, match="candidates"):
        choose_num_clusters(normal(5, 2), [], generator=seeded())


# --- clusters within classes ----------------------------------------------------------------------


def classes_with_two_and_three_blobs() -> tuple[Tensor, Tensor]:
    """Class 9 has three well-separated blobs, class 4 two that overlap; 9 comes first."""
    well = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])[torch.arange(60) % 3]
    badly = torch.tensor([[0.0, 0.0], [4.0, 0.0]])[torch.arange(80) % 2]
    points = torch.cat([well, badly]) + normal(140, 2)
    return points, torch.tensor([9] * 60 + [4] * 80)


def test_clusters_are_those_of_each_class() -> None:
    points, targets = classes_with_two_and_three_blobs()
    found = cluster_by_class(points, targets, generator=seeded())
    assert found.num_clusters == {4: 2, 9: 3}
    assert found.classes.tolist() == [4, 4, 9, 9, 9]
    assert torch.equal(found.classes[found.clusters], targets)
    blob = torch.arange(60) % 3
    assert len(torch.unique(torch.stack([blob, found.clusters[:60]]), dim=1).T) == 3
    # Keyed by label, whichever class comes first (methods.md S4).
    assert found.silhouette[9] > 0.9 > found.silhouette[4]
    for label in (4, 9):
        of_class = targets == label
        reference = silhouette_score(points[of_class].double(), found.clusters[of_class])
        assert found.silhouette[label] == pytest.approx(reference, abs=1e-5)
    assert sampling_powers(found.silhouette) == {4: 2.0, 9: 1.0}


def test_clusters_of_a_class_depend_on_its_label_not_on_the_others() -> None:
    points, targets = normal(90, 3), torch.arange(90) % 3
    whole = cluster_by_class(points, targets, num_clusters=4, generator=seeded())
    swapped = torch.cat([torch.arange(2, 90, 3), torch.arange(0, 90, 3)])  # class 2, then class 0
    part = cluster_by_class(points[swapped], targets[swapped], num_clusters=4, generator=seeded())
    assert torch.equal(part.clusters[30:], whole.clusters[0::3])
    assert torch.equal(part.clusters[:30] - 4, whole.clusters[2::3] - 8)
    assert part.silhouette == {label: whole.silhouette[label] for label in (0, 2)}


def test_classes_of_equal_points_draw_differently() -> None:
    points = normal(400, 10)
    targets = torch.arange(2).repeat_interleave(400)
    found = cluster_by_class(points.repeat(2, 1), targets, num_clusters=10, generator=seeded())
    assert not torch.equal(found.clusters[:400], found.clusters[400:] - 10)


def test_clusters_are_a_function_of_the_generator() -> None:
    points, targets = normal(200, 3), torch.arange(200) % 2
    state = torch.get_rng_state()
    first, again = (cluster_by_class(points, targets, generator=seeded(5)) for _ in range(2))
    assert torch.equal(first.clusters, again.clusters)
    assert first.silhouette == again.silhouette
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("num_clusters", [None, 3])
@pytest.mark.parametrize("per_class", [True, False])
def test_degenerate_classes_are_one_cluster(num_clusters: int | None, per_class: bool) -> None:
    # Labels: 7 once, 5 twice, 3 with equal points, -2 with structure.
    points = torch.cat([normal(1, 2), normal(2, 2, seed=1), torch.ones(6, 2), blobs(40, 3)])
    targets = torch.tensor([7] + [5] * 2 + [3] * 6 + [-2] * 40)
    shuffle = torch.randperm(49, generator=seeded())
    found = cluster_by_class(
        points[shuffle],
        targets[shuffle],
        num_clusters=num_clusters,
        per_class=per_class,
        generator=seeded(),
    )
    assert list(found.num_clusters) == [-2, 3, 5, 7]
    assert found.num_clusters[3] == found.num_clusters[7] == 1
    assert found.silhouette[3] == found.silhouette[7] == 0.0
    assert found.num_clusters[-2] > 1
    if per_class:
        assert found.num_clusters[5] == 1
        assert found.num_clusters[-2] == 3
    assert torch.equal(found.classes[found.clusters], targets[shuffle])
    assert torch.equal(found.clusters.unique(), torch.arange(len(found.classes)))


def test_num_clusters_is_followed_by_every_class_that_can() -> None:
    points, targets = normal(65, 2), torch.tensor([0] * 30 + [1] * 30 + [2] * 5)
    found = cluster_by_class(points, targets, num_clusters=6, generator=seeded())
    assert found.num_clusters == {0: 6, 1: 6, 2: 4}
    one = cluster_by_class(points, targets, num_clusters=1, generator=seeded())
    assert torch.equal(one.clusters, targets)
    assert one.silhouette == {0: 0.0, 1: 0.0, 2: 0.0}


def test_max_clusters_bounds_the_choice() -> None:
    points = torch.arange(8).repeat_interleave(20)[:, None] * 100 + normal(160, 1)
    targets = torch.zeros(160, dtype=torch.int64)
    numbers = [
        cluster_by_class(points, targets, max_clusters=m, generator=seeded()).num_clusters[0]
        for m in (3, 8, 10)
    ]
    assert numbers[0] <= 3
    assert numbers[1:] == [8, 8]


def test_global_clusters_are_split_by_class() -> None:
    # Two places, three classes: class 2 lies at one place only (methods.md S2).
    place = torch.tensor([0, 1] * 30 + [1] * 10)
    targets = torch.tensor([0, 1, 1] * 20 + [2] * 10)
    points = 100.0 * place[:, None] + normal(70, 1)
    found = cluster_by_class(points, targets, num_clusters=2, per_class=False, generator=seeded())
    assert found.num_clusters == {0: 2, 1: 2, 2: 1}
    assert found.silhouette[2] == 0.0
    assert found.silhouette[0] > 0.9
    cells = torch.stack([targets, place, found.clusters]).unique(dim=1)
    assert cells.shape[1] == 5 == len(found.classes)
    for label in (0, 1, 2):
        sizes = torch.bincount(found.clusters[targets == label]).tolist()
        assert [s for s in sizes if s] == sorted((s for s in sizes if s), reverse=True)


def test_a_thousand_classes() -> None:
    n = 1000
    targets = torch.arange(n).repeat(8)
    points = normal(8 * n, 4)
    points[4 * n :] += 50
    found = cluster_by_class(points, targets, max_clusters=2, generator=seeded())
    assert list(found.num_clusters) == list(range(n))
    assert set(found.num_clusters.values()) == {2}
    assert (found.clusters.view(8, n).diff(dim=0) != 0).sum(0).tolist() == [1] * n


def test_deterministic_algorithms_are_enough() -> None:
    points, targets = normal(9_000, 2), torch.arange(9_000) % 2
    torch.use_deterministic_algorithms(True)
    try:
        found = cluster_by_class(points, targets, max_clusters=3, generator=seeded())
        silhouette(points, found.clusters, generator=seeded(), exact_up_to=0)
        cluster_sampling_weights(found.clusters, targets, {0: 1.0, 1: 2.0})
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), {}, r"targets must .* each of the 5 examples, got .*4"),
        (torch.zeros(5), {}, "targets must be a 1-D tensor with an integer .* torch.float32"),
        (torch.zeros(5, dtype=torch.int64), {"num_clusters": 0}, "num_clusters must be"),
        (torch.zeros(5, dtype=torch.int64), {"max_clusters": 1}, "max_clusters must be"),
        (torch.zeros(5, dtype=torch.int64), {"restarts": 0}, "restarts must be"),
    ],
)
def test_cluster_by_class_refuses(targets: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        cluster_by_class(normal(5, 2), targets, generator=seeded(), **options)


# --- weights and recall ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silhouettes", "powers"),
    [
        ([0.997, 0.978, 0.996, 0.991, 0.996], [1, 1, 1, 1, 1]),
        ([0.886, 0.758], [2, 2]),
        ([0.924, 0.757], [1, 2]),
    ],
    ids=["CMNIST", "Waterbirds", "CelebA"],
)
def test_powers_are_those_of_the_thesis_table_9_7(
    silhouettes: list[float], powers: list[float]
) -> None:
    assert list(sampling_powers(dict(enumerate(silhouettes))).values()) == powers


def test_powers_at_the_threshold_and_by_label() -> None:
    assert sampling_powers({8: 0.5, 3: 0.7}, 0.7, 3.5) == {8: 3.5, 3: 1.0}


def test_weights_follow_algorithm_4() -> None:
    generator = seeded()
    targets = torch.randint(3, (200,), generator=generator) * 10
    clusters = torch.randint(4, (200,), generator=generator)  # clusters shared by classes
    power = {0: 1.0, 10: 2.0, 20: 0.5, 99: 7.0}
    weights = cluster_sampling_weights(clusters, targets, power)
    assert weights.dtype == torch.float64
    assert float(weights.mean()) == pytest.approx(1.0)
    for label in (0, 10, 20):
        raw = {}
        for i in (targets == label).nonzero().flatten().tolist():
            size = sum(
                clusters[j] == clusters[i] and targets[j] == label for j in range(len(targets))
            )
            raw[i] = (1 / int(size)) ** power[label]
        total = sum(raw.values())
        for i, value in raw.items():
            assert float(weights[i]) == pytest.approx(value / total * 200 / 3)


def test_weights_balance_clusters_at_power_one_and_only_classes_at_zero() -> None:
    clusters = torch.tensor([0] * 90 + [1] * 10 + [2] * 20)
    targets = torch.tensor([0] * 100 + [1] * 20)
    balanced = cluster_sampling_weights(clusters, targets, {0: 1.0, 1: 1.0})
    assert float(balanced[:90].sum()) == pytest.approx(30)
    assert float(balanced[90:100].sum()) == pytest.approx(30)
    assert float(balanced[100:].sum()) == pytest.approx(60)
    flat = cluster_sampling_weights(clusters, targets, {0: 0.0, 1: 2.0})
    assert torch.allclose(flat[:100], torch.tensor(0.6, dtype=torch.float64))
    squared = cluster_sampling_weights(clusters, targets, {0: 2.0, 1: 2.0})
    assert float(squared[90:100].sum() / squared[:90].sum()) == pytest.approx(9)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 300.0])
def test_weights_of_balanced_classes_without_clusters_are_exactly_one(power: float) -> None:
    targets = torch.arange(2).repeat(49)
    weights = cluster_sampling_weights(targets + 3, targets, {0: power, 1: power})
    assert (weights == 1).all()


def test_weights_refuse_a_class_without_power() -> None:
    targets = torch.tensor([0, 4, 6])
    with pytest.raises(ContractError, match=r"power must have .* none for \[4, 6\]"):
        cluster_sampling_weights(targets, targets, {0: 1.0})
    with pytest.raises(ContractError, match="clusters must be"):
        cluster_sampling_weights(targets[:2], targets, {0: 1.0, 4: 1.0, 6: 1.0})


def matched_by_brute_force(clusters: Tensor, groups: Tensor, targets: Tensor) -> set[float]:
    """Minimum recalls, over all matchings in each class with the largest sum of recalls."""
    minima = [{1.0}]
    for label in targets.unique():
        own = targets == label
        found, present = clusters[own].unique().tolist(), groups[own].unique().tolist()
        places = found + [None] * len(present)
        totals = {}
        for matching in set(itertools.permutations(places, len(present))):
            recalls = [
                0.0
                if cluster is None
                else float((clusters[own & (groups == group)] == cluster).double().mean())
                for group, cluster in zip(present, matching, strict=True)
            ]
            totals.setdefault(round(sum(recalls), 9), set()).add(min(recalls))
        minima.append(totals[max(totals)])
    return {min(choice) for choice in itertools.product(*minima)}


@pytest.mark.parametrize("seed", range(12))
def test_matched_recall_is_that_of_the_best_matching(seed: int) -> None:
    generator = seeded(seed)
    targets = torch.randint(2, (60,), generator=generator)
    groups = torch.randint(3, (60,), generator=generator) + 3 * targets
    noisy = torch.rand(60, generator=generator) < 0.4
    clusters = torch.where(noisy, torch.randint(4, (60,), generator=generator), 5 - groups % 3)
    found = matched_recall(clusters, groups, targets)
    wanted = matched_by_brute_force(clusters, groups, targets)
    assert any(found == pytest.approx(value) for value in wanted)


def test_matched_recall_by_hand() -> None:
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    groups = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3])
    perfect = torch.tensor([5, 5, 5, 9, 9, 9, 5, 5])  # numbers mean nothing outside a class
    assert matched_recall(perfect, groups, targets) == 1.0
    split = torch.tensor([5, 5, 6, 9, 9, 9, 5, 5])  # group 0 lies in two clusters
    assert matched_recall(split, groups, targets) == pytest.approx(2 / 3)
    merged = torch.tensor([5, 5, 5, 5, 9, 9, 5, 5])  # group 1 has no cluster of its own
    assert matched_recall(merged, groups, targets) == 0.0
    assert matched_recall(merged[4:], groups[4:], targets[4:]) == 1.0


def test_matched_recall_refuses_other_lengths() -> None:
    ids = torch.tensor([0, 1])
    with pytest.raises(ContractError, match=r"groups must be .* each of the 2 examples"):
        matched_recall(ids, ids[:1], ids)


# --- silhouettes of clusters, and GEORGE's subclasses --------------------------------------------


def sklearn_by_cluster(points: Tensor, assignment: Tensor) -> Tensor:
    values = torch.tensor(silhouette_samples(points.double().numpy(), assignment.numpy()))
    return torch.stack([values[assignment == c].mean() for c in assignment.unique()])


@pytest.mark.parametrize("n", [60, 2000])
def test_cluster_silhouettes_are_sklearns(n: int) -> None:
    points, assignment = blobs(n, 4, 3), torch.randint(5, (n,), generator=seeded()) * 2
    assignment[: n // 2] = (points[: n // 2, 0] > 0).long() * 2
    found = cluster_silhouettes(points, assignment, generator=seeded())
    torch.testing.assert_close(found, sklearn_by_cluster(points, assignment), rtol=0, atol=1e-5)


def test_sampled_cluster_silhouettes_are_close_also_of_a_small_cluster() -> None:
    points = torch.cat([blobs(3000, 3), 0.1 * normal(12, 2) + 30])
    assignment = kmeans(points, 4, generator=seeded()).assignment
    wanted = sklearn_by_cluster(points, assignment)
    found = cluster_silhouettes(points, assignment, generator=seeded(), exact_up_to=0, sample=400)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_subclasses_follow_the_search_and_split_off_what_stands_out(seed: int) -> None:
    """All candidates and all parts, by sklearn's silhouettes and a loop."""
    points = torch.cat([blobs(150, 3, std=0.7, seed=seed), 0.05 * normal(8, 2, seed=seed)])
    targets = torch.zeros(len(points), dtype=torch.int64)
    found = subclasses(points, targets, max_clusters=4, parts=3, generator=seeded(seed))
    # The search, with the draws that the function makes.
    child = clustering._child(int(torch.randint(2**62, (), generator=seeded(seed))), 0)
    tried = [one.assignment for one in clustering._kmeans(points, [2, 3, 4], child, 10)]
    scores = [float(sklearn_by_cluster(points, one).mean()) for one in tried]
    base = tried[scores.index(max(scores))]
    assert found.silhouette[0] == pytest.approx(max(scores), abs=1e-5)
    cut, origin = torch.empty_like(base), []
    for cluster in range(int(base.max()) + 1):
        members = [i for i in range(len(base)) if base[i] == cluster]
        pieces = kmeans(points[members], 3, generator=child).assignment
        for member, piece in zip(members, pieces.tolist(), strict=True):
            cut[member] = len(origin) + piece
        origin += [cluster] * 3
    before, after = sklearn_by_cluster(points, base), sklearn_by_cluster(points, cut)
    label = {}
    for part, cluster in enumerate(origin):
        stands_out = after[part] > max(float(before[cluster]), 0.0)
        label[part] = 100 + part if stands_out else cluster
    expected = [label[int(part)] for part in cut]
    pairs = set(zip(expected, found.clusters.tolist(), strict=True))
    assert len(pairs) == len(set(expected)) == found.num_clusters[0]


def test_a_small_subclass_hidden_in_a_large_one_is_split_off() -> None:
    large = torch.tensor([[0.0, 0.0], [40.0, 0.0]]).repeat_interleave(200, 0) + normal(400, 2)
    hidden = torch.tensor([0.0, 9.0]) + 0.1 * normal(6, 2, seed=1)
    points, targets = torch.cat([large, hidden]), torch.full((406,), 7)
    options = {"max_clusters": 2, "generator": seeded()}
    assert subclasses(points, targets, parts=1, **options).num_clusters == {7: 2}
    found = subclasses(points, targets, **options)
    assert torch.unique(found.clusters[400:]).numel() == 1
    assert not torch.isin(found.clusters[:400], found.clusters[400:]).any()
    too_small = subclasses(points, targets, min_share=0.1, **options)
    assert torch.isin(too_small.clusters[400:], too_small.clusters[:400]).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_subclasses_of_few_or_equal_points(n: int) -> None:
    targets = torch.tensor([3] * n + [1])
    found = subclasses(torch.zeros(n + 1, 2), targets, generator=seeded())
    assert found.num_clusters == {1: 1, 3: 1}
    assert torch.equal(found.classes[found.clusters], targets)
