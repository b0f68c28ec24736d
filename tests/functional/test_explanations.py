"""Discrepancies and overlaps, against loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_robust.contracts import ContractError
from lightning_robust.functional.explanations import (
    accuracy_discrepancy,
    adjusted_iou,
    detected,
    rank_attributes,
    soft_iou,
)
from lightning_robust.metrics import AdjustedIoU


def draw(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("min_count", [1, 4])
def test_discrepancy_is_equation_7_7(min_count):
    correct, targets = draw(60) < 0.6, (draw(60) * 97 % 4).long()
    attributes = draw(60, 3) < 0.3
    attributes[targets == 2, 0] = True  # never absent
    found = accuracy_discrepancy(correct, targets, attributes, 5, min_count=min_count)
    assert found.shape == (5, 3)
    for label in range(5):
        for attribute in range(3):
            sides = [
                [
                    bool(correct[i])
                    for i in range(60)
                    if targets[i] == label and bool(attributes[i, attribute]) == shown
                ]
                for shown in (True, False)
            ]
            value = float(found[label, attribute])
            if min(map(len, sides)) < min_count:
                assert math.isnan(value)
            else:
                expected = [sum(side) / len(side) for side in sides]
                assert value == pytest.approx(expected[0] - expected[1])
    assert found[2, 0].isnan()
    assert found[4].isnan().all()


def test_the_ranking_finds_what_the_model_relies_on():
    """A model that says 1 wherever it sees attribute 1."""
    targets = torch.arange(40) % 2
    attributes = draw(40, 3) < 0.5
    report = rank_attributes(
        attributes[:, 1].long(),
        targets,
        attributes,
        class_names=["land", "boat"],
        attribute_names=["tree", "water", "sky"],
    )
    first, last = report.ranking[0], report.ranking[-1]
    assert (first.label, first.attribute, first.discrepancy) == ("boat", "water", 1.0)
    assert first.confused_with == "land"
    boats_on_land = [i for i in range(40) if i % 2 == 1 and not attributes[i, 1]]
    assert list(first.missed) == boats_on_land
    assert last.missed == ()
    assert (last.label, last.attribute, last.discrepancy) == ("land", "water", -1.0)
    values = [one.discrepancy for one in report.ranking]
    assert values == sorted(values, reverse=True)
    assert str(report).splitlines()[1].split()[:3] == ["boat", "water", "land"]


def test_iou_is_equation_7_8():
    maps, boxes = draw(3, 4, 5), draw(3, 4, 5).flip(0)
    for found, m, b in zip(soft_iou(maps, boxes), maps, boxes, strict=True):
        pairs = list(zip(m.flatten().tolist(), b.flatten().tolist(), strict=True))
        expected = sum(min(pair) for pair in pairs) / sum(max(pair) for pair in pairs)
        assert found.item() == pytest.approx(expected)


def test_iou_of_binary_maps_is_the_usual_one():
    a, b = draw(6, 6) < 0.5, draw(12, 6)[6:] < 0.5
    assert soft_iou(a.float(), b).item() == pytest.approx(float((a & b).sum() / (a | b).sum()))
    assert soft_iou(b.float(), b) == 1
    assert soft_iou(torch.zeros(2, 2), torch.zeros(2, 2)) == 0


def test_aiou_is_equation_7_9():
    maps, boxes, targets = draw(6, 3, 4, 4), draw(6, 4, 4) < 0.4, torch.arange(6) % 3
    for i, found in enumerate(adjusted_iou(maps, boxes, targets)):
        of_class = [float(soft_iou(one, boxes[i])) for one in maps[i]]
        own = of_class.pop(int(targets[i]))
        assert found.item() == pytest.approx(own / (own + max(of_class)))


def test_aiou_at_its_ends():
    box = torch.zeros(1, 2, 2)
    box[0, 0] = 1
    own = torch.stack([box[0], 1 - box[0]])[None]
    target = torch.tensor([0])
    assert adjusted_iou(own, box, target) == 1
    assert adjusted_iou(own.flip(1), box, target) == 0
    assert adjusted_iou(own * 0, box, target) == 0.5
    assert adjusted_iou(torch.stack([box, box], 1), box, target) == 0.5


@pytest.mark.parametrize("reduction", ["mean", "worst", "none"])
def test_the_metric_reads_batches_by_group(reduction):
    maps, boxes, targets = draw(9, 3, 4, 4), draw(9, 4, 4) < 0.4, torch.arange(9) % 3
    groups = torch.tensor([0, 0, 3, 3, 1, 1, 1, 0, 3])
    metric = AdjustedIoU(4, reduction=reduction)
    for rows in (slice(0, 4), slice(4, 9)):
        metric.update(maps[rows], boxes[rows], targets[rows], groups[rows])
    each = adjusted_iou(maps, boxes, targets)
    means = [each[groups == g].mean() for g in (0, 1, 3)]
    expected = {
        "mean": each.mean(),
        "worst": min(means),
        "none": torch.stack([*means[:2], torch.tensor(math.nan), means[2]]),
    }[reduction]
    torch.testing.assert_close(
        metric.compute(), expected.float(), equal_nan=True, check_dtype=False
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: soft_iou(x, x[:, :1]), "maps and boxes must both end"),
        (lambda x: soft_iou(2 * x, x), r"maps must be in \[0, 1\], got values from 2 to 2"),
        (lambda x: soft_iou(x * math.nan, x), r"maps must be in \[0, 1\]"),
        (lambda x: soft_iou(x, 255 * x), r"boxes must be in \[0, 1\]"),
        (lambda x: adjusted_iou(x, x, torch.zeros(4)), "maps must be"),
        (
            lambda x: adjusted_iou(x.view(2, 2, 2, 2), x[None, :2, :2], torch.zeros(2).long()),
            "maps must be",
        ),
        (
            lambda x: rank_attributes(
                x, torch.zeros(4), x > 0, class_names="ab", attribute_names="wxyz"
            ),
            r"of logits take argmax",
        ),
        (lambda x: accuracy_discrepancy(x, x, x, 2), "attributes must be bool"),
        (lambda x: accuracy_discrepancy(x[:1], x, x > 0, 2), "must have a row an example"),
        (lambda x: detected(lambda images: images, [x]), "detector must return bool"),
        (lambda x: AdjustedIoU(0), "num_groups must be"),
        (lambda x: AdjustedIoU(2, reduction="sum"), "reduction must be"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ContractError, match=message):
        call(torch.ones(4, 4))
