from __future__ import annotations

import math

import pytest
import torch

from lightning_robust.contracts import ContractError
from lightning_robust.functional import logits as module
from lightning_robust.functional.logits import (
    SMALLEST_PROBABILITY,
    calibrated_shift,
    check_held_out,
    flip_probability,
    load_held_out,
    log_calibration,
    save_held_out,
)


def table(n=40, num_classes=4, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, num_classes, generator=draw)
    return logits, torch.randint(num_classes, (n,), generator=draw)


def softmax(row, temperature):
    largest = max(row)
    powers = [math.exp((z - largest) / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def by_loops(logits, targets, temperature):
    """Equations 4, 6 and 7, one number at a time; returns the calibration and log p of each row."""
    rows, labels, classes = logits.tolist(), targets.tolist(), range(logits.shape[1])
    probs = [softmax(row, temperature) for row in rows]
    joint = [[0.0 for _ in classes] for _ in classes]
    for q, y in zip(probs, labels, strict=True):
        for k in classes:
            joint[k][y] += q[k] / len(rows)
    calibration = [[joint[k][y] / sum(joint[k]) for y in classes] for k in classes]
    calibrated = [[sum(q[k] * calibration[k][y] for k in classes) for y in classes] for q in probs]
    return torch.tensor(calibration), torch.tensor(calibrated)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_calibration_and_shift_are_those_of_a_double_loop(temperature):
    logits, targets = table()
    calibration, calibrated = by_loops(logits, targets, temperature)
    found = log_calibration(logits, targets, temperature)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.exp().float(), calibration)
    shift = calibrated_shift(logits, found, temperature)
    log_probs = (calibrated + SMALLEST_PROBABILITY).log()
    torch.testing.assert_close(shift, log_probs - log_probs.amax(1, keepdim=True))


def test_chunks_change_nothing(monkeypatch):
    logits, targets = table()
    whole = log_calibration(logits, targets, 0.3)
    shift = calibrated_shift(logits, whole, 0.3)
    monkeypatch.setattr(module, "_NUMBERS_AT_A_TIME", 12)
    torch.testing.assert_close(log_calibration(logits, targets, 0.3), whole)
    torch.testing.assert_close(calibrated_shift(logits, whole, 0.3), shift)


def test_the_shift_is_a_matrix_product_not_an_elementwise_factor():
    """A held-out model that follows a feature which agrees with the label for 9 of 10 (Figure 1).

    A mixture of the calibration's rows gives log .9 against log .1 for all, right or wrong. With an
    elementwise factor it would be about 10 nats, and the classifier would learn the opposite.
    """
    predicted = torch.arange(200) % 2
    targets = torch.where(torch.arange(200) < 20, 1 - predicted, predicted)
    logits = 10.0 * torch.nn.functional.one_hot(predicted, 2)
    calibration = log_calibration(logits, targets)
    shift = calibrated_shift(logits, calibration)
    margin = shift.gather(1, predicted[:, None]) - shift.gather(1, 1 - predicted[:, None])
    torch.testing.assert_close(margin, torch.full_like(margin, math.log(9)), atol=0.01, rtol=0)
    elementwise = (logits.softmax(1) * calibration.exp().diagonal()).log()
    assert (elementwise[:, 0] - elementwise[:, 1]).abs().min() > 5


def test_a_class_that_is_never_predicted_makes_no_nan():
    """The released code divides 0 by 0 here (methods.md, M3)."""
    logits = torch.tensor([[9.0, 1.0, -5.0], [1.0, 8.0, -5.0], [3.0, 2.0, -5.0]])
    targets = torch.tensor([0, 1, 2])
    calibration = log_calibration(logits, targets, 0.001)
    assert calibration.isfinite().all()
    torch.testing.assert_close(calibration.exp().sum(1), torch.ones(3, dtype=torch.float64))
    assert calibrated_shift(logits, calibration, 0.001).isfinite().all()


def test_a_class_without_examples_keeps_its_column():
    logits, targets = table()
    targets[targets == 1] = 3
    calibration = log_calibration(logits, targets)
    assert calibration.shape == (4, 4)
    assert (calibration[:, 1] == -torch.inf).all()
    shift = calibrated_shift(logits, calibration)
    assert shift.isfinite().all()
    assert (shift[:, 1] < -10).all()


def test_a_row_depends_on_the_training_set_not_on_its_batch():
    """The released code calibrates on each batch (M1), and breaks where one lacks a class (M2)."""
    logits, targets = table()
    calibration = log_calibration(logits, targets, 0.1)
    whole = calibrated_shift(logits, calibration, 0.1)
    batch = (targets != 2).nonzero().flatten()[:7]
    torch.testing.assert_close(calibrated_shift(logits[batch], calibration, 0.1), whole[batch])


def test_a_model_that_knows_nothing_shifts_nothing():
    targets = torch.arange(60) % 3
    logits = torch.zeros(60, 3)
    shift = calibrated_shift(logits, log_calibration(logits, targets), dtype=torch.float16)
    assert torch.equal(shift, torch.zeros(60, 3, dtype=torch.float16))


def test_half_precision_is_off_by_no_more_than_said():
    logits, targets = table(2000, scale=0.05)
    logits += torch.nn.functional.one_hot(
        targets, 4
    )  # a held-out model that is nearly always right
    calibration = log_calibration(logits, targets, 0.1)
    exact = calibrated_shift(logits, calibration, 0.1, torch.float64)
    half = calibrated_shift(logits, calibration, 0.1, torch.float16)
    assert exact.min() < -9
    assert (half.double() - exact).abs().max() < 0.004


def test_it_reads_half_precision_logits():
    logits, targets = table()
    half = log_calibration(logits.half(), targets)
    torch.testing.assert_close(half, log_calibration(logits.half().double(), targets))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_is_positive(temperature):
    logits, targets = table()
    with pytest.raises(ContractError, match="temperature"):
        log_calibration(logits, targets, temperature)
    with pytest.raises(ContractError, match="temperature"):
        calibrated_shift(logits, torch.zeros(4, 4), temperature)


def test_flip_probability_is_that_of_the_paper():
    logits, _ = table(num_classes=5)
    for row, found in zip(logits.tolist(), flip_probability(logits).tolist(), strict=True):
        assert found == pytest.approx((max(softmax(row, 1)) - 1 / 5) * 5 / 4, abs=1e-6)
    assert torch.equal(flip_probability(torch.full((2, 5), 3.0)), torch.zeros(2))


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (torch.zeros(9, 3), r"shape \(9, 3\).*10 examples of 3 classes"),
        (torch.zeros(10, 2), r"shape \(10, 2\)"),
        (torch.zeros(30), r"shape \(30,\)"),
        (torch.zeros(10, 3, dtype=torch.int64), "int64"),
        (torch.zeros(10, 3).index_fill(0, torch.tensor([4]), math.nan), "example 4 "),
        (torch.zeros(10, 3).index_fill(0, torch.tensor([7]), math.inf), "example 7 "),
    ],
)
def test_what_is_no_table_is_refused(logits, words):
    with pytest.raises(ContractError, match=words):
        check_held_out(logits, 10, 3)


