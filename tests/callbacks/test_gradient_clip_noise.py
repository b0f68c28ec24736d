"""Clipping and noise against the per-example gradients, by autograd, one example at a time."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import ContractError, GradientClipNoise

N = 24
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))


class Module(LightningModule):
    """Notes weights and examples at each step; one output, or three."""

    def __init__(self, num_outputs: int, bias: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
            self.head = nn.Linear(4, num_outputs, bias=bias)
        self.batches: list[torch.Tensor] = []

    def losses(self, x, y):
        logits = self.head(self.body(x))
        if logits.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(logits[:, 0], y.float(), reduction="none")
        return F.cross_entropy(logits, y, reduction="none")

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        if self.trainer.training:  # and does not only observe
            self.batches.append(index)
        return self.losses(x, y).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(method, num_outputs: int = 3, bias: bool = True, **settings) -> Module:
    module = Module(num_outputs, bias)
    y = torch.arange(N) % max(2, num_outputs)
    Trainer(
        callbacks=[method],
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    ).fit(module, DataLoader(TensorDataset(X, y, torch.arange(N)), 8, shuffle=True))
    return module


@pytest.mark.parametrize(("num_outputs", "bias"), [(3, True), (3, False), (1, True)])
def test_every_example_is_clipped_by_the_gradient_of_the_head(num_outputs, bias):
    trained = fit(GradientClipNoise(0.8, noise_multiplier=0.0), num_outputs, bias)
    module, y = Module(num_outputs, bias), torch.arange(N) % max(2, num_outputs)
    parameters, clipped = list(module.parameters()), 0
    for batch in trained.batches:
        total = [torch.zeros_like(p) for p in parameters]
        for index in batch:
            loss = module.losses(X[index][None], y[index][None]).sum()
            gradients = torch.autograd.grad(loss, parameters)
            of_head = torch.cat([g.flatten() for g in gradients[2:]]).norm()
            clipped += int(of_head > 0.8)
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_ += gradient * min(1.0, 0.8 / float(of_head)) / len(batch)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, total, strict=True):
                parameter -= 0.5 * gradient
    assert 0 < clipped < 2 * N
    for found, expected in zip(trained.parameters(), parameters, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_noise_is_as_large_as_said_and_a_function_of_the_seed(accumulated):
    settings = {"max_steps": 1, "accumulate_grad_batches": accumulated, "bias": True}
    plain, noisy, again, other = (
        torch.nn.utils.parameters_to_vector(
            fit(GradientClipNoise(2.0, noise_multiplier=m, seed=s), 3, **settings).parameters()
        ).detach()
        for m, s in ((0.0, 0), (0.5, 0), (0.5, 0), (0.5, 1))
    )
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    noise = (torch.stack([noisy, other]) - plain) / 0.5  # the learning rate
    expected = 0.5 * 2.0 / (8 * accumulated)
    assert noise.std() == pytest.approx(expected, rel=0.25)
    assert abs(float(noise.mean())) < expected / 2


def test_clipping_hard_enough_leaves_the_noise():
    """Which poisons, or anything else, cannot be learned from."""
    weights = [p.detach() for p in fit(GradientClipNoise(1e-6)).parameters()]
    for found, initial in zip(weights, Module(3, True).parameters(), strict=True):
        torch.testing.assert_close(found, initial, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("clip_norm", 0.0), ("noise_multiplier", -1)])
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        GradientClipNoise(**{name: value})
