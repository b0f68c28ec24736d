"""LfF against Algorithm 1 written out with Python floats."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_robust import ContractError, LfF


@pytest.fixture
def biased():
    return 3 * torch.rand(60, 2, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("start", [0, 1])
def test_trains_by_relative_difficulty(start, train, replay, points, biased):
    """Three epochs on losses of two: the last column stays."""
    method = LfF(biased, start_epoch=start)
    record = train(method)
    averages = [
        [first, 0.7 * first + 0.3 * second, 0.7 * first + 0.3 * second]
        for first, second in biased.tolist()
    ]
    labels, seen = points.targets.tolist(), {}
    largest = [0.0] * 3

    def before_epoch(epoch, module):
        largest[:] = [
            max([v for i, v in seen.items() if labels[i] == c], default=0.0) for c in range(3)
        ]

    def loss(logits, targets, indices, epoch):
        losses = F.cross_entropy(logits, targets, reduction="none")
        if epoch < start:
            return losses.mean()
        for i, value in zip(indices.tolist(), losses.tolist(), strict=True):
            seen[i] = 0.7 * seen[i] + 0.3 * value if i in seen else value
            largest[labels[i]] = max(largest[labels[i]], seen[i])
        total = 0.0
        for i, value in zip(indices.tolist(), losses, strict=True):
            of_class = [averages[j][epoch] for j in range(60) if labels[j] == labels[i]]
            b, d = averages[i][epoch] / max(of_class), seen[i] / largest[labels[i]]
            total = total + b / (b + d) * value
        return total / len(losses)

    replay(record, loss, before_epoch)
    assert method.losses.tolist() == pytest.approx([seen[i] for i in range(60)], rel=1e-3)


def test_what_the_biased_network_explains_counts_nothing(train, points):
    biased = torch.ones(60)
    biased[::2] = 0.0
    record = train(LfF(biased), epochs=1)
    weights = record.module.weights[0]
    assert all(weights[i] == 0 for i in range(0, 60, 2))
    assert all(0 < weights[i] < 1 for i in range(1, 60, 2))


@pytest.mark.parametrize(
    ("biased", "words"),
    [
        (torch.zeros(59, 2), r"shape \(59, 2\)"),
        (torch.zeros(60, 0), r"shape \(60, 0\)"),
        (torch.full((60,), -1.0), "example 0"),
        (None, "needs a biased network's losses"),
        (lambda dataset: 3, "returned a int"),
    ],
)
def test_bad_losses_are_refused(biased, words, train):
    with pytest.raises(ContractError, match=words):
        train(LfF(biased))
