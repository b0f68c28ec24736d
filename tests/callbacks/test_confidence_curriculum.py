from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_robust import ConfidenceCurriculum, ContractError


def ranking(view, targets):
    """From the most confident to the least."""
    confidence = [
        float(F.softmax(z, 0)[y]) for z, y in zip(view.logits.double(), targets, strict=True)
    ]
    return sorted(range(60), key=lambda i: -confidence[i])


def test_the_window_moves_from_the_most_to_the_least_confident(train, points):
    record = train(ConfidenceCurriculum(0.3, curriculum_epochs=4), 6)
    for epoch, start in enumerate((0, 14, 28, 42, 42, 42)):  # 60 - 18 = 3 * 14
        expected = ranking(record.views[epoch], points.targets)[start : start + 18]
        assert record.examples(epoch) == set(expected)
        assert set(map(round, record.module.weights[epoch].values())) == {1}
    assert record.trainer.callback_metrics["confidence_curriculum/num_examples"] == 18


def test_starts_late_and_keeps_a_selection_for_some_epochs(train, points):
    method = ConfidenceCurriculum(0.3, curriculum_epochs=3, start_epoch=1, every_n_epochs=2)
    record = train(method, 4)
    assert record.examples(0) == set(range(60))
    for first, start in ((1, 0), (3, 42)):
        expected = ranking(record.views[first], points.targets)[start : start + 18]
        assert record.examples(first) == set(expected)
    assert record.examples(2) == record.examples(1)


def test_the_confidence_is_that_in_the_target_not_in_the_prediction(train, points):
    """What is misclassified comes last, however sure the model is."""
    record = train(ConfidenceCurriculum(0.2, curriculum_epochs=2, every_n_epochs=1), 2)
    logits = record.views[1].logits
    wrong = set((logits.argmax(1) != points.targets).nonzero().squeeze(1).tolist())
    assert len(wrong & record.examples(1)) == min(12, len(wrong)) > 0
    assert not torch.equal(logits, record.views[0].logits)


@pytest.mark.parametrize(
    ("name", "value"), [("fraction", 0), ("curriculum_epochs", 1), ("every_n_epochs", 0)]
)
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        ConfidenceCurriculum(**{name: value})
