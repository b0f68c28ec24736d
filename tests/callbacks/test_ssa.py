"""SSA: who predicts whom, and with what."""

from __future__ import annotations

import pytest
import torch

from lightning_robust import SSA, ContractError
from lightning_robust.callbacks import ssa as module
from lightning_robust.functional.pseudo_groups import fit_group_predictor


@pytest.fixture
def fits(monkeypatch) -> list:
    """What each predictor was fitted on, and what it became."""
    seen: list = []

    def noted(*arguments, **settings):
        found = fit_group_predictor(*arguments, **settings)
        seen.append((arguments, found))
        return found

    monkeypatch.setattr(module, "fit_group_predictor", noted)
    return seen


def groups_of(points) -> torch.Tensor:
    return 2 * points.targets + (points.x[:, 4] > 0.2).long()


def test_each_fold_is_predicted_without_it_among_the_groups_of_its_class(
    train, points, val_points, fits
):
    val_points.groups = groups_of(val_points)
    method = SSA(2, num_folds=3, num_steps=80, seed=3)
    run = train(method, 3)
    view, val_view = run.views[2].features.double(), run.val_views[2].features.double()
    mean, deviation = view.mean(0), view.std(0, correction=0)
    rows = (view - mean) / deviation
    assert len(fits) == 3
    predicted = set()
    for (known, groups, _, others, _), (weight, bias) in fits:
        wanted = (val_view - mean) / deviation
        torch.testing.assert_close(known, wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(groups, val_points.groups)
        near = (rows[:, None] - others[None]).abs().amax(2).min(1).values < 1e-4
        held = (~near).nonzero().flatten().tolist()
        assert len(held) == 20
        predicted |= set(held)
        for index in held:  # the larger of the class's two
            z = (rows[index] @ weight.T + bias).tolist()
            low = 2 * int(points.targets[index])
            assert int(method.ids[index]) == (low if z[low] >= z[low + 1] else low + 1)
    assert predicted == set(range(60))
    agreement = (method.ids == groups_of(points)).float().mean()
    assert agreement > 0.6
    metrics = run.trainer.callback_metrics
    sizes = torch.bincount(method.ids)
    assert metrics["ssa/smallest_group"] == sizes[sizes > 0].min()
    assert torch.equal(method.inferred.ids, method.ids)


def test_a_share_of_the_training_set_keeps_its_groups(train, points, fits):
    points.groups = groups_of(points)
    method = SSA(1, data="train", share=0.25, num_folds=2, num_steps=20)
    train(method, 2)
    sizes = torch.bincount(points.groups)
    for (_, groups, _, others, _), _ in fits:
        assert torch.equal(torch.bincount(groups), (0.25 * sizes).ceil().long())
        assert len(others) == pytest.approx((60 - len(groups)) / 2, abs=1)
    assert torch.equal(method.ids // 2, points.targets)


def test_without_validation_groups_it_is_refused_before_training(train):
    with pytest.raises(ContractError, match="groups"):
        train(SSA(1), 2)


def test_a_class_without_a_known_group_is_refused_before_training(train, val_points):
    val_points.groups = groups_of(val_points)
    val_points.targets = val_points.targets.clamp(max=1)
    with pytest.raises(ContractError, match="class 2 has a known group"):
        train(SSA(1), 2)
