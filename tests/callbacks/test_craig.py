from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_robust import CRAIG, ContractError


def medoids(gradients, members, k):
    """Greedy facility location by a double loop: the picks and the sizes of their clusters."""
    rows = gradients[members]
    distance = [[float((a - b).norm()) for b in rows] for a in rows]
    nearest, picks = [1e9] * len(rows), []
    for _ in range(k):
        costs = {
            j: sum(min(nearest[i], distance[i][j]) for i in range(len(rows)))
            for j in range(len(rows))
            if j not in picks
        }
        best = min(costs, key=lambda j: (round(costs[j], 9), j))  # two may stand for each other
        picks.append(best)
        nearest = [min(nearest[i], distance[i][best]) for i in range(len(rows))]
    owner = [min(picks, key=lambda j: distance[i][j]) for i in range(len(rows))]
    return {members[j]: owner.count(j) for j in picks}


def expected(view, targets, quotas):
    gradients = (view.logits.softmax(1) - F.one_hot(targets, 3)).double()
    found = {}
    for label, k in quotas.items():
        members = [i for i in range(60) if label in (None, int(targets[i]))]
        found |= medoids(gradients, members, k)
    mean = sum(found.values()) / len(found)
    return {index: size / mean for index, size in found.items()}


@pytest.mark.parametrize(("per_class", "quotas"), [(True, {0: 6, 1: 4, 2: 2}), (False, {None: 12})])
def test_plays_the_medoids_of_each_epochs_gradients_with_their_weights(
    train, points, per_class, quotas
):
    record = train(CRAIG(0.2, per_class=per_class))
    for epoch in range(3):
        wanted = expected(record.views[epoch], points.targets, quotas)
        assert record.examples(epoch) == wanted.keys()
        for index, weight in record.module.weights[epoch].items():
            assert weight == pytest.approx(wanted[index], rel=1e-3)
    logged = record.trainer.callback_metrics
    assert logged["craig/num_examples"] == 12
    assert logged["craig/max_weight"] == pytest.approx(max(wanted.values()), rel=1e-5)


def test_starts_late_and_keeps_a_subset_for_some_epochs(train, points):
    record = train(CRAIG(0.2, start_epoch=1, every_n_epochs=2), 5)
    assert record.examples(0) == set(range(60))
    assert set(map(round, record.module.weights[0].values())) == {1}
    for first in (1, 3):
        wanted = expected(record.views[first], points.targets, {0: 6, 1: 4, 2: 2})
        assert record.examples(first) == wanted.keys()
        assert first == 3 or record.examples(first + 1) == wanted.keys()


def test_stochastic_picks_are_a_subset_of_the_same_size(train):
    record = train(CRAIG(0.2, greedy="stochastic"), 2)
    weights = torch.tensor(list(record.module.weights[1].values()))
    assert len(record.examples(1)) == 12
    assert float(weights.mean()) == pytest.approx(1, rel=1e-3)


def test_the_view_without_augmentation_is_what_is_selected_from(train, points):
    clean = type(points)(seed=3)
    assert train(CRAIG(0.2, clean_dataset=clean)).examples(0) != train(CRAIG(0.2)).examples(0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fraction", 0.0),
        ("every_n_epochs", 0),
        ("start_epoch", -1),
        ("per_class", 1),
        ("greedy", "lazy"),
    ],
)
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        CRAIG(**{name: value})


def test_refuses_a_clean_view_of_another_length(train, val_points):
    with pytest.raises(ContractError, match="clean_dataset has 24 examples"):
        train(CRAIG(clean_dataset=val_points))
