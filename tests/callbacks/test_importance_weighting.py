from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust import ContractError, ImportanceWeighting

SIZES = (17, 4, 2, 0, 9)
N = sum(SIZES)


class Grouped(Dataset):
    """Five groups, one of them empty; each item brings its own index along."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        groups = torch.cat([torch.full((s,), i) for i, s in enumerate(SIZES)])
        self.groups = groups[torch.randperm(N, generator=g)]
        self.group_names = tuple("abcde")
        self.targets = (self.groups > 1).long()
        self.x = torch.randn(N, 5, generator=g)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.x[index], int(self.targets[index]), index


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 2))
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6, generator=g)
    return net.to(dtype)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.played: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        logits = self.net(x)  # a pass that only looks for the head gets no further
        self.played.append(index.tolist())
        return F.cross_entropy(logits, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(method: ImportanceWeighting, module: Module | None = None) -> Module:
    module = module or Module()
    trainer = Trainer(
        callbacks=[method],
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(Grouped(), batch_size=7, shuffle=True))
    return module


@pytest.mark.parametrize("by", ["group", "class"])
def test_is_the_weighted_loss_written_by_hand(by):
    """Example by example in float64, with 1 / p(g), divided by the mean of that over the set."""
    module = fit(ImportanceWeighting(by=by))
    data = Grouped()
    of = (data.groups if by == "group" else data.targets).tolist()
    inverse = [N / of.count(member) for member in of]
    weights = [value / (sum(inverse) / N) for value in inverse]
    net = network(torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for batch in module.played:
        optimizer.zero_grad()
        for i in batch:
            logits = net(data.x[i : i + 1].double())[0]
            loss = -logits.log_softmax(0)[data.targets[i]]
            (weights[i] * loss / len(batch)).backward()
        optimizer.step()
    for one, other in zip(net.parameters(), module.parameters(), strict=True):
        assert torch.allclose(one.float(), other, rtol=0, atol=1e-6)


def test_all_examples_are_played_once_an_epoch():
    played = fit(ImportanceWeighting()).played
    assert sorted(index for batch in played[:5] for index in batch) == list(range(N))


def test_classes_need_no_groups_and_groups_may_be_given():
    method = ImportanceWeighting(groups=Grouped().targets)
    assert torch.equal(
        fit(method).net[0].weight, fit(ImportanceWeighting(by="class")).net[0].weight
    )


def test_refuses():
    with pytest.raises(ContractError, match="by must be one of 'group', 'class', got 'example'"):
        ImportanceWeighting(by="example")
    module = Module()
    with pytest.raises(ContractError, match="one group only"):
        fit(ImportanceWeighting(groups=[0] * N), module)
    assert not module.played
