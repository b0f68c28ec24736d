"""Theorem 1 of importance tempering, against two solvers of the cost-sensitive SVM."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from sklearn.svm import SVC

from lightning_robust.contracts import ContractError
from lightning_robust.data.synthetic import SeparableClouds
from lightning_robust.reproduce import it_svm


def constraints(seed: int, margin: float):
    data = SeparableClouds(seed=seed)
    margins = torch.tensor([margin, 1.0]).double()[data.groups]
    return data, margins, (2 * data.targets - 1)[:, None] * data.features


@pytest.mark.parametrize("margin", [*it_svm.MARGINS, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_svm_is_that_of_scipy_and_scikit_learn(margin, seed):
    data, margins, rows = constraints(seed, margin)
    svm = it_svm.cost_sensitive_svm(data.features, data.targets, margins)
    slack = {"type": "ineq", "fun": lambda w: (rows.numpy() @ w) - margins.numpy()}
    options = {"ftol": 1e-14, "maxiter": 500}
    theirs = minimize(
        lambda w: w @ w,
        [1.0, 1.0],
        jac=lambda w: 2 * w,
        constraints=slack,
        method="SLSQP",
        options=options,
    )
    torch.testing.assert_close(svm, torch.tensor(theirs.x), rtol=1e-4, atol=1e-5)
    scaled = rows / margins[:, None]  # and their mirror images, which make the intercept 0
    machine = SVC(kernel="linear", C=1e8, tol=1e-9)
    machine.fit(torch.cat([scaled, -scaled]).numpy(), [1] * len(scaled) + [-1] * len(scaled))
    torch.testing.assert_close(svm, torch.tensor(machine.coef_[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("margin", it_svm.MARGINS)
def test_the_callback_ends_in_the_direction_of_the_svm(margin):
    run = it_svm.train(margin)
    assert run.cosine > it_svm.THRESHOLD
    assert torch.tensor(run.found).norm() == pytest.approx(1)
    if margin != 1:
        data, margins, _ = constraints(0, 1 / margin)
        inverse = it_svm.cost_sensitive_svm(data.features, data.targets, margins)
        assert torch.tensor(run.found).double() @ inverse / inverse.norm() < 0.99


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("margin", it_svm.MARGINS)
def test_other_seeds(margin, seed):
    assert it_svm.train(margin, seed).cosine > it_svm.THRESHOLD


def test_prints_and_draws(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")

    def fake(margin, seed=0):
        return it_svm.Run(margin, seed, 0.9999 - 0.001 * seed, [0.6, 0.8], [0.8, 0.6])

    monkeypatch.setattr(it_svm, "train", fake)
    it_svm.run((0, 1), output=tmp_path)
    assert "0.99940 ± 0.00071" in capsys.readouterr().out
    assert (tmp_path / "it-svm.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "word"), [((0.0,), "margin"), ((1.0, -1), "seed"), ((1.0, 0, 0), "steps")]
)
def test_bad_arguments_are_refused(arguments, word):
    names = ("margin", "seed", "steps")
    with pytest.raises(ContractError, match=word):
        it_svm.train(**dict(zip(names, arguments, strict=False)))
