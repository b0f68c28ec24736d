"""Logit correction against its formula, one number at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_robust import ContractError, LogitCorrection

TEMPERATURE = 0.5


def softmax(row):
    powers = [math.exp(z / TEMPERATURE) for z in row]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_trains_by_the_corrected_cross_entropy(momentum, train, replay, points):
    """With the joint of classes and what the biased network sees, averaged over batches."""
    biased = torch.randn(60, 2, 3, generator=torch.Generator().manual_seed(3))
    record = train(LogitCorrection(biased, temperature=TEMPERATURE, momentum=momentum))
    joint = []

    def loss(logits, targets, indices, epoch):
        rows = [softmax(biased[i, min(epoch, 1)].tolist()) for i in indices.tolist()]
        batch = [[0.0] * 3 for _ in range(3)]
        for row, y in zip(rows, targets.tolist(), strict=True):
            for s in range(3):
                batch[s][y] += row[s] / len(rows)
        before = joint[:] or batch
        joint[:] = [
            [momentum * before[s][y] + (1 - momentum) * batch[s][y] for y in range(3)]
            for s in range(3)
        ]
        correction = [
            [math.log(sum(row[s] * joint[s][y] for s in range(3)) + 1e-6 / 3) for y in range(3)]
            for row in rows
        ]
        return F.cross_entropy(logits + torch.tensor(correction), targets)

    replay(record, loss, tolerance=5e-4)  # the table is in half precision


def test_one_table_does_for_all_epochs(train):
    table = torch.randn(60, 3, generator=torch.Generator().manual_seed(3))
    ends = [
        train(LogitCorrection(biased)).module.head.weight
        for biased in (table, table.unsqueeze(1).expand(60, 2, 3))
    ]
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("biased", "words"),
    [
        (torch.zeros(60, 0, 3), "no epoch"),
        (torch.zeros(59, 2, 3), r"shape \(59, 3\)"),
        (torch.zeros(60, 4), "4 classes and the head 3"),
        (None, "needs a biased network's logits"),
    ],
)
def test_bad_logits_are_refused(biased, words, train):
    with pytest.raises(ContractError, match=words):
        train(LogitCorrection(biased))
