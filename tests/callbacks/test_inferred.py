"""GEORGE, PGI and CnC: what is inferred, and the second training, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F

from lightning_robust import GEORGE, PGI, CnC
from lightning_robust.functional.clustering import subclasses
from lightning_robust.randomness import generator


def by_group_dro(ids, step_size, after):
    """The loss of Algorithm 1 of Group DRO, with q kept in a list; plain before ``after``."""
    q = [1.0 / len(ids.unique())] * (int(ids.max()) + 1)

    def loss(logits, targets, indices, epoch):
        losses = F.cross_entropy(logits, targets, reduction="none")
        if epoch < after:
            return losses.mean()
        means = {g: losses[ids[indices] == g].mean() for g in ids[indices].tolist()}
        for group, mean in means.items():
            q[group] *= math.exp(step_size * mean.item())
        total = sum(q)
        q[:] = [part / total for part in q]
        return sum(q[group] * mean for group, mean in means.items())

    return loss


@pytest.mark.parametrize("space", ["features", "logits"])
def test_george_clusters_each_class_and_minimises_the_worst(train, replay, points, space):
    method = GEORGE(
        2, max_clusters=3, parts=2, space=space, step_size=0.5, reinitialise=False, seed=4
    )
    run = train(method, 4)
    found = subclasses(
        getattr(run.views[2], space),
        points.targets,
        max_clusters=3,
        parts=2,
        generator=generator(4, "george", 2),
    )
    assert torch.equal(method.ids, found.clusters)
    assert len(found.classes) > 5
    for label, number in found.num_clusters.items():
        assert run.trainer.callback_metrics[f"george/num_clusters/{label}"] == number
    replay(run, by_group_dro(method.ids, 0.5, 2))
    assert torch.equal(method.inferred.ids, method.ids)


def test_the_second_training_starts_again_and_draws_evenly(train):
    method = GEORGE(1, max_clusters=2, parts=1, step_size=None, balanced_sampling=True)
    run = train(method, 2)
    assert torch.equal(run.starts[0], run.starts[1])
    sizes = torch.bincount(method.ids)
    torch.testing.assert_close(
        method.vote() * sizes[method.ids], torch.full((60,), 60 / len(sizes)).double()
    )
    assert list(run.module.weights[1].values()) == pytest.approx([1.0] * len(run.module.weights[1]))


def by_pgi(views, penalty):
    """Cross-entropy, plus the divergence of two mean predictions a class, in loops."""

    def loss(logits, targets, indices, epoch):
        total = F.cross_entropy(logits, targets)
        if epoch < 1:
            return total
        cells = {}
        for row, index in enumerate(indices.tolist()):
            z, y = views[1].logits[index].double(), int(targets[row])
            hard = bool((z.softmax(0) * z).sum() > z[y])
            cells.setdefault((y, hard), []).append(logits[row].softmax(0))
        both = [y for y in range(3) if (y, False) in cells and (y, True) in cells]
        for y in both:
            p, q = (torch.stack(cells[y, hard]).mean(0) for hard in (False, True))
            total = total + penalty * (p * (p / q).log()).sum() / len(both)
        return total

    return loss


@pytest.mark.parametrize("accumulated", [1, 2])
def test_pgi_adds_the_divergence_to_the_loss(train, replay, points, accumulated):
    method = PGI(1, penalty=0.3, reinitialise=False)
    if accumulated == 1:
        run = train(method, 3)
        replay(run, by_pgi(run.views, 0.3))
    else:  # an accumulated loss is divided, and so is what is added to it
        noted = Noted()
        train(method, 2, accumulate_grad_batches=2, others=[noted])
        plain = Noted()
        train(PGI(1, penalty=0.3, reinitialise=False), 2, others=[plain])
        torch.testing.assert_close(noted.first, plain.first / 2)
    hard = method.inferred.ids % 2 == 1
    assert method.inferred.names[:2] == ("0_easy", "0_hard")
    assert torch.equal(method.inferred.ids // 2, points.targets)
    assert 0 < int(hard.sum()) < 60


class Noted(Callback):
    """The gradient of the body after the first backward pass of the second training."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:  # as if nothing had been trained
            for parameter in module.parameters():
                parameter.data = torch.full_like(parameter, 0.1)
            self.first = None

    def on_after_backward(self, trainer, module):
        if trainer.current_epoch == 1 and self.first is None:
            self.first = module.body[0].weight.grad.clone()


def test_cnc_mixes_cross_entropy_with_a_contrast_of_features(train, points):
    """The loss of Section 4, an anchor and a positive at a time."""
    contrast, temperature = 0.6, 0.5
    method = CnC(1, contrast=contrast, temperature=temperature, reinitialise=False)
    run = train(method, 3)
    said = run.views[1].logits.argmax(1)
    assert run.trainer.callback_metrics["cnc/error_rate"] == pytest.approx(
        float((said != points.targets).float().mean())
    )
    module = type(run.module)()
    optimizer = module.configure_optimizers()
    contrasted = 0
    for epoch, played in run.module.played.items():
        for batch in torch.tensor(played).split(8):
            features = module.body(points.x[batch, 1:])
            y, guess = points.targets[batch], said[batch]
            loss = F.cross_entropy(module.head(features), y)
            anchors = []
            for i in range(len(batch)) if epoch else ():
                similar = [
                    torch.exp(F.cosine_similarity(features[i], f, dim=0) / temperature)
                    for f in features
                ]
                near = [j for j in range(len(batch)) if y[j] == y[i] and guess[j] != guess[i]]
                far = [j for j in range(len(batch)) if y[j] != y[i] and guess[j] == guess[i]]
                below = sum(similar[j] for j in near + far)
                if near:
                    anchors.append(sum(-torch.log(similar[j] / below) for j in near) / len(near))
            if epoch:
                loss = (1 - contrast) * loss
            if anchors:
                contrasted += 1
                loss = loss + contrast * sum(anchors) / len(anchors)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert contrasted > 4
    for name, weights in run.module.state_dict().items():
        torch.testing.assert_close(weights, module.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_nothing_is_inferred_before_a_fit():
    with pytest.raises(RuntimeError, match="GEORGE infers in a fit"):
        GEORGE().inferred  # noqa: B018
