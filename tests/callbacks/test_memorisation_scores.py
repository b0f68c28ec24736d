"""Memorisation scores of a run: of which model, and the mean over several."""

from __future__ import annotations

import csv

import pytest
import torch

from lightning_robust import ContractError, MemorisationScores
from lightning_robust.functional.memorisation import self_influence


@pytest.mark.parametrize(("every", "times"), [(None, [4]), (2, [2, 4]), (3, [3]), (9, [])])
def test_scores_are_those_of_the_model_at_the_times(train, points, tmp_path, every, times):
    """As tests/functional/test_memorisation.py has checked them."""
    report = tmp_path / "new" / "scores.csv"
    method = MemorisationScores(every, ridge=0.01, report_path=str(report))
    record = train(method, 4)
    assert method.times == len(times)
    logged = record.trainer.callback_metrics
    if not times:
        assert method.scores is None
        assert not report.exists()
        return
    expected = torch.stack(
        [
            self_influence(view.features, view.logits, points.targets, ridge=0.01)
            for view in (record.views[time] for time in times)
        ]
    ).mean(0)
    torch.testing.assert_close(method.scores, expected, rtol=1e-4, atol=1e-7)
    assert float(logged["memorisation_scores/mean"]) == pytest.approx(float(expected.mean()))
    with report.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(60))
    assert [int(row["target"]) for row in rows] == points.targets.tolist()
    assert [float(row["score"]) for row in rows] == method.scores.tolist()


def test_the_view_without_augmentation_is_what_is_scored(train, points):
    methods = [MemorisationScores(clean_dataset=c) for c in (None, type(points)(seed=3))]
    for method in methods:
        train(method, 1)
    assert not torch.allclose(methods[0].scores, methods[1].scores)


@pytest.mark.parametrize(
    ("name", "value"), [("every_n_epochs", 0), ("ridge", 0), ("num_projections", 0)]
)
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        MemorisationScores(**{name: value})
