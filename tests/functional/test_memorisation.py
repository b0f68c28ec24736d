"""Self-influence against autograd, traker, and models that are trained without an example."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from lightning_robust.contracts import ContractError
from lightning_robust.functional.memorisation import margin_gradients, self_influence


@pytest.fixture
def data():
    """A linear layer's inputs, outputs and targets, some of them wrong."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(50, 4, generator=random, dtype=torch.float64)
    logits = features @ torch.randn(4, 3, generator=random, dtype=torch.float64)
    targets = logits.argmax(1)
    targets[::7] = (targets[::7] + 1) % 3
    return features, logits, targets


def by_autograd(features, logits, targets, quantity):
    """One gradient an example, by weight and bias."""
    rows = []
    for h, z, y in zip(features, logits, targets, strict=True):
        weight, bias = torch.zeros(3, 4).double(), torch.zeros(3).double()
        weight.requires_grad_()
        bias.requires_grad_()
        value = quantity((z + weight @ h + bias).softmax(0)[y])
        parts = torch.autograd.grad(value, [weight, bias])
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


@pytest.mark.parametrize("of", ["margin", "loss"])
def test_is_what_autograd_and_an_inverse_give(data, of):
    quantity = {"margin": lambda p: (p / (1 - p)).log(), "loss": lambda p: -p.log()}[of]
    gradients = by_autograd(*data, quantity)
    matrix = sum(torch.outer(g, g) for g in gradients)
    inverse = torch.linalg.inv(matrix + 0.01 * matrix.trace() / 15 * torch.eye(15))
    probabilities = data[1].softmax(1)
    for i, found in enumerate(self_influence(*data, of=of, ridge=0.01)):
        leverage = float(gradients[i] @ inverse @ gradients[i])
        factor = 1.0 if of == "loss" else 1 - float(probabilities[i, data[2][i]])
        assert float(found) == pytest.approx(factor * leverage, rel=1e-6)
        assert 0 <= found <= 1


def test_margins_of_certain_examples_have_gradients():
    """Where 1 - p is 0 in floating point."""
    logits = torch.tensor([[80.0, 0.0, 0.0], [-80.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, -0.5, -0.5], [1.0, -0.5, -0.5]])
    torch.testing.assert_close(margin_gradients(logits, torch.tensor([0, 0])), expected)
    scores = self_influence(torch.ones(2, 1), logits, torch.tensor([0, 0]))
    assert scores.isfinite().all()
    assert scores[0] == 0


def test_ranks_examples_as_leaving_each_out_does():
    """Eq. 8 of MAT itself: p with the example less p without it."""
    random = torch.Generator().manual_seed(3)
    features = torch.randn(60, 5, generator=random).double()
    noise = torch.randn(60, generator=random)
    targets = (features[:, 0] + 0.5 * features[:, 1] + 0.7 * noise > 0).long()

    def probabilities(kept):
        model = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000)
        model.fit(features[kept].numpy(), targets[kept].numpy())
        logits = torch.from_numpy(model.decision_function(features.numpy()))
        return logits, torch.where(targets == 1, logits, -logits).sigmoid()

    logits, held_in = probabilities(torch.ones(60).bool())
    held_out = torch.stack([probabilities(torch.arange(60) != i)[1][i] for i in range(60)])
    two = torch.stack([torch.zeros(60), logits], 1)
    for of in ("margin", "loss"):
        scores = self_influence(features, two, targets, of=of)
        assert spearmanr(scores, held_in - held_out).statistic > 0.9
    # The probability of a target is a third factor: p' = p (1 - p) margin'.
    scaled = self_influence(features, two, targets) * held_in * (1 - held_in)
    assert torch.corrcoef(torch.stack([scaled, held_in - held_out]))[0, 1] > 0.9


def test_projections_keep_the_ranking(data):
    exact = self_influence(*data, ridge=0.1)
    generator = torch.Generator().manual_seed(0)
    found = torch.stack(
        [
            self_influence(*data, ridge=0.1, num_projections=14, generator=generator)
            for _ in range(20)
        ]
    )
    assert spearmanr(found.mean(0), exact).statistic > 0.9
    with pytest.raises(ContractError, match=r"15 parameters.*num_projections=14.*generator"):
        self_influence(*data, num_projections=14)


def test_many_examples_are_no_other_than_few(data, monkeypatch):
    whole = self_influence(*data)
    monkeypatch.setattr("lightning_robust.functional.memorisation._ROWS_A_BLOCK", 7)
    torch.testing.assert_close(self_influence(*data), whole)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"ridge": 0}, "ridge"), ({"of": "logit"}, "of"), ({"num_projections": 0}, "num_projections")],
)
def test_refuses_bad_arguments_by_name(data, settings, word):
    with pytest.raises(ContractError, match=word):
        self_influence(*data, **settings)


def test_refuses_shapes_that_do_not_match(data):
    with pytest.raises(ContractError, match=r"\(49, 4\), \(50, 3\) and \(50,\)"):
        self_influence(data[0][1:], *data[1:])


@pytest.mark.filterwarnings("ignore")
def test_is_the_diagonal_of_traks_matrix(data, tmp_path):
    """Of the TRAK authors' package, whose matrix is known up to a factor."""
    trak = pytest.importorskip("trak")
    features, _, targets = data
    layer = nn.Linear(4, 3)
    examples = [features.float(), targets]
    with torch.no_grad():
        logits = layer(examples[0])
    gradients = by_autograd(features, logits.double(), targets, lambda p: (p / (1 - p)).log())
    trace = float(gradients.square().sum())
    traker = trak.TRAKer(
        model=layer.eval(),
        task="image_classification",
        train_set_size=50,
        save_dir=str(tmp_path),
        device="cpu",
        projector=trak.projectors.NoOpProjector(15, 15, 0, "normal", "cpu"),
        proj_dim=15,
        use_half_precision=False,
        lambda_reg=0.05 * trace / 15 / 15,  # they divide gradients by the root of 15
        logging_level=50,
    )
    traker.load_checkpoint(layer.state_dict(), model_id=0)
    traker.featurize(batch=examples, num_samples=50)
    traker.finalize_features()
    traker.start_scoring_checkpoint("self", layer.state_dict(), model_id=0, num_targets=50)
    traker.score(batch=examples, num_samples=50)
    theirs = torch.as_tensor(traker.finalize_scores("self")).diagonal().double()
    ours = self_influence(features, logits, targets, ridge=0.05)
    torch.testing.assert_close(theirs / theirs.mean(), ours / ours.mean(), rtol=1e-3, atol=1e-4)
    assert F.cosine_similarity(theirs, ours, dim=0) > 0.9999
