"""What the one-shot methods of selection share, and each one's score, found from the logits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_robust import (
    EL2N,
    ContractError,
    FacilityLocationSubset,
    Forgetting,
    GraNd,
    Herding,
    HighLearnability,
    KCenter,
    LeastConfidence,
    MiddlePerplexity,
)
from lightning_robust.functional.subsets import herding, k_center

METHODS = [EL2N, GraNd, Forgetting, LeastConfidence, MiddlePerplexity, HighLearnability]
OF_FEATURES = [FacilityLocationSubset, Herding, KCenter]
ALL = [*METHODS, *OF_FEATURES]


def errors(views, y):
    return [
        float((F.softmax(z, 0) - F.one_hot(t, 3)).square().sum().sqrt())
        for z, t in zip(views[-1].logits.double(), y, strict=True)
    ]


def last_layer(views, y):
    """Norm of the gradient of the head, by autograd, one example at a time."""
    found = []
    for features, logits, target in zip(views[-1].features, views[-1].logits, y, strict=True):
        weight = torch.zeros(3, 6, requires_grad=True)
        bias = torch.zeros(3, requires_grad=True)
        loss = F.cross_entropy((logits + weight @ features + bias)[None], target[None])
        parts = torch.autograd.grad(loss, [weight, bias])
        found.append(float(torch.cat([part.flatten() for part in parts]).norm()))
    return found


def forgetting(views, y):
    """Counted example by example over the ends of epochs; never learned comes first."""
    found = []
    for index, target in enumerate(y.tolist()):
        history = [int(view.logits[index].argmax()) == target for view in views[1:]]
        falls = sum(a and not b for a, b in itertools.pairwise(history))
        found.append(falls if any(history) else len(history))
    return found


def losses(view, y):
    return [-float(F.log_softmax(z, 0)[t]) for z, t in zip(view.logits.double(), y, strict=True)]


def middle(views, y):
    """Distance from the middle of the ranking, the nearest highest."""
    order = sorted(range(60), key=lambda i: losses(views[-1], y)[i])
    return [-abs(order.index(i) - 29.5 - 0.1) for i in range(60)]


SCORES = {  # the higher, the rather kept
    EL2N: errors,
    GraNd: last_layer,
    Forgetting: forgetting,
    LeastConfidence: lambda views, y: [-float(F.softmax(z, 0).max()) for z in views[-1].logits],
    MiddlePerplexity: middle,
    HighLearnability: lambda views, y: [
        before - after
        for before, after in zip(losses(views[0], y), losses(views[-1], y), strict=True)
    ],
}


def medoids(features, members, k):
    """Greedy facility location by a double loop."""
    nearest, picks = dict.fromkeys(members, 1e9), []
    for _ in range(k):
        costs = {
            j: sum(min(nearest[i], float((features[i] - features[j]).norm())) for i in members)
            for j in members
            if j not in picks
        }
        picks.append(min(costs, key=lambda j: (round(costs[j], 9), j)))
        nearest = {
            i: min(nearest[i], float((features[i] - features[picks[-1]]).norm())) for i in members
        }
    return set(picks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scoring_epochs", [1, 4])
def test_keeps_what_scores_highest(train, points, method, scoring_epochs):
    made = method(0.3, scoring_epochs=scoring_epochs)
    record = train(made, scoring_epochs + 2)
    for epoch in range(scoring_epochs):
        assert record.examples(epoch) == set(range(60))
    kept = record.examples(scoring_epochs)
    assert kept == record.examples(scoring_epochs + 1)
    assert len(kept) == 18
    scores = SCORES[method](record.views[: scoring_epochs + 1], points.targets)
    left_out = set(range(60)) - kept
    assert min(scores[i] for i in kept) >= max(scores[i] for i in left_out) - 1e-5
    assert max(scores) > min(scores)
    [logged] = [v for k, v in record.trainer.callback_metrics.items() if "num_examples" in k]
    assert logged == 18


@pytest.mark.parametrize("method", METHODS)
def test_classes_keep_their_shares(train, points, method):
    record = train(method(0.3, scoring_epochs=1, per_class=True), 2)
    kept = record.examples(1)
    assert torch.bincount(points.targets[list(kept)]).tolist() == [9, 6, 3]
    if method is MiddlePerplexity:  # there the middle is that of the class
        return
    scores = SCORES[method](record.views[:2], points.targets)
    for label in range(3):
        members = set((points.targets == label).nonzero().squeeze(1).tolist())
        assert min(scores[i] for i in kept & members) >= max(scores[i] for i in members - kept)


PICKS = {  # the last two as tests/functional/test_subsets.py has checked them
    FacilityLocationSubset: medoids,
    Herding: lambda features, members, k: {members[i] for i in herding(features[members], k)},
    KCenter: lambda features, members, k: {members[i] for i in k_center(features[members], k)},
}


@pytest.mark.parametrize("method", PICKS)
@pytest.mark.parametrize("per_class", [True, False])
def test_what_is_picked_by_features(train, points, method, per_class):
    record = train(method(0.2, scoring_epochs=2, per_class=per_class), 3)
    expected = set()
    for label, k in {0: 6, 1: 4, 2: 2}.items() if per_class else {None: 12}.items():
        members = [i for i in range(60) if label in (None, int(points.targets[i]))]
        expected |= PICKS[method](record.views[2].features.double(), members, k)
    assert record.examples(2) == expected


@pytest.mark.parametrize("method", ALL)
def test_starts_again_or_goes_on(train, method):
    again = train(method(0.3, scoring_epochs=1), 2)
    assert torch.equal(again.starts[1], again.starts[0])
    on = train(method(0.3, scoring_epochs=1, reinitialise=False), 2)
    assert not torch.equal(on.starts[1], on.starts[0])
    assert on.examples(1) == again.examples(1)


@pytest.mark.parametrize("method", [EL2N, GraNd, *OF_FEATURES])
def test_may_select_before_anything_is_trained(train, method):
    record = train(method(0.3, scoring_epochs=0), 2)
    assert len(record.examples(0)) == 18
    if method in SCORES:
        scores = SCORES[method](record.views[:1], torch.tensor([0, 0, 0, 1, 1, 2]).repeat(10))
        kept = record.examples(0)
        assert min(scores[i] for i in kept) >= max(scores[i] for i in set(range(60)) - kept) - 1e-5
    assert not torch.equal(record.starts[1], record.starts[0])


FORMS = {
    "tensor": lambda scores, folder: scores,
    "array": lambda scores, folder: scores.numpy(),
    "file": lambda scores, folder: _saved(scores, folder / "scores.pt"),
    "function": lambda scores, folder: lambda dataset: scores[: len(dataset)],
}


def _saved(scores, path):
    torch.save(scores, path)
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_scores_may_be_given(train, tmp_path, form):
    """Nothing is measured, and the first epoch is on the selection."""
    scores = torch.randn(60, generator=torch.Generator().manual_seed(2))
    method = EL2N(0.3, scores=FORMS[form](scores, tmp_path))
    record = train(method, 2)
    highest = set(scores.argsort(descending=True)[:18].tolist())
    assert record.examples(0) == record.examples(1) == highest
    assert not torch.equal(record.starts[1], record.starts[0])
    assert torch.equal(method.measured, scores.double())


@pytest.mark.parametrize(("method", "kept"), [(LeastConfidence, range(18)), (GraNd, range(42, 60))])
def test_given_scores_are_in_the_methods_own_unit(train, method, kept):
    assert train(method(0.3, scores=torch.arange(60)), 1).examples(0) == set(kept)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (torch.zeros(59), r"60 finite numbers.*\(59,\)"),
        (torch.zeros(60, 2), r"60 finite numbers.*\(60, 2\)"),
        (np.full(60, np.nan), "60 not finite"),
        ("missing.pt", "scores='missing.pt' cannot be read"),
        (lambda dataset: [0.0] * 60, "scores hold a list"),
    ],
    ids=["length", "shape", "NaN", "no file", "list"],
)
def test_refuses_bad_scores_before_the_first_step(train, scores, words):
    with pytest.raises(ContractError, match=words):
        train(EL2N(scores=scores))


def test_the_view_without_augmentation_is_what_is_scored(train, points):
    clean = type(points)(seed=3)
    runs = [train(EL2N(0.3, scoring_epochs=1, clean_dataset=c), 2) for c in (None, clean)]
    assert runs[0].examples(1) != runs[1].examples(1)


def test_without_a_second_training_there_is_a_warning(train):
    with pytest.warns(UserWarning, match="EL2N selects after epoch 2.*nothing will be left out"):
        train(EL2N(scoring_epochs=2), 2)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    ("name", "value"),
    [("fraction", 0), ("scoring_epochs", -1), ("per_class", 1), ("reinitialise", "no")],
)
def test_refuses_bad_arguments_by_name(method, name, value):
    with pytest.raises(ContractError, match=name):
        method(**{name: value})


@pytest.mark.parametrize("method", [Forgetting, HighLearnability])
def test_needs_an_epoch_to_compare(method):
    with pytest.raises(ContractError, match="scoring_epochs must be an integer >= 1, got 0"):
        method(scoring_epochs=0)
    with pytest.raises(ContractError, match="scores must be a tensor"):
        method(scores=3)
