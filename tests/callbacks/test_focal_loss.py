from __future__ import annotations

import pytest
from torch.nn import functional as F

from lightning_robust import FocalLoss


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_trains_by_the_focal_loss(gamma, train, replay):
    """Equation 4, differentiated as a whole."""
    record = train(FocalLoss(gamma))

    def loss(logits, targets, indices, epoch):
        log_p = -F.cross_entropy(logits, targets, reduction="none")
        return (-((1 - log_p.exp()) ** gamma) * log_p).mean()

    replay(record, loss)
