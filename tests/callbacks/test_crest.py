"""CREST against its algorithm in plain loops, on a linear model whose Hessian is known in full."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust import CREST, ContractError
from lightning_robust.randomness import generator
from lightning_robust.sampling import SamplingPlan

N, B, R = 80, 8, 24


class Blobs(Dataset):
    """Three classes (the gradients of two lie on a line, and tie); feature 0 is the index."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.targets = torch.arange(N) % 3
        self.x = torch.randn(N, 4, generator=g) + self.targets[:, None]
        self.x[:, 0] = torch.arange(N)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.targets[index])


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.net = nn.Linear(3, 3, bias=False)
        nn.init.uniform_(self.net.weight, -0.5, 0.5, generator=g)
        self.played: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x[:, 1:])  # an observation gets no further
        self.played.append(x[:, 0].long().tolist())
        return F.cross_entropy(logits, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Diary(Callback):
    """What the method had decided, after each batch."""

    def __init__(self, method: CREST) -> None:
        self.method = method
        self.entries: list[dict] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        m = self.method
        self.entries.append(
            {
                "weight": pl_module.net.weight.detach().clone(),
                "rho": m.rho,
                "updates": m.updates,
                "interval": m.interval,
                "num_subsets": m.num_subsets,
                "pool": m.pool.clone(),
            }
        )


def fit(method: CREST, epochs: int = 2, **loading):
    module, diary = Module(), Diary(method)
    Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[method, diary],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(Blobs(), B, shuffle=True, **loading))
    return module, diary.entries


def gradients(weight: Tensor, indices: Tensor) -> Tensor:
    data = Blobs()
    logits = data.x[indices, 1:] @ weight.T
    return logits.softmax(1) - F.one_hot(data.targets[indices], 3)


def assert_greedy(points: Tensor, chosen: list[int]) -> list[int]:
    """Each pick of Eq. 2.11 lowers the cost as any could, by a double loop; sizes of clusters."""
    distance = torch.cdist(points.double(), points.double())
    nearest = torch.full((len(points),), math.inf).double()
    for pick in chosen:
        costs = [float(torch.minimum(nearest, column).sum()) for column in distance.T]
        assert costs[pick] <= min(costs) * (1 + 1e-5)
        nearest = torch.minimum(nearest, distance[:, pick])
    owner = distance[:, chosen].argmin(1)
    return torch.bincount(owner, minlength=len(chosen)).tolist()


def subset(p: int, selection: int = 0) -> Tensor:
    return SamplingPlan(N).order(generator(0, f"crest subset {p}", selection))[:R]


SETTINGS = {"subset_size": R, "seed": 0, "learned_interval": None}


def test_coresets_are_greedy_medoids_of_random_subsets_and_weigh_their_clusters():
    method = CREST(1.0, threshold=1e9, **SETTINGS)
    fit(method, 1)
    assert method.updates == 1
    assert method.coresets.shape == (5, B)
    weight = Module().net.weight.detach()
    for p in range(5):
        members = subset(p).tolist()
        chosen = [members.index(index) for index in method.coresets[p].tolist()]
        sizes = assert_greedy(gradients(weight, torch.tensor(members)), chosen)
        expected = torch.tensor(sizes) * B / R
        torch.testing.assert_close(method.weights[p], expected)


def test_each_batch_is_a_coreset_and_each_step_its_weighted_gradient():
    method = CREST(1.0, threshold=1e9, **SETTINGS)
    module, entries = fit(method, 2)
    assert len(module.played) == 2 * N // B
    coresets = method.coresets.tolist()
    data, weight = Blobs(), Module().net.weight.detach().requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    for batch, entry in zip(module.played, entries, strict=True):
        weights = method.weights[coresets.index(batch)]
        losses = F.cross_entropy(
            data.x[batch, 1:] @ weight.T, data.targets[batch], reduction="none"
        )
        optimizer.zero_grad()
        (weights * losses).mean().backward()
        optimizer.step()
        torch.testing.assert_close(entry["weight"], weight.detach())
    assert len({tuple(batch) for batch in module.played}) > 2


def test_rho_is_the_error_of_the_quadratic_model():
    """Eq. 2.6 to 2.10 at the first check, with the union's Hessian in full."""
    method = CREST(1.0, threshold=1e9, **SETTINGS)
    _, entries = fit(method, 1)
    data, weight = Blobs(), Module().net.weight.detach()
    union, weights = method.coresets.flatten(), method.weights.flatten() / method.weights.sum()
    checked = subset(5)

    def loss(w, indices, weights):
        losses = F.cross_entropy(data.x[indices, 1:] @ w.T, data.targets[indices], reduction="none")
        return weights @ losses

    def loss_of_union(w):
        return loss(w, union, weights)

    uniform = torch.full((R,), 1 / R)
    gradient = torch.autograd.functional.jacobian(loss_of_union, weight).flatten()
    hessian = torch.autograd.functional.hessian(loss_of_union, weight).view(9, 9)
    z = torch.randint(2, (1, 9), generator=generator(0, "crest probe 0", 1))[0] * 2.0 - 1
    diagonal = (z * (hessian @ z)).abs()
    delta = (entries[0]["weight"] - weight).flatten()
    expected = 0.5 * (diagonal * delta) @ delta + gradient @ delta + loss(weight, checked, uniform)
    actual = loss(entries[0]["weight"], checked, uniform)
    rho = float((expected - actual).abs() / actual)
    assert math.isclose(entries[0]["rho"], rho, rel_tol=1e-3)
    assert rho > 1e-3


