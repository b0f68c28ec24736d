from __future__ import annotations

from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust import ContractError, Subsample

SIZES = (30, 6, 3, 0, 11)
N = sum(SIZES)


class Grouped(Dataset):
    """Five groups, one of them empty; the last is the only one of class 1."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        groups = torch.cat([torch.full((s,), i) for i, s in enumerate(SIZES)])
        self.groups = groups[torch.randperm(N, generator=g)]
        self.targets = (self.groups == 4).long()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index)]), int(self.targets[index])


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 2)
        self.played: dict[int, list[int]] = {}

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.played.setdefault(self.current_epoch, []).extend(x[:, 0].long().tolist())
        return F.cross_entropy(self.net(x / N), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(method: Subsample, epochs: int = 3) -> tuple[dict[int, list[int]], Trainer]:
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
    trainer.fit(module, DataLoader(Grouped(), batch_size=4, shuffle=True))
    return module.played, trainer


def test_every_group_is_as_large_as_the_smallest_and_the_subset_stays():
    played, trainer = fit(Subsample())
    for epoch in range(3):
        assert len(set(played[epoch])) == len(played[epoch])  # without replacement
        assert set(played[epoch]) == set(played[0])
        drawn = Counter(int(Grouped().groups[i]) for i in played[epoch])
        assert drawn == {0: 3, 1: 3, 2: 3, 4: 3}
    assert played[0] != played[1]  # another order
    assert trainer.callback_metrics["subsample/num_examples"] == 12


def test_classes():
    played, _ = fit(Subsample(by="class"))
    drawn = Counter(int(Grouped().targets[i]) for i in played[0])
    assert drawn == {0: 11, 1: 11}


def test_redrawn_each_epoch():
    played, _ = fit(Subsample(redraw=True), epochs=40)
    assert len({frozenset(epoch) for epoch in played.values()}) == 40
    for epoch in played.values():
        assert Counter(int(Grouped().groups[i]) for i in epoch) == {0: 3, 1: 3, 2: 3, 4: 3}
    # Each of the 30 examples of group 0 is in 4 of 40 subsets on average.
    counts = Counter(i for epoch in played.values() for i in epoch)
    of_group_0 = [counts[i] for i in range(N) if Grouped().groups[i] == 0]
    assert sum(of_group_0) == 120
    assert max(of_group_0) <= 12
    assert sum(count > 0 for count in of_group_0) >= 25


def test_the_seed_decides():
    subsets = [frozenset(fit(Subsample(seed=seed), epochs=1)[0][0]) for seed in (0, 0, 1)]
    assert subsets[0] == subsets[1]
    assert subsets[0] != subsets[2]


@pytest.mark.parametrize(("name", "value"), [("by", "both"), ("redraw", 1)])
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        Subsample(**{name: value})
