"""The large-learning-rate paper's artifacts; three seeds of the parity bits in the slow suite."""

from __future__ import annotations

import math
from statistics import mean

import pytest
import torch
from torch import nn

from lightning_robust.contracts import ContractError
from lightning_robust.data.synthetic import ParityBits
from lightning_robust.models import Classifier
from lightning_robust.reproduce import lr_parity, lr_proposition1
from lightning_robust.reproduce.sweep import LearningRateSweep, Run, draw, table


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(learning_rate: float) -> Classifier:
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    return Classifier(network, learning_rate=learning_rate, weight_decay=0)


def a_sweep(**settings) -> LearningRateSweep:
    train, test = (
        ParityBits(split, num_examples=200, num_core=2, num_spurious=1, num_noise=3)
        for split in ("train", "test")
    )
    return LearningRateSweep(make, train, test, batch_size=20, **settings)


def test_a_sweep_ends_runs_that_fit_and_runs_that_diverge():
    state = torch.get_rng_state()
    fitted, lost = a_sweep(max_epochs=40).run([0.1, 1e30])
    assert torch.equal(torch.get_rng_state(), state)
    assert not fitted.diverged
    assert fitted.train_acc == 1
    assert fitted.epochs < 40
    assert 0.5 < fitted.acc <= 1
    assert 0 < fitted.prunability <= 9.5
    assert 0 < fitted.compressibility < 1
    assert lost.diverged
    assert lost.epochs == 1
    assert math.isnan(lost.prunability)


def test_a_sweep_repeats_itself():
    one, other = (a_sweep(max_epochs=2).run([0.1], seed=3) for _ in range(2))
    assert one == other
    assert one != a_sweep(max_epochs=2).run([0.1], seed=4)


def test_a_sweep_refuses_bad_arguments():
    with pytest.raises(ContractError, match="max_epochs"):
        a_sweep(max_epochs=0)
    with pytest.raises(ContractError, match=r"learning_rates.*-1"):
        a_sweep().run([-1])


def test_a_sweep_is_drawn_without_the_diverged():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    whole = Run(0.1, 0, False, 3, 1.0, 0.9, 8.0, 0.4, 0.5, 0.3, 2.0)
    lost = Run(9.0, 0, True, 1, 0.5, 0.5, *[math.nan] * 5)
    draw([whole, lost], figure := Figure())
    assert figure.axes[0].get_title() == "unbiased accuracy (%)"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0.1"]
    assert "diverged" in table([whole, lost])


def test_a_large_learning_rate_is_robust_on_parity_bits():
    [one] = lr_parity.train(0, [0.5])
    assert one.train_acc == 1
    assert 100 * one.acc >= lr_parity.THRESHOLDS["acc"]


@pytest.mark.slow
def test_thresholds_of_the_benchmark():
    runs = [one for seed in range(3) for one in lr_parity.train(seed, [0.02, 0.5])]
    small, large = (
        100 * mean(one.acc for one in runs if one.learning_rate == rate) for rate in (0.02, 0.5)
    )
    assert large - small >= lr_parity.THRESHOLDS["gain"], (small, large)
    assert large >= lr_parity.THRESHOLDS["acc"]


@pytest.mark.parametrize("seed", range(3))
def test_proposition_1_the_ratio_grows_as_k_exp_alpha_k(seed):
    """Beyond all crossovers; a factor exp or k that is missing would be seen."""
    one = lr_proposition1.measure(seed, [900.0, 1000.0])
    assert one.slope == pytest.approx(one.alpha, rel=0.01)
    assert one.ratios[1] > one.ratios[0]
    assert all(0.999 < share <= 1 for share in one.shares)