def test_a_broken_model_is_renewed_and_the_interval_follows_the_hessian():
    method = CREST(1.0, threshold=1e-9, interval_factor=2.0, subsets_factor=1.5, **SETTINGS)
    _, entries = fit(method, 2)
    last = 0
    for number, entry in enumerate(entries):
        if entry["updates"] > (entries[number - 1]["updates"] if number else 1):
            last = number
        elif number - last >= entry["interval"]:
            raise AssertionError("a check was missed")
        assert 1 <= entry["interval"] <= N // B
        assert entry["num_subsets"] == max(1, min(int(1.5 * entry["interval"]), N // B)) or (
            entry["updates"] == 1
        )
    assert method.updates > 3
    square = method.mean_square / (1 - 0.999**method.updates)
    interval = 2.0 * method.first_norm / float(square.sqrt().norm())
    assert method.interval == math.ceil(min(max(1, interval), N // B))


def test_examples_whose_loss_stayed_small_leave_and_are_not_drawn_again():
    method = CREST(1.0, threshold=1e-9, subset_size=R, learned_interval=4, learned_loss=0.3, seed=0)
    module, entries = fit(method, 4)
    pools = [entry["pool"] for entry in entries]
    assert all(bool((later <= earlier).all()) for earlier, later in pairwise(pools))
    assert R <= int(pools[-1].sum()) < N
    selected = torch.zeros(N, dtype=torch.bool)
    selected[method.coresets.flatten()] = True
    assert not bool((selected & ~method.pool).any())
    assert len({number for batch in module.played[-3:] for number in batch}) > B


def test_who_leaves_after_the_first_interval():
    """Whoever was in a subset, with losses that were always below alpha."""
    alpha = 0.7
    method = CREST(
        1.0, threshold=1e9, subset_size=R, learned_interval=4, learned_loss=alpha, seed=0
    )
    _, entries = fit(method, 1)
    data, weight = Blobs(), Module().net.weight.detach()
    seen = torch.stack([subset(p) for p in range(6)]).unique()
    losses = F.cross_entropy(data.x[:, 1:] @ weight.T, data.targets, reduction="none")
    learned = torch.zeros(N, dtype=torch.bool)
    learned[seen] = losses[seen] < alpha
    assert 0 < int(learned.sum()) < N - R
    assert bool(entries[2]["pool"].all())
    assert torch.equal(entries[3]["pool"], ~learned)
    assert torch.equal(entries[-1]["pool"], ~learned)  # nothing was seen since


def test_workers_run_ahead_and_what_they_took_is_counted():
    stale = []
    for workers in (0, 1):
        method = CREST(1.0, threshold=1e-9, **SETTINGS)
        fit(method, 1, num_workers=workers)
        stale.append(method.stale_batches)
    assert stale[0] == 0
    assert 0 < stale[1] <= N // B


def test_the_head_alone_gives_the_same_model_of_a_network_that_is_its_head():
    found = []
    for parameters in ("all", "head"):
        method = CREST(1.0, parameters=parameters, **SETTINGS)
        fit(method, 1)
        found.append(method)
    torch.testing.assert_close(found[0].mean_gradient, found[1].mean_gradient)
    torch.testing.assert_close(found[0].mean_square, found[1].mean_square)


class WithFusedAttention(Module):
    """Fused attention is differentiable once."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        rows = self.before(x[:, 1:])[None, None]
        return F.cross_entropy(self.net(F.scaled_dot_product_attention(rows, rows, rows)[0, 0]), y)


def test_a_part_without_second_derivative_is_refused_before_training():
    trainer = Trainer(
        max_epochs=1,
        callbacks=[CREST(1.0)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(ContractError, match="no second derivative"):
        trainer.fit(WithFusedAttention(), DataLoader(Blobs(), B))
    assert trainer.global_step == 0
    fit(CREST(1.0, parameters="head"), 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fraction": 0.0}, "fraction"),
        ({"subset_size": 1.5}, r"subset_size=1.5 is neither"),
        ({"gradient_decay": 1.0}, r"gradient_decay=1"),
        ({"parameters": "last"}, "parameters"),
        ({"learned_interval": 0}, "learned_interval"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ContractError, match=words):
        CREST(**arguments)
