from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls
from torch.nn import functional as F

from lightning_robust import ContractError, GradMatch

QUOTAS = {0: 6, 1: 4, 2: 2}


def ridge(atoms, target, regularisation):
    """Non-negative ridge regression by SciPy."""
    system = np.vstack([atoms.T, np.sqrt(regularisation) * np.eye(len(atoms))])
    return nnls(system, np.concatenate([target, np.zeros(len(atoms))]))[0]


def pursuit(atoms, k, regularisation):
    """Picks and weights, solved for from nothing after each pick."""
    target = atoms.sum(0)
    weights = np.zeros(len(atoms))
    while np.count_nonzero(weights) < k:
        descent = atoms @ (target - weights @ atoms) - regularisation * weights
        descent[weights > 0] = -np.inf
        if descent.max() <= 1e-9:
            break
        picked = [*np.flatnonzero(weights), int(descent.argmax())]
        weights = np.zeros(len(atoms))
        weights[picked] = ridge(atoms[picked], target, regularisation)
    return {int(i): weights[i] for i in np.flatnonzero(weights)}


def by_class(view, targets, regularisation, quotas=QUOTAS):
    gradients = (view.logits.softmax(1) - F.one_hot(targets, 3)).double().numpy()
    found = {}
    for label, k in quotas.items():
        members = [i for i in range(60) if label in (None, int(targets[i]))]
        weights = pursuit(gradients[members], k, regularisation)
        found[label] = {members[i]: weight for i, weight in weights.items()}
    return found


@pytest.mark.parametrize("regularisation", [0.5, 5.0])
@pytest.mark.parametrize("quotas", [QUOTAS, {None: 12}], ids=["per class", "of all"])
def test_matches_each_epochs_gradients(train, points, regularisation, quotas):
    """What is found has SciPy's weights; what fills up has the mean of its class."""
    method = GradMatch(
        0.2, every_n_epochs=1, regularisation=regularisation, per_class=None not in quotas
    )
    record = train(method)
    for epoch in range(3):
        found = by_class(record.views[epoch], points.targets, regularisation, quotas)
        played = record.module.weights[epoch]
        assert len(record.examples(epoch)) == 12
        assert sum(played.values()) == pytest.approx(12, rel=1e-3)
        for label, weights in found.items():
            mine = {i: w for i, w in played.items() if label in (None, int(points.targets[i]))}
            size = 60 if label is None else int((points.targets == label).sum())
            assert len(mine) == quotas[label]
            assert weights.keys() <= mine.keys()
            mean = sum(weights.values()) / len(weights)
            scale = size / 60 * 12 / (mean * quotas[label])
            for index, weight in mine.items():
                expected = scale * weights.get(index, mean)
                assert weight == pytest.approx(expected, rel=1e-2, abs=1e-3)
    logged = record.trainer.callback_metrics
    assert logged["grad_match/num_examples"] == 12
    assert logged["grad_match/num_matched"] == sum(map(len, found.values())) > 3
    assert logged["grad_match/max_weight"] == pytest.approx(max(played.values()), rel=1e-2)


def test_what_fills_up_is_random(train, points):
    """After some epochs the gradient is small, and some of the others point away from it."""
    record = train(GradMatch(0.9, per_class=False, start_epoch=4), 5)
    found = by_class(record.views[4], points.targets, 0.5, {None: 54})[None]
    assert 6 < len(found) < 50
    filled = record.examples(4) - found.keys()
    assert len(filled) == 54 - len(found)
    left = sorted(set(range(60)) - found.keys())
    assert filled not in (set(left[: len(filled)]), set(left[-len(filled) :]))


def test_keeps_a_subset_for_some_epochs(train):
    record = train(GradMatch(0.2, start_epoch=1, every_n_epochs=2), 4)
    sets = [record.examples(epoch) for epoch in range(4)]
    assert sets[0] == set(range(60))
    assert sets[1] == sets[2] != sets[3]


@pytest.mark.parametrize(
    ("name", "value"), [("fraction", 2), ("regularisation", 0), ("every_n_epochs", 0.5)]
)
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        GradMatch(**{name: value})
