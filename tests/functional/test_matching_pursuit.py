from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from lightning_robust.contracts import ContractError
from lightning_robust.functional.matching_pursuit import matching_pursuit


def problem(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n, d, generator=g, dtype=torch.float64)
    return atoms, atoms.sum(0) + torch.randn(d, generator=g, dtype=torch.float64)


def solved(atoms, target, ridge, rows):
    """Weights of some rows by SciPy: ridge regression is least squares with more equations."""
    chosen = atoms[list(rows)].numpy()
    system = np.vstack([chosen.T, np.sqrt(ridge) * np.eye(len(chosen))])
    return nnls(system, np.concatenate([target.numpy(), np.zeros(len(chosen))]))[0]


def objective(atoms, target, ridge, weights):
    return float((weights @ atoms - target).square().sum() + ridge * weights.square().sum())


def dense(n, indices, weights):
    whole = torch.zeros(n, dtype=torch.float64)
    whole[indices] = weights
    return whole


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("n", "d", "ridge"), [(12, 4, 0.5), (5, 9, 0.01), (40, 3, 3.0)])
def test_left_to_itself_it_ends_at_scipys_minimum(n, d, ridge, seed):
    atoms, target = problem(n, d, seed)
    found = dense(n, *matching_pursuit(atoms, target, n, ridge))
    expected = torch.from_numpy(solved(atoms, target, ridge, range(n)))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_weights_are_the_best_for_what_is_picked(k, seed):
    atoms, target = problem(15, 6, seed)
    indices, weights = matching_pursuit(atoms, target, k, 0.5)
    assert 1 <= len(indices) <= k
    assert len(set(indices.tolist())) == len(indices)
    assert (weights > 0).all()
    best = torch.from_numpy(solved(atoms, target, 0.5, indices.tolist()))
    torch.testing.assert_close(weights, best, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_each_pick_is_the_steepest_by_a_difference_quotient(seed):
    """From the weights of k picks, a little of the next row helps more than of any other."""
    atoms, target = problem(10, 6, seed)
    order = matching_pursuit(atoms, target, 10, 0.5)[0].tolist()
    for k in range(1, 4):
        indices, weights = matching_pursuit(atoms, target, k, 0.5)
        if indices.tolist() != order[:k] or k >= len(order):
            break  # a row was dropped again
        start, falls = dense(10, indices, weights), {}
        for row in set(range(10)) - set(indices.tolist()):
            moved = start.clone()
            moved[row] += 1e-6
            falls[row] = objective(atoms, target, 0.5, start) - objective(atoms, target, 0.5, moved)
        assert max(falls, key=falls.get) == order[k]


def test_the_objective_falls_with_every_pick():
    atoms, target = problem(30, 5, 0)
    values = [
        objective(atoms, target, 0.5, dense(30, *matching_pursuit(atoms, target, k, 0.5)))
        for k in range(1, 12)
    ]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] < 0.5 * values[0]


def test_nothing_is_picked_for_a_target_that_nothing_points_to():
    atoms = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    for target in (torch.tensor([-1.0, 0.0]), torch.zeros(2)):
        indices, weights = matching_pursuit(atoms, target, 2, 0.5)
        assert len(indices) == len(weights) == 0


def test_equal_rows_share_the_weight():
    """The ridge prefers two halves to a whole."""
    indices, weights = matching_pursuit(torch.ones(2, 1), torch.tensor([5.0]), 2, 0.5)
    assert sorted(indices.tolist()) == [0, 1]
    torch.testing.assert_close(weights, torch.full((2,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(3, 2), torch.ones(3), 1, 0.5), "atoms must be"),
        ((torch.ones(3, 2), torch.ones(2), 0, 0.5), "k must be"),
        ((torch.ones(3, 2), torch.ones(2), 1, 0.0), "regularisation must be"),
    ],
)
def test_refuses_bad_arguments(arguments, words):
    with pytest.raises(ContractError, match=words):
        matching_pursuit(*arguments)
