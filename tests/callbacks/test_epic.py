"""EPIC inside a training: when it drops, that it is for good, and what it says about it."""

from __future__ import annotations

import csv

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import (
    EPIC,
    ContractError,
    HighestLossDrop,
    LowestConfidenceDrop,
    RandomDrop,
)
from lightning_robust.functional.isolation import isolated_examples

N = 120
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(3).repeat_interleave(torch.tensor([60, 40, 20]))


class Module(LightningModule):
    """A classifier with a bias, which remembers its weights before each epoch, and what came."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Linear(4, 3)
        self.before: list[dict[str, torch.Tensor]] = []
        self.played: list[set[int]] = []

    def on_train_epoch_start(self) -> None:
        self.before.append({k: v.clone() for k, v in self.net.state_dict().items()})
        self.played.append(set())

    def training_step(self, batch, batch_idx):
        x, y, i = batch
        self.played[-1] |= set(i.tolist())
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(method, epochs: int = 6) -> tuple[Module, Trainer]:
    module = Module()
    trainer = Trainer(
        callbacks=[method],
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(X, Y, torch.arange(N)), 20, shuffle=True))
    return module, trainer


def outputs(module: Module, epoch: int) -> torch.Tensor:
    weights = module.before[epoch]
    return X @ weights["weight"].T + weights["bias"]


def test_drops_what_is_isolated_among_the_remaining(tmp_path):
    report = tmp_path / "new" / "dropped.csv"
    method = EPIC(0.3, warmup_epochs=2, interval=2, stop_epoch=5, report_path=str(report))
    module, trainer = fit(method)
    left, rounds = torch.arange(N), {}
    for epoch in range(6):
        if epoch in (2, 4):
            logits = outputs(module, epoch)[left]
            gone = isolated_examples(
                logits.softmax(1) - F.one_hot(Y[left], 3), Y[left], fraction=0.3
            )
            rounds[epoch] = left[gone]
            left = left[~gone]
        assert module.played[epoch] == set(left.tolist())
    expected = torch.cat(list(rounds.values()))
    assert 0 < len(expected) < N
    assert method.dropped_indices.tolist() == expected.tolist()
    assert method.dropped_counts == {epoch: len(gone) for epoch, gone in rounds.items()}
    with report.open() as file:
        rows = [tuple(map(int, row.values())) for row in csv.DictReader(file)]
    assert rows == [(i, int(Y[i]), e) for e, gone in rounds.items() for i in gone.tolist()]
    logged = trainer.callback_metrics
    assert logged["epic/dropped"] == 0  # before the last epoch
    assert logged["epic/dropped_total"] == len(expected)
    assert logged["epic/kept_fraction"] == pytest.approx(len(left) / N)
    by_class = torch.bincount(Y[expected], minlength=3)
    assert [int(logged[f"epic/dropped/{label}"]) for label in range(3)] == by_class.tolist()
    assert method.cluster_sizes is not None
    assert (method.cluster_sizes[rounds[4]] == 1).all()
    assert (method.cluster_sizes[rounds[2]] == 0).all()


@pytest.mark.parametrize("make", [RandomDrop, HighestLossDrop, LowestConfidenceDrop])
def test_the_others_drop_as_many_by_their_own_rule(make):
    epic = EPIC(0.3, warmup_epochs=2, interval=1)
    fit(epic, 5)
    method = make(counts=epic.dropped_counts)
    module, _ = fit(method, 5)
    assert method.dropped_counts == epic.dropped_counts
    first = epic.dropped_counts[2]
    gone = method.dropped_indices[:first]
    logits = outputs(module, 2)
    if make is HighestLossDrop:
        scores = F.cross_entropy(logits, Y, reduction="none")
    elif make is LowestConfidenceDrop:
        scores = 1 - logits.softmax(1).max(1).values
    else:
        again = RandomDrop(counts=epic.dropped_counts)
        fit(again, 5)
        assert torch.equal(again.dropped_indices, method.dropped_indices)
        other = RandomDrop(counts=epic.dropped_counts, seed=1)
        fit(other, 5)
        assert not torch.equal(other.dropped_indices, method.dropped_indices)
        return
    assert set(gone.tolist()) == set(scores.topk(first).indices.tolist())


def test_something_is_always_left():
    module, _ = fit(RandomDrop(counts={1: 1000}), 3)
    assert len(module.played[2]) == 1


def test_nothing_is_dropped_before_a_fit():
    assert EPIC().dropped_indices.tolist() == []
    assert EPIC().dropped_counts == {}


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (EPIC, "fraction", 0.0),
        (EPIC, "threshold", 0),
        (EPIC, "warmup_epochs", 0),
        (EPIC, "interval", 0),
        (EPIC, "stop_epoch", -1),
        (RandomDrop, "counts", [1, 2]),
        (HighestLossDrop, "counts", {"1": 2}),
    ],
)
def test_refuses_bad_arguments_by_name(make, name, value):
    with pytest.raises(ContractError, match=name):
        make(**{name: value})
