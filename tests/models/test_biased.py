"""Biased networks against a training loop in plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_robust.contracts import ContractError
from lightning_robust.models import biased_logits, biased_losses
from lightning_robust.sampling import PlanSampler


@pytest.fixture
def problem():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=g), torch.randint(3, (50,), generator=g)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6, generator=g)
    return network, TensorDataset(x, y)


def by_hand(network, dataset, epochs, q):
    """Losses (n, T) and logits (n, T, C) as examples come, and the logits (n, C) at the end."""
    x, y = dataset.tensors
    parameters = [p.detach().clone().requires_grad_() for p in network.parameters()]
    net = lambda x: torch.func.functional_call(  # noqa: E731
        network, dict(zip([n for n, _ in network.named_parameters()], parameters, strict=True)), x
    )
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)
    sampler = PlanSampler(50, batch_size=16, seed=0)
    losses, logits = torch.zeros(50, epochs), torch.zeros(50, epochs, 3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in torch.tensor(list(sampler)).split(16):
            z = net(x[batch])
            p = z.softmax(1)[torch.arange(len(batch)), y[batch]]
            losses[batch, epoch], logits[batch, epoch] = -p.detach().log(), z.detach()
            optimizer.zero_grad()
            ((1 - p**q) / q).mean().backward()
            optimizer.step()
    return losses, logits, net(x).detach()


def test_a_biased_network_is_trained_by_the_generalised_cross_entropy(problem):
    losses, logits, end = by_hand(*problem, epochs=3, q=0.5)
    before = torch.random.get_rng_state()
    settings = {"epochs": 3, "exponent": 0.5, "batch_size": 16}
    torch.testing.assert_close(biased_losses(*problem, **settings), losses)
    torch.testing.assert_close(biased_logits(*problem, every_epoch=True, **settings), logits)
    torch.testing.assert_close(biased_logits(*problem, **settings), end)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_clean_view_is_what_is_judged_at_the_end(problem):
    network, dataset = problem
    clean = TensorDataset(-dataset.tensors[0], dataset.tensors[1])
    settings = {"epochs": 1, "batch_size": 16}
    *_, end = by_hand(network, dataset, epochs=1, q=0.7)
    found = biased_logits(network, dataset, clean_dataset=clean, **settings)
    assert not torch.allclose(found, end)
    with pytest.raises(ContractError, match="clean_dataset has 49 examples"):
        biased_logits(network, dataset, clean_dataset=range(49), **settings)


def test_bad_arguments_are_refused(problem):
    with pytest.raises(ContractError, match="exponent must be"):
        biased_losses(*problem, exponent=0)
    with pytest.raises(ContractError, match="epochs must be"):
        biased_logits(*problem, epochs=0)
