"""EIIL against its sentence written out: gradients by autograd, Group DRO by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_robust import EIIL


def infer(logits, targets):
    """By the derivative of each loss in a scale of the logits."""
    positive = []
    for z, y in zip(logits, targets, strict=True):
        scale = torch.ones((), requires_grad=True)
        [slope] = torch.autograd.grad(F.cross_entropy(scale * z, y), scale)
        positive.append(bool(slope > 0))
    return torch.tensor(positive)


def test_trains_by_group_dro_on_what_it_infers(train, replay, points):
    method = EIIL(1, step_size=0.5, balanced_sampling=False, reinitialise=False)
    record = train(method)
    hard = infer(record.views[1].logits, points.targets)
    assert 5 < hard.sum() < 55
    groups = 2 * points.targets + hard.long()
    sizes = groups.bincount(minlength=6)
    q = [float(size > 0) / int((sizes > 0).sum()) for size in sizes]

    def loss(logits, targets, indices, epoch):
        losses = F.cross_entropy(logits, targets, reduction="none")
        if epoch == 0:
            return losses.mean()
        means = {int(g): losses[groups[indices] == g].mean() for g in groups[indices].unique()}
        for group, mean in means.items():
            q[group] *= math.exp(0.5 * mean.item())
        q[:] = [part / sum(q) for part in q]
        return sum(q[group] * mean for group, mean in means.items())

    replay(record, loss)
    assert method.weights.tolist() == pytest.approx(q, rel=1e-4)
    assert torch.equal(method.inferred.ids, groups)
    assert method.inferred.names[:3] == ("0_easy", "0_hard", "1_easy")
    assert record.trainer.callback_metrics["eiil/hard_rate"] == pytest.approx(hard.float().mean())


def test_draws_the_groups_equally_often_and_starts_again(train, points):
    method = EIIL(1, step_size=None)
    record = train(method, epochs=40)
    assert torch.equal(record.starts[1], record.starts[0])
    played = torch.tensor([i for epoch in range(1, 40) for i in record.module.played[epoch]])
    counts = method.inferred.ids[played].bincount(minlength=6)
    present = method.inferred.counts > 0
    assert counts[~present].sum() == 0
    share = counts[present] / len(played)
    assert share.tolist() == pytest.approx([1 / int(present.sum())] * int(present.sum()), abs=0.03)


def test_two_environments_where_classes_are_not_crossed(train, points):
    method = EIIL(1, cross_classes=False, balanced_sampling=False)
    with pytest.raises(RuntimeError, match="nothing is inferred yet"):
        _ = method.inferred
    train(method, epochs=2)
    assert method.inferred.names == ("easy", "hard")
    assert len(method.weights) == 2


def test_without_a_second_training_there_is_a_warning(train):
    with pytest.warns(UserWarning, match="no second training"):
        train(EIIL(3), epochs=3)
