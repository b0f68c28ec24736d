"""The losses between groups, against double loops over their equations."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_robust.contracts import ContractError
from lightning_robust.functional.contrastive import (
    class_loss,
    clip_loss,
    cross_group_loss,
    spurious_loss,
)

TAU = 0.3


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(0)
    points = torch.randn(12, 4, generator=random, dtype=torch.float64)
    classes, attributes, templates = (
        torch.randint(0, high, (12,), generator=random) for high in (3, 2, 4)
    )
    classes[0] = 7  # alone in its class
    return points, classes, attributes, templates


def by_hand(points, positive, negative):
    """Eq. 7.2 to 7.5: ``positive(i, j)`` and ``negative(i, j)`` say who is in which group."""
    rows = points.tolist()
    losses = []
    for i, a in enumerate(rows):
        e = [math.exp(sum(x * y for x, y in zip(a, b, strict=True)) / TAU) for b in rows]
        near = [e[p] for p in range(len(rows)) if p != i and positive(i, p)]
        far = [e[q] for q in range(len(rows)) if q != i and negative(i, q)]
        if near:
            logs = [math.log(value / (sum(near) + sum(far))) for value in near]
            losses.append(-sum(logs) / len(logs))
    return sum(losses) / len(losses)


def test_clip_loss_is_equation_7_1(batch):
    images, texts = batch[0][:6], batch[0][6:]
    total = 0.0
    for i in range(6):
        for fixed, moving in ((images, texts), (texts, images)):
            e = [math.exp(float(fixed[i] @ other) / TAU) for other in moving]
            total -= 0.5 * math.log(e[i] / sum(e)) / 6
    assert clip_loss(images, texts, temperature=TAU).item() == pytest.approx(total)


def test_class_loss_is_equation_7_2(batch):
    points, y, _, _ = batch
    expected = by_hand(points, lambda i, p: y[i] == y[p], lambda i, q: y[i] != y[q])
    assert class_loss(points, y, temperature=TAU).item() == pytest.approx(expected)


def test_class_loss_of_texts_is_equation_7_3(batch):
    points, y, _, t = batch
    expected = by_hand(
        points, lambda i, p: y[i] == y[p] and t[i] != t[p], lambda i, q: y[i] != y[q]
    )
    loss = class_loss(points, y, templates=t, temperature=TAU)
    assert loss.item() == pytest.approx(expected)
    assert loss != class_loss(points, y, temperature=TAU)


@pytest.mark.parametrize("same", ["group", "attribute"])
@pytest.mark.parametrize("of_texts", [False, True])
def test_spurious_loss_is_equations_7_4_and_7_5(batch, same, of_texts):
    points, y, a, t = batch

    def alike(i, j):
        return bool(a[i] == a[j]) and (same == "attribute" or bool(y[i] == y[j]))

    def another_text(i, j):
        return not of_texts or not (a[i] == a[j] and y[i] == y[j] and t[i] == t[j])

    expected = by_hand(
        points, lambda i, p: alike(i, p) and another_text(i, p), lambda i, q: not alike(i, q)
    )
    templates = t if of_texts else None
    loss = spurious_loss(points, y, a, templates=templates, same=same, temperature=TAU)
    assert loss.item() == pytest.approx(expected)


def test_across_two_modalities(batch):
    anchors, others = batch[0][:4], batch[0][4:]
    positives = torch.zeros(4, 8, dtype=torch.bool)
    negatives = torch.zeros(4, 8, dtype=torch.bool)
    positives[0, :2] = positives[2, 5] = negatives[0, 4:7] = negatives[1] = True
    expected = []
    for i in (0, 2):
        e = [math.exp(float(anchors[i] @ b) / TAU) for b in others]
        near = [value for value, inside in zip(e, positives[i], strict=True) if inside]
        far = [value for value, inside in zip(e, negatives[i], strict=True) if inside]
        expected.append(-sum(math.log(v / (sum(near) + sum(far))) for v in near) / len(near))
    loss = cross_group_loss(anchors, others, positives, negatives, temperature=TAU)
    assert loss.item() == pytest.approx(sum(expected) / 2)


def test_neither_order_nor_names_nor_a_rotation_matter(batch):
    points, y, a, t = batch
    loss = spurious_loss(points, y, a, templates=t, temperature=TAU)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    for same in (
        spurious_loss(points[order], y[order], a[order], templates=t[order], temperature=TAU),
        spurious_loss(points @ rotation, y, a, templates=t, temperature=TAU),
        spurious_loss(points, 10 - y, a == 1, templates=-t, temperature=TAU),
        spurious_loss(points * 2, y, a, templates=t, temperature=4 * TAU),
    ):
        torch.testing.assert_close(same, loss)


def test_a_step_down_the_gradient_pulls_positives_together(batch):
    """The sign: as printed, the cross-group similarity would be maximised by it."""
    points, y, _, _ = batch
    points = torch.nn.functional.normalize(points, dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(class_loss(points, y, temperature=TAU), points)
    moved = torch.nn.functional.normalize(points - 0.05 * gradient, dim=1)
    same = (y.unsqueeze(1) == y) & ~torch.eye(len(y), dtype=torch.bool)
    for mask, sign in ((same, 1), (y.unsqueeze(1) != y, -1)):
        change = (moved @ moved.T - points @ points.T)[mask].mean()
        assert sign * change > 0


LOSSES = {
    "clip": lambda points, y, a, t: clip_loss(points, points.flip(0), temperature=TAU),
    "vc": lambda points, y, a, t: class_loss(points, y, temperature=TAU),
    "lc": lambda points, y, a, t: class_loss(points, y, templates=t, temperature=TAU),
    "vs": lambda points, y, a, t: spurious_loss(points, y, a, temperature=TAU),
    "ls": lambda points, y, a, t: spurious_loss(points, y, a, templates=t, temperature=TAU),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(batch, name):
    points, *ids = batch
    points = points.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, *ids), points)


def test_without_positives_there_is_nothing_to_learn():
    points = torch.randn(3, 2, requires_grad=True)
    for y in (torch.arange(3), torch.zeros(3, dtype=torch.int64)):
        loss = class_loss(points, y, templates=torch.zeros(3, dtype=torch.int64))
        (gradient,) = torch.autograd.grad(loss, points)
        assert loss == 0
        assert not gradient.any()


def test_one_class_only_still_aligns():
    points = torch.randn(4, 2, requires_grad=True)
    loss = class_loss(points, torch.zeros(4, dtype=torch.int64))
    assert loss > math.log(3)  # log of the number of the others, reached where all are equal
    (gradient,) = torch.autograd.grad(loss, points)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_similarities_do_not_overflow(dtype):
    points = torch.tensor([[30.0, 0.0], [30.0, 1.0], [-30.0, 0.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 0, 1])
    for loss in (class_loss(points, y, temperature=0.01), clip_loss(points, -points)):
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss, points)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_autocast_leaves_the_losses_alone():
    points = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % 2
    expected = class_loss(points, y)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(class_loss(points, y), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: class_loss(p, torch.zeros(3)), "classes must have shape"),
        (lambda p: class_loss(p, torch.zeros(4), temperature=0), "temperature must be"),
        (lambda p: clip_loss(p, p[:2]), "texts must have the shape"),
        (lambda p: cross_group_loss(p, p[:, :1], p > 0, p > 0), "embeddings must be"),
        (lambda p: cross_group_loss(p, p, p > 0, p > 0), "positives must be bool"),
        (lambda p: spurious_loss(p, p[:, 0], p[:, 0], same="class"), "same must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ContractError, match=message):
        call(torch.ones(4, 2))
