"""The defences that filter once by the features: what they drop, that it is for good, and again."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest
import torch

from lightning_robust import (
    ActivationClustering,
    ContractError,
    DeepKNN,
    SpectralSignatures,
)
from lightning_robust.functional.outliers import small_cluster
from lightning_robust.randomness import generator


def by_class(rule):
    def suspects(features, targets):
        found = set()
        for label in range(3):
            own = (targets == label).nonzero().squeeze(1)
            found |= {int(own[place]) for place in rule(features[own].double().numpy())}
        return found

    return suspects


@by_class
def spectral(features):
    centred = features - features.mean(0)
    scores = (centred @ np.linalg.svd(centred)[2][0]) ** 2
    return np.argsort(-scores)[: int(1.5 * 0.2 * len(features))]


def clustering(features, targets):
    """As tests/functional/test_outliers.py has checked it."""
    found = set()
    for label in range(3):
        own = (targets == label).nonzero().squeeze(1)
        random = generator(0, "activation clustering", label)
        found |= set(own[small_cluster(features[own], 3, 0.5, 0.2, generator=random)].tolist())
    return found


def neighbours(k):
    def suspects(features, targets):
        found = set()
        for i in range(len(features)):
            order = (features - features[i]).double().norm(dim=1).argsort().tolist()
            near = [j for j in order if j != i][:k]
            votes = Counter(int(targets[j]) for j in near)
            if votes[int(targets[i])] < max(votes.values()):
                found.add(i)
        left = Counter(int(t) for i, t in enumerate(targets) if i not in found)
        return {i for i in found if left[int(targets[i])]}

    return suspects


FILTERS = {
    "spectral": (lambda **s: SpectralSignatures(0.2, **s), spectral),
    "clustering": (
        lambda **s: ActivationClustering(0.5, silhouette_threshold=0.2, num_components=3, **s),
        clustering,
    ),
    "3 neighbours": (lambda **s: DeepKNN(3, **s), neighbours(3)),
    "a class of neighbours": (DeepKNN, neighbours(20)),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("warmup_epochs", [0, 3])
def test_drops_by_its_rule_once(train, points, tmp_path, name, warmup_epochs):
    make, rule = FILTERS[name]
    report = tmp_path / "dropped.csv"
    method = make(warmup_epochs=warmup_epochs, report_path=str(report))
    record = train(method, warmup_epochs + 2)
    expected = rule(record.views[warmup_epochs].features, points.targets)
    assert 0 < len(expected) < 50
    for epoch in range(warmup_epochs):
        assert record.examples(epoch) == set(range(60))
    for epoch in range(warmup_epochs, warmup_epochs + 2):
        assert record.examples(epoch) == set(range(60)) - expected
    assert set(method.dropped_indices.tolist()) == expected
    assert method.dropped_counts == {warmup_epochs: len(expected)}
    with report.open() as file:
        assert {int(row["index"]) for row in csv.DictReader(file)} == expected
    logged = record.trainer.callback_metrics
    [total] = [v for k, v in logged.items() if k.endswith("dropped_total")]
    assert total == len(expected)


@pytest.mark.parametrize("name", FILTERS)
def test_starts_again_or_goes_on(train, name):
    make, _ = FILTERS[name]
    again, on = (train(make(warmup_epochs=1, reinitialise=r), 2) for r in (True, False))
    assert torch.equal(again.starts[1], again.starts[0])
    assert not torch.equal(on.starts[1], on.starts[0])
    assert on.examples(1) == again.examples(1)


def test_the_view_without_augmentation_is_what_is_filtered(train, points):
    clean = type(points)(seed=3)
    runs = [train(DeepKNN(3, warmup_epochs=1, clean_dataset=c), 2) for c in (None, clean)]
    assert runs[0].examples(1) != runs[1].examples(1)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (SpectralSignatures, "fraction", 0.6),
        (ActivationClustering, "size_threshold", 0.6),
        (ActivationClustering, "silhouette_threshold", 2),
        (ActivationClustering, "num_components", 0),
        (DeepKNN, "num_neighbours", 0),
        (DeepKNN, "warmup_epochs", -1),
        (DeepKNN, "reinitialise", 1),
    ],
)
def test_refuses_bad_arguments_by_name(make, name, value):
    with pytest.raises(ContractError, match=name):
        make(**{name: value})
