from __future__ import annotations

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from lightning_robust.functional.linear import sparse_logistic_regression


def problem(num_classes: int, n: int = 90, d: int = 7):
    g = torch.Generator().manual_seed(num_classes)
    targets = torch.randint(num_classes, (n,), generator=g)
    x = torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g)
    x[:, :num_classes] += 1.5 * F.one_hot(targets, num_classes)
    return (x - x.mean(0)) / x.std(0), targets


def objective(x, y, weight, bias, strength) -> float:
    losses = F.cross_entropy(x.double() @ weight.T + bias, y, reduction="sum")
    return float(strength * losses + weight.abs().sum())


def reference(x, y, strength):
    import sklearn

    old = tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8)
    model = LogisticRegression(
        C=strength,
        solver="saga",
        tol=1e-10,
        max_iter=20000,
        **({"penalty": "l1"} if old else {"l1_ratio": 1.0}),
    ).fit(x.double().numpy(), y.numpy())
    return torch.tensor(model.coef_), torch.tensor(model.intercept_)


@pytest.mark.filterwarnings(f"ignore::{ConvergenceWarning.__module__}.ConvergenceWarning")
@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("strength", [1.0, 0.3, 0.1])
def test_is_scikit_learns(num_classes, strength):
    x, y = problem(num_classes)
    weight, bias = sparse_logistic_regression(x, y, num_classes, strength, tolerance=1e-9)
    coef, intercept = reference(x, y, strength)
    if num_classes == 2:  # scikit-learn has one row for two
        coef, intercept = torch.cat([-coef, coef]) / 2, torch.cat([-intercept, intercept]) / 2
    mine, theirs = (
        objective(x, y, *found, strength) for found in ((weight, bias), (coef, intercept))
    )
    assert mine <= theirs * (1 + 1e-9)  # its solver stops a little early
    assert mine == pytest.approx(theirs, rel=5e-3)
    for a, b in ((0, 1), (num_classes - 1, 0)):  # a common shift of all rows means nothing
        assert torch.allclose(weight[a] - weight[b], coef[a] - coef[b], atol=0.02)


@pytest.mark.parametrize("strength", [1.0, 0.3, 0.1])
def test_is_where_no_step_helps(strength):
    """The optimality conditions, by automatic differentiation of the unpenalised part."""
    x, y = problem(4)
    weight, bias = sparse_logistic_regression(x, y, 4, strength, tolerance=1e-9)
    weight.requires_grad_()
    bias.requires_grad_()
    (strength * F.cross_entropy(x.double() @ weight.T + bias, y, reduction="sum")).backward()
    active = weight.detach() != 0
    assert torch.allclose(weight.grad[active], -weight.detach().sign()[active], atol=1e-5)
    assert float(weight.grad[~active].abs().max()) <= 1 + 1e-5
    assert float(bias.grad.abs().max()) < 1e-5
    assert 0 < int(active.sum()) < active.numel()


def test_a_start_changes_the_way_and_not_the_end():
    x, y = problem(3)
    cold = sparse_logistic_regression(x, y, 3, 0.1, tolerance=1e-9)
    start = sparse_logistic_regression(x, y, 3, 1.0)
    warm = sparse_logistic_regression(x, y, 3, 0.1, start=start, tolerance=1e-9)
    assert torch.allclose(cold[0], warm[0], atol=1e-6)
    assert objective(x, y, *start, 0.1) > objective(x, y, *warm, 0.1) + 1e-3


def test_a_tiny_strength_leaves_no_weights():
    x, y = problem(3)
    weight, bias = sparse_logistic_regression(x, y, 3, 1e-4)
    assert bool((weight == 0).all())
    assert torch.allclose(bias.softmax(0), torch.bincount(y).double() / len(y), atol=1e-3)
