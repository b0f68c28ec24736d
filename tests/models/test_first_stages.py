"""First stages as values of a YAML file: the functions they stand for, on pairs and mappings."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from lightning_robust.contracts import ContractError
from lightning_robust.models import (
    BiasedLogits,
    BiasedLosses,
    HeldOutLogits,
    biased_logits,
    biased_losses,
    held_out_logits,
)

SETTINGS = {"epochs": 2, "batch_size": 16, "seed": 3}


class Rows(Dataset):
    """Rows of numbers, noisy but for the clean view, as pairs or as mappings with a collator."""

    def __init__(self, mapping: bool, noise: float = 0.1) -> None:
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(40, 4, generator=g)
        self.targets = (self.x[:, 0] > 0).long()
        self.shift = noise * torch.randn(40, 4, generator=g)
        self.mapping = mapping
        if mapping:
            self.collate_fn = self.collate
        if noise:
            self.clean = Rows(mapping, noise=0.0)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int):
        x, y = self.x[index] + self.shift[index], self.targets[index]
        return {"x": x, "labels": y} if self.mapping else (x, y)

    @staticmethod
    def collate(items: list[dict]) -> dict:
        return {key: torch.stack([item[key] for item in items]) for key in ("x", "labels")}


class OnMappings(nn.Module):
    """As transformers' models: keywords in, an output with ``logits``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x, **_):
        return self.body(x)


@pytest.fixture
def body() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("stage", "function", "own"),
    [
        (BiasedLosses, biased_losses, {"exponent": 0.5}),
        (BiasedLogits, biased_logits, {"exponent": 0.5, "every_epoch": True}),
        (BiasedLogits, biased_logits, {}),
        (HeldOutLogits, held_out_logits, {}),
    ],
)
@pytest.mark.filterwarnings("ignore:XRM finds one group")
def test_a_stage_is_its_function_on_pairs_and_on_mappings(stage, function, own, body):
    data = Rows(mapping=False)
    clean = {} if function is biased_losses else {"clean_dataset": data.clean}
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.5, weight_decay=0.01)
    expected = function(body, data, optimizer=sgd, **clean, **own, **SETTINGS)
    rates = {"learning_rate": 0.05, "momentum": 0.5, "weight_decay": 0.01}
    torch.testing.assert_close(stage(body, **rates, **own, **SETTINGS)(data), expected)
    mappings = stage(OnMappings(body), **rates, **own, **SETTINGS)
    torch.testing.assert_close(mappings(Rows(mapping=True)), expected)


def test_decay_may_spare_biases_and_norms(body):
    decayed = BiasedLogits(body, weight_decay=5.0, **SETTINGS)(Rows(mapping=False))
    spared = BiasedLogits(body, weight_decay=5.0, decay_all=False, **SETTINGS)(Rows(mapping=False))
    assert not torch.allclose(decayed, spared)


@pytest.mark.parametrize("stage", [BiasedLosses, BiasedLogits, HeldOutLogits])
def test_bad_arguments_are_refused(stage, body):
    with pytest.raises(ContractError, match="epochs must be"):
        stage(body, epochs=0)
    with pytest.raises(ContractError, match="optimizer must be"):
        stage(body, optimizer="adagrad")
    with pytest.raises(TypeError, match="epoch"):
        stage(body, epoch=3)
