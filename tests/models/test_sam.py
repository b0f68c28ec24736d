"""SAM and ASAM against their equations, by hand and inside Lightning."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust.contracts import ContractError
from lightning_robust.models import SAM

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 2


class Module(LightningModule):
    def __init__(self, **settings) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Linear(3, 2)
        self.settings = settings

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return SAM(torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9), **self.settings)


@pytest.mark.parametrize("adaptive", [False, True])
def test_two_steps_in_lightning_are_the_equations(adaptive):
    rho, eta, rate = 0.4, 0.02, 0.3
    module = Module(rho=rho, adaptive=adaptive, eta=eta)
    weights = [p.detach().clone().double() for p in module.parameters()]
    Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(TensorDataset(X, Y), 12))

    def gradient(at):
        at = [w.clone().requires_grad_() for w in at]
        loss = F.cross_entropy(F.linear(X.double(), *at), Y)
        return torch.autograd.grad(loss, at)

    speed = [torch.zeros_like(w) for w in weights]
    for _ in range(2):
        g = gradient(weights)
        t = [w.abs() + eta if adaptive else 1.0 for w in weights]
        norm = sum(float(((s * each) ** 2).sum()) for s, each in zip(t, g, strict=True)) ** 0.5
        away = [w + rho * s**2 * each / norm for w, s, each in zip(weights, t, g, strict=True)]
        speed = [0.9 * v + each for v, each in zip(speed, gradient(away), strict=True)]
        weights = [w - rate * v for w, v in zip(weights, speed, strict=True)]
    for found, expected in zip(module.parameters(), weights, strict=True):
        torch.testing.assert_close(found.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_its_state_is_that_of_the_optimiser_inside():
    one, other = Module(), Module()
    first, second = one.configure_optimizers(), other.configure_optimizers()

    def step(module, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = module.training_step((X, Y), 0)
            loss.backward()
            return loss

        optimizer.step(closure)

    step(one, first)
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch shares the buffers
    step(one, first)
    step(other, second)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_refuses_what_it_cannot_do():
    base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ContractError, match="rho"):
        SAM(base, rho=0)
    with pytest.raises(ContractError, match="closure"):
        SAM(base).step()