def test_more_classes_than_targets_are_fine():
    check_held_out(torch.zeros(10, 4), 10, 3)


def test_files(tmp_path):
    logits, _ = table()
    save_held_out(logits.requires_grad_(), tmp_path / "a.pt")
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True), logits)
    assert torch.equal(load_held_out(tmp_path / "a.pt"), logits)
    torch.save({"held_out": logits.detach(), "flip_rate": 0.1}, tmp_path / "b.pt")
    assert torch.equal(load_held_out(str(tmp_path / "b.pt")), logits)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ContractError, match="no such file"):
        load_held_out(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("0.1,0.2")
    with pytest.raises(ContractError, match="cannot be read"):
        load_held_out(tmp_path / "text.pt")
    torch.save({"logits": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(ContractError, match="holds a dict"):
        load_held_out(tmp_path / "other.pt")


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_a_hard_shift_is_one_row_of_the_calibration(strength):
    logits, targets = table()
    calibration = log_calibration(logits, targets, 0.3)
    found = calibrated_shift(logits, calibration, 0.3, torch.float64, hard=True, strength=strength)
    for row, shift in zip(logits.tolist(), found, strict=True):
        wanted = [
            strength * math.log(p + SMALLEST_PROBABILITY)
            for p in calibration[row.index(max(row))].exp().tolist()
        ]
        assert shift.tolist() == pytest.approx([w - max(wanted) for w in wanted])
