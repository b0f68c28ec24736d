"""Vision-language fine-tuning on digits: what the recommended sums do to the worst group."""

from __future__ import annotations

from statistics import mean

import pytest
import torch

from lightning_robust.contracts import ContractError
from lightning_robust.data.coloured_digits import HUES, ColouredDigits
from lightning_robust.reproduce import vl_digits

pytestmark = pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_captions_of_a_group_name_its_class_and_hue():
    """Pre-training looks captions up by the number of the group."""
    assert len(HUES) == len(vl_digits.LABELS) == 5
    assert ColouredDigits.group_names[7] == "23_cyan"
    text = vl_digits.BagOfWords()
    assert text(["a photo of a cyan two-three", "the digit two-three"]).shape == (2, 64)


def test_one_short_run_fine_tunes():
    data = ColouredDigits()
    encoders = vl_digits.pretrained(data, 0, epochs=10)
    before = vl_digits.train("pre-trained", encoders=encoders)
    after = vl_digits.train("clip + lc + vc + ls", encoders=encoders, epochs=5)
    assert before.epoch == 0
    assert 1 <= after.epoch <= 5
    assert after.acc > max(before.acc, 0.3)
    with pytest.raises(ContractError, match="method"):
        vl_digits.train("lc")


@pytest.mark.slow
def test_the_language_sum_is_above_plain_fine_tuning():
    worst = {"clip": [], "clip + lc + vc + ls": []}
    for seed in range(3):
        encoders = vl_digits.pretrained(ColouredDigits(seed=seed), seed)
        for method, values in worst.items():
            values.append(vl_digits.train(method, seed, encoders=encoders).worst_group_acc)
    assert mean(worst["clip + lc + vc + ls"]) > mean(worst["clip"])
