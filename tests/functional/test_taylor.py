from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_robust.contracts import ContractError
from lightning_robust.functional.gradients import logit_gradients
from lightning_robust.functional.taylor import greedy_by_taylor

N, M, C, D = 14, 9, 3, 4


class Problem:
    """A linear head, training and validation examples."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.weight, self.bias = draw(C, D), draw(C)
        self.x, self.val_x = draw(N, D), draw(M, D)
        self.y = torch.randint(C, (N,), generator=g)
        self.val_y = torch.randint(C, (M,), generator=g)

    def slope(self, x, y, head):
        """Gradient of the mean loss with respect to the head, by autograd."""
        parameters = [p.clone().requires_grad_() for p in head]
        loss = F.cross_entropy(F.linear(x, *parameters), y)
        return torch.autograd.grad(loss, parameters)

    def picks(self, k, step_size, rounds):
        logits = F.linear(self.x, self.weight, self.bias)
        return greedy_by_taylor(
            logit_gradients(logits, self.y),
            self.x,
            F.linear(self.val_x, self.weight, self.bias),
            self.val_x,
            self.val_y,
            k,
            step_size=step_size,
            rounds=rounds,
        ).tolist()

    def by_hand(self, k, step_size):
        """One at a time: the best inner product of two gradients, then the step."""
        head, picks = [self.weight, self.bias], []
        own = [self.slope(self.x[j, None], self.y[j, None], head) for j in range(N)]
        for _ in range(k):
            val = self.slope(self.val_x, self.val_y, head)
            gains = {
                j: sum(float((a * b).sum()) for a, b in zip(own[j], val, strict=True))
                for j in range(N)
                if j not in picks
            }
            picks.append(max(gains, key=gains.get))
            head = [p - step_size / k * step for p, step in zip(head, own[picks[-1]], strict=True)]
        return picks


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step_size", [0.1, 5.0])
def test_one_a_round_is_greedy_on_the_heads_gradients(seed, step_size):
    problem = Problem(seed)
    assert problem.picks(6, step_size, 6) == problem.by_hand(6, step_size)


@pytest.mark.parametrize("seed", range(6))
def test_a_small_step_on_the_first_pick_lowers_the_loss_most(seed):
    """Of all examples, with the true loss, not its expansion."""
    problem, after = Problem(seed), {}
    head = [problem.weight, problem.bias]
    for j in range(N):
        own = problem.slope(problem.x[j, None], problem.y[j, None], head)
        moved = [p - 1e-5 * step for p, step in zip(head, own, strict=True)]
        after[j] = float(F.cross_entropy(F.linear(problem.val_x, *moved), problem.val_y))
    assert problem.picks(1, 1.0, 1) == [min(after, key=after.get)]


def test_one_round_takes_the_largest_inner_products():
    problem = Problem(0)
    head = [problem.weight, problem.bias]
    val = problem.slope(problem.val_x, problem.val_y, head)
    gains = [
        sum(
            float((a * b).sum())
            for a, b in zip(
                problem.slope(problem.x[j, None], problem.y[j, None], head), val, strict=True
            )
        )
        for j in range(N)
    ]
    assert problem.picks(5, 9.0, 1) == sorted(range(N), key=lambda j: -gains[j])[:5]


@pytest.mark.parametrize("rounds", [1, 3, 7, 100])
def test_picks_differ_and_are_as_many_as_asked(rounds):
    picks = Problem(1).picks(7, 3.0, rounds)
    assert len(set(picks)) == len(picks) == 7


def test_later_rounds_know_what_was_picked():
    assert Problem(0).picks(6, 20.0, 6) != Problem(0).picks(6, 20.0, 1)


@pytest.mark.parametrize(
    ("k", "step_size", "rounds", "words"),
    [
        (0, 1.0, 1, "k must be"),
        (15, 1.0, 1, "k=15 is more than the 14"),
        (2, 0.0, 1, "step_size must be"),
        (2, 1.0, 0, "rounds must be"),
    ],
)
def test_refuses_bad_arguments(k, step_size, rounds, words):
    with pytest.raises(ContractError, match=words):
        Problem(0).picks(k, step_size, rounds)
