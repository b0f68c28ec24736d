from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_robust import LDAM


@pytest.mark.parametrize(("by", "scale"), [("class", 1.0), ("group", 2.0)])
def test_trains_by_the_margin_loss_and_reweighs_late(by, scale, train, replay, points):
    points.groups = torch.arange(60) % 7 // 3
    ids = (points.targets if by == "class" else points.groups).tolist()
    sizes = [ids.count(number) for number in range(3)]
    assert len(set(sizes)) == 3
    record = train(LDAM(by=by, max_margin=0.8, scale=scale, reweight_epoch=2, beta=0.9))
    margins = [0.8 * (min(sizes) / size) ** 0.25 for size in sizes]
    inverse = [0.1 / (1 - 0.9**size) for size in sizes]

    def loss(logits, targets, indices, epoch):
        total, weights = 0.0, 0.0
        for z, y, i in zip(logits, targets, indices.tolist(), strict=True):
            z = torch.stack([v - margins[ids[i]] if c == y else v for c, v in enumerate(z)])
            weight = inverse[ids[i]] if epoch >= 2 else 1.0
            total, weights = total + weight * F.cross_entropy(scale * z, y), weights + weight
        return total / weights  # Algorithm 1 divides by the sum over the batch

    replay(record, loss)
