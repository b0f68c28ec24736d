"""uLA against its formula, and its bias head against scikit-learn."""

from __future__ import annotations

import math
import warnings

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from lightning_robust import ULA


def adjustment(logits, targets, temperature):
    """log p(y | guess), by counting; (n, C) as a list."""
    probs = (logits.double() / temperature).softmax(1).tolist()
    joint = [[0.0] * 3 for _ in range(3)]
    for q, y in zip(probs, targets.tolist(), strict=True):
        for s in range(3):
            joint[s][y] += q[s]
    return torch.tensor(
        [
            [math.log(joint[s][y] / sum(joint[s]) + 1e-6) for y in range(3)]
            for s in logits.argmax(1).tolist()
        ]
    )


def test_trains_by_the_adjusted_cross_entropy(train, replay, points):
    biased = 2 * torch.randn(60, 3, generator=torch.Generator().manual_seed(3))
    record = train(ULA(biased, strength=1.5, temperature=0.7))
    shift = 1.5 * adjustment(biased, points.targets, 0.7)
    assert shift.std() > 0.3
    shift -= shift.amax(1, keepdim=True)
    shift = shift.half().float()

    replay(record, lambda z, y, indices, _: F.cross_entropy(z + shift[indices], y))


def test_the_bias_head_is_a_linear_classifier_of_the_first_features(train, points):
    method = ULA(bias_head_strength=0.3)
    record = train(method, epochs=1)
    features = StandardScaler().fit_transform(record.views[0].features.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn's changing names
        by_them = LogisticRegression(
            penalty="elasticnet",  # the name that scikit-learn 1.8 drops, and older ones need
            C=0.3,
            l1_ratio=1.0,
            solver="saga",
            tol=1e-6,
            max_iter=20_000,
            random_state=0,
        ).fit(features, points.targets)
    wanted = torch.tensor(by_them.predict_log_proba(features)).float()
    found = method.provided.log_softmax(1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
    assert len(found.argmax(1).unique()) > 1
