from __future__ import annotations

import torch
from torch.nn import functional as F

from lightning_robust import CVaRDRO


def test_trains_by_the_dual_form_on_each_batch(train, replay):
    """``min over t of t + mean(relu(loss - t)) / alpha``; the minimum is at one of the losses."""
    record = train(CVaRDRO(0.3, start_epoch=1))

    def loss(logits, targets, indices, epoch):
        losses = F.cross_entropy(logits, targets, reduction="none")
        if epoch == 0:
            return losses.mean()
        return torch.stack([t + F.relu(losses - t).mean() / 0.3 for t in losses]).amin()

    replay(record, loss)
    assert sum(weight == 0 for weight in record.module.weights[1].values()) > 30
