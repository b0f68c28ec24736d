"""Theorem 3 of importance tempering, against its limits and the optimum at a finite imbalance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_robust import AnnotatedDataset, ImportanceTempering
from lightning_robust.contracts import ContractError
from lightning_robust.reproduce import it_collapse
from lightning_robust.reproduce.it_collapse import CLASSES, IMBALANCES, PAPER, TOLERANCE, Run, train


def convex_optimum(on: str, imbalance: float) -> tuple[float, float]:
    """Angles between minority features and rows at the global solution of (5), (6) or (7).

    (|W|^2 + sum n_k |h_k|^2) / 2 is least, for given logits W H, at the nuclear norm of the logits
    with columns times sqrt(n_k): a convex problem, whose solution has the classes' symmetry, and so
    six free numbers.
    """
    half = CLASSES // 2
    major = np.arange(CLASSES) < half
    roots = np.where(major, math.sqrt(imbalance), 1.0)
    temper = np.where(major, math.sqrt(imbalance), 1.0) / math.sqrt(imbalance)

    def logits(six):  # [row, column]; diagonal, same half, other half
        blocks = np.where(
            major[:, None],
            np.where(major, six[1], six[2]),
            np.where(major, six[3], six[5]),
        )
        return blocks + np.diag(np.where(major, six[0] - six[1], six[4] - six[5]))

    def margins(six):
        z = logits(six)
        if on == "features":
            z = z * temper
        elif on == "classifier":
            z = z * temper[:, None]
        first, last = z[:, 0], z[:, -1]
        return np.array(
            [first[0] - first[1], first[0] - first[-1], last[-1] - last[0], last[-1] - last[-2]]
        )

    scale = 1.0 if on == "none" else math.sqrt(imbalance)
    start = np.array([1.0, -0.2, -0.2, -0.2, scale, -0.2]) * 2
    found = minimize(
        lambda six: np.linalg.norm(logits(six) * roots, "nuc"),
        start,
        constraints={"type": "ineq", "fun": lambda six: margins(six) - 1},
        method="SLSQP",
        options={"maxiter": 2000, "ftol": 1e-13},
    )
    left, values, right = np.linalg.svd(logits(found.x) * roots)
    rows, features = left * np.sqrt(values), right.T * np.sqrt(values)

    def angle(vectors):
        a, b = vectors[-1], vectors[-2]
        return math.degrees(math.acos(a @ b / math.sqrt((a @ a) * (b @ b))))

    return angle(features), angle(rows)


@pytest.mark.parametrize("on", IMBALANCES)
def test_training_ends_near_the_optimum(on):
    found = train(on, 100.0)
    features, rows = convex_optimum(on, 100.0)
    assert found.feature_angle == pytest.approx(features, abs=2)
    assert found.classifier_angle == pytest.approx(rows, abs=2)


class LayerPeeled(LightningModule):
    """One step of gradient descent on rows and features, from where they are put."""

    def __init__(self, features, rows, shares) -> None:
        super().__init__()
        self.features = nn.Parameter(features.clone())
        self.head = nn.Linear(*rows.shape, bias=False).double()
        self.head.weight.data = rows.clone()
        self.shares = shares

    def training_step(self, batch, batch_idx):
        losses = F.cross_entropy(self.head(self.features[batch]), batch, reduction="none")
        decay = self.shares @ self.features.square().sum(1) + self.head.weight.square().sum()
        return self.shares[batch] @ losses + it_collapse.PENALTIES[-1] / 2 * decay

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("on", ["features", "classifier"])
def test_a_trainer_with_our_callback_stays_at_the_optimum(on):
    sizes = it_collapse.sizes(4.0)
    features, rows = it_collapse.optimum(on, sizes)
    classes = torch.arange(CLASSES)
    data = AnnotatedDataset(classes.tolist(), targets=classes)
    margins = dict(enumerate((sizes.max() / sizes).sqrt().tolist()))
    moved = []
    for callbacks in ([ImportanceTempering(by="class", on=on, margins=margins, head="head")], []):
        module = LayerPeeled(features, rows, sizes / sizes.sum())
        Trainer(
            callbacks=callbacks,
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, DataLoader(data, CLASSES))
        moved.append(float((module.head.weight.detach() - rows).norm()))
        moved[-1] += float((module.features.detach() - features).norm())
    assert moved[0] < 1e-12
    assert moved[1] > 100 * moved[0]


@pytest.mark.parametrize("on", IMBALANCES)
def test_theorem_3_at_the_largest_imbalance(on):
    assert train(on, IMBALANCES[on][-1]).angle == pytest.approx(PAPER[on], abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("on", IMBALANCES)
def test_other_seeds(on, seed):
    assert train(on, IMBALANCES[on][-1], seed).angle == pytest.approx(PAPER[on], abs=TOLERANCE)


def test_balanced_classes_are_a_simplex_whatever_the_temperature():
    for on in IMBALANCES:
        found = train(on, 1.0)
        assert found.feature_angle == pytest.approx(math.degrees(math.acos(-1 / 9)), abs=0.1)
        assert found.classifier_angle == pytest.approx(math.degrees(math.acos(-1 / 9)), abs=0.1)


def test_mean_angle_of_a_simplex():
    corners = torch.eye(6) - 1 / 6
    assert it_collapse.mean_angle(corners) == pytest.approx(math.degrees(math.acos(-1 / 5)), 1e-4)


def test_prints_and_draws(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")

    def fake(on, imbalance, seed=0):
        return Run(on, imbalance, seed, 100.0 + seed, 20.0)

    monkeypatch.setattr(it_collapse, "train", fake)
    it_collapse.run((0, 1), output=tmp_path)
    printed = capsys.readouterr().out
    assert "100.5 ± 0.7" in printed
    assert "104.5, features" in printed
    assert (tmp_path / "it-collapse.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("head", 10.0), "on"), (("none", 0.5), "imbalance"), (("none", 10.0, -1), "seed")],
)
def test_bad_arguments_are_refused(arguments, word):
    with pytest.raises(ContractError, match=word):
        train(*arguments)
