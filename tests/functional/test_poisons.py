"""Attacks: the constraint holds, the objective falls, and what can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust.contracts import ContractError
from lightning_robust.functional.poisons import (
    bullseye_polytope,
    craft,
    feature_collision,
    flip_labels,
    gradient_matching,
    highest_loss_of_class,
    sleeper_agent,
    stamp,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed))


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


CLEAN, TARGET = uniform(5, 6), uniform(1, 6, seed=1)
LABELS, ADVERSARIAL = torch.full((5,), 2), torch.tensor([2])
OBJECTIVES = {
    "gradient matching": lambda: gradient_matching(
        [network(0), network(1)], LABELS, TARGET, ADVERSARIAL
    ),
    "bullseye polytope": lambda: bullseye_polytope([network(0)[:2], network(1)[:2]], TARGET),
    "feature collision": lambda: feature_collision([network()[:2]], TARGET, CLEAN),
}


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("budget", [0.05, 0.4, 5.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_stays_in_the_ball_and_gets_better(name, budget, restarts):
    objective = OBJECTIVES[name]()
    found = craft(CLEAN, objective, budget=budget, steps=30, restarts=restarts, generator=seeded())
    assert (found.inputs - CLEAN).abs().max() <= budget + 1e-6
    assert found.inputs.min() >= 0
    assert found.inputs.max() <= 1
    assert found.loss < found.first_loss == pytest.approx(objective(CLEAN).item())
    assert found.loss == pytest.approx(objective(found.inputs).item(), abs=1e-6)
    again = craft(CLEAN, objective, budget=budget, steps=30, restarts=restarts, generator=seeded())
    assert torch.equal(again.inputs, found.inputs)


def test_more_budget_more_restarts_and_a_good_start_do_no_harm():
    objective = OBJECTIVES["gradient matching"]()
    small, large = (
        craft(CLEAN, objective, budget=budget, steps=60, generator=seeded()).loss
        for budget in (0.05, 0.5)
    )
    assert large < small
    one, three = (
        craft(CLEAN, objective, budget=0.1, steps=5, restarts=r, generator=seeded()) for r in (1, 3)
    )
    assert three.loss <= one.loss
    on = craft(CLEAN, objective, budget=0.1, steps=5, start=three.inputs, generator=seeded())
    assert on.loss <= three.loss


def test_originals_are_returned_where_nothing_is_better():
    found = craft(CLEAN, lambda x: (x - CLEAN).abs().sum(), budget=0.1, steps=3, generator=seeded())
    assert torch.equal(found.inputs, CLEAN)
    assert found.loss == found.first_loss == 0


def test_a_linear_objective_ends_in_the_corner_of_the_ball():
    """Its minimum within the ball is known: each number goes as far as it may."""
    slope = torch.randn(5, 6, generator=seeded())
    found = craft(CLEAN, lambda x: (slope * x).sum(), budget=0.2, steps=200, generator=seeded())
    corner = (CLEAN - 0.2 * slope.sign()).clamp(0, 1)
    torch.testing.assert_close(found.inputs, corner)


def test_gradient_matching_of_a_linear_model_is_a_product_of_two_cosines():
    """The gradient of softmax regression is (p - y) outer (x, 1)."""
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 6, generator=seeded()))
    poison = uniform(1, 6, seed=3)

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        error = model(x).softmax(1)[0] - F.one_hot(torch.tensor(2), 3)
        return error.detach(), torch.cat([x[0], torch.ones(1)])

    (e1, x1), (e2, x2) = parts(poison), parts(TARGET)
    expected = 1 - F.cosine_similarity(e1, e2, dim=0) * F.cosine_similarity(x1, x2, dim=0)
    objective = gradient_matching([model], LABELS[:1], TARGET, ADVERSARIAL)
    torch.testing.assert_close(objective(poison).detach(), expected)
    assert float(objective(TARGET).detach()) == pytest.approx(0, abs=1e-6)


def test_feature_collision_of_a_linear_extractor_is_ridge_regression():
    matrix = torch.randn(6, 3, generator=seeded())
    beta = 0.2
    clean, target = uniform(4, 6) * 0.2 + 0.4, uniform(1, 6, seed=1) * 0.2 + 0.4
    objective = feature_collision([lambda x: x @ matrix], target, clean, similarity=beta)
    left = matrix @ matrix.T + beta * torch.eye(6)
    right = (target @ matrix) @ matrix.T + beta * clean
    solution = torch.linalg.solve(left, right.T).T
    assert ((solution > 0) & (solution < 1)).all()
    found = craft(clean, objective, budget=1.0, step_size=0.02, steps=800, generator=seeded())
    assert found.loss <= float(objective(solution)) * 1.01 + 1e-5
    torch.testing.assert_close(found.inputs, solution, atol=5e-3, rtol=0)


def test_bullseye_needs_the_mean_only():
    """Poisons around the target, none of them on it, have objective 0; their sum of squares not."""
    offsets = 0.1 * torch.randn(5, 6, generator=seeded())
    around = TARGET + offsets - offsets.mean(0)
    assert float(bullseye_polytope([lambda x: x], TARGET)(around)) == pytest.approx(0, abs=1e-10)
    assert float(feature_collision([lambda x: x], TARGET, around)(around)) > 0.01
    shifted = around + 0.1
    expected = 0.5 * 6 * 0.01 / float(TARGET.square().sum())
    found = float(bullseye_polytope([lambda x: x], TARGET)(shifted))
    assert found == pytest.approx(expected, rel=1e-4)


def test_sleeper_agent_goes_on_with_retrained_surrogates():
    asked: list[Tensor] = []

    def retrain(poisons: Tensor) -> list[nn.Module]:
        asked.append(poisons)
        return [network(len(asked))]

    sources = uniform(4, 6, seed=5)

    def patch(x: Tensor) -> Tensor:
        return torch.cat([x[:, :5], torch.ones(len(x), 1)], 1)

    settings = {"budget": 0.3, "steps": 60, "generator": seeded()}
    found = sleeper_agent(
        [network()], CLEAN, LABELS, sources, 2, patch, retrain=retrain, retrainings=2, **settings
    )
    assert len(asked) == 2
    assert (found.inputs - CLEAN).abs().max() <= 0.3 + 1e-6
    last = gradient_matching([network(2)], LABELS, patch(sources), torch.full((4,), 2))
    assert float(last(found.inputs).detach()) == pytest.approx(found.loss, abs=1e-6)
    assert found.loss < float(last(asked[-1]).detach())
    with pytest.raises(ContractError, match="retrain"):
        sleeper_agent([network()], CLEAN, LABELS, sources, 2, patch, retrainings=1, **settings)


def test_flipped_labels():
    targets = torch.arange(4).repeat(250)
    indices, labels = flip_labels(targets, 0.3, 4, seeded())
    assert len(indices) == len(indices.unique()) == 300
    assert (labels != targets[indices]).all()
    pairs = torch.bincount(4 * targets[indices] + labels, minlength=16).view(4, 4)
    assert pairs.diagonal().sum() == 0
    assert pairs[~torch.eye(4, dtype=torch.bool)].min() >= 10  # 25 are expected of each


def test_stamp():
    images = uniform(2, 3, 5, 6)
    found = stamp(images, torch.ones(2, 2), row=1, column=0)
    assert (found[..., 1:3, 0:2] == 1).all()
    assert int((found != images).sum()) == 2 * 3 * 4
    assert (stamp(images, torch.ones(2, 2))[..., 3:, 4:] == 1).all()
    with pytest.raises(ContractError, match="row 4"):
        stamp(images, torch.ones(2, 2), row=4)


def test_highest_loss_of_class():
    logits, targets = torch.randn(40, 3, generator=seeded()), torch.arange(40) % 3
    losses = F.cross_entropy(logits, targets, reduction="none")
    found = highest_loss_of_class(logits, targets, 1, 5)
    others = sorted(((float(losses[i]), i) for i in range(1, 40, 3)), reverse=True)
    assert found.tolist() == [i for _, i in others[:5]]
    assert len(highest_loss_of_class(logits, targets, 1, 99)) == 13


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"budget": 0.0}, "budget"),
        ({"budget": 0.1, "steps": 0}, "steps"),
        ({"budget": 0.1, "restarts": 0}, "restarts"),
        ({"budget": 0.1, "high": 0.5}, "high="),
        ({"budget": 0.1, "step_size": -1.0}, "step_size"),
    ],
)
def test_refuses(settings, word):
    with pytest.raises(ContractError, match=word):
        craft(CLEAN, torch.sum, generator=seeded(), **settings)
    with pytest.raises(ContractError, match="models"):
        gradient_matching([], LABELS, TARGET, ADVERSARIAL)
    with pytest.raises(ContractError, match="extractors"):
        bullseye_polytope([], TARGET)
