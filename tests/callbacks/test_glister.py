from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_robust import GLISTER, ContractError


def greedy(view, targets, head, val, k, step_size, members):
    """One pick at a time by autograd on the last layer, as it is after the steps before."""

    def slope(features, y):
        parameters = [p.clone().requires_grad_() for p in head]
        return torch.autograd.grad(F.cross_entropy(F.linear(features, *parameters), y), parameters)

    own = {j: slope(view.features[j, None].double(), targets[j, None]) for j in members}
    picks = []
    for _ in range(k):
        down = slope(*val)
        gains = {
            j: sum(float((a * b).sum()) for a, b in zip(own[j], down, strict=True))
            for j in members
            if j not in picks
        }
        picks.append(max(gains, key=gains.get))
        head = [p - step_size / k * g for p, g in zip(head, own[picks[-1]], strict=True)]
    return set(picks)


class Head:
    """Weight and bias of the head as each epoch was decided on, found from the views."""

    @staticmethod
    def of(view):
        inputs = torch.cat([view.features, torch.ones(60, 1)], 1).double()
        solved = torch.linalg.lstsq(inputs, view.logits.double()).solution.T
        return [solved[:, :-1], solved[:, -1]]


@pytest.mark.parametrize("data", ["validation", "train"])
@pytest.mark.parametrize("per_class", [False, True])
def test_picks_what_lowers_the_loss(train, points, val_points, data, per_class):
    method = GLISTER(
        0.2, every_n_epochs=1, rounds=60, step_size=2.0, data=data, per_class=per_class
    )
    record = train(method)
    for epoch in range(3):
        view, judge = record.views[epoch], (record.views, record.val_views)[data == "validation"]
        y = val_points.targets if data == "validation" else points.targets
        val = judge[epoch].features.double(), y
        expected = set()
        for label, k in {0: 6, 1: 4, 2: 2}.items() if per_class else {None: 12}.items():
            members = [i for i in range(60) if label in (None, int(points.targets[i]))]
            expected |= greedy(view, points.targets, Head.of(view), val, k, 2.0, members)
        assert record.examples(epoch) == expected
        assert set(map(round, record.module.weights[epoch].values())) == {1}
    assert record.trainer.callback_metrics["glister/num_examples"] == 12


def test_keeps_a_subset_for_some_epochs(train):
    record = train(GLISTER(0.2, start_epoch=1, every_n_epochs=2), 4)
    sets = [record.examples(epoch) for epoch in range(4)]
    assert sets[0] == set(range(60))
    assert sets[1] == sets[2] != sets[3]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.parametrize("start_epoch", [0, 2])
def test_refuses_to_go_without_a_validation_set(train, points, start_epoch):
    module = train(GLISTER(data="train"), 1).module
    trainer = Trainer(
        callbacks=[GLISTER(start_epoch=start_epoch)],
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(ContractError, match="needs a validation DataLoader"):
        trainer.fit(module, DataLoader(points, batch_size=8))
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("name", "value"), [("fraction", 2), ("step_size", 0), ("rounds", 0), ("data", "test")]
)
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        GLISTER(**{name: value})
