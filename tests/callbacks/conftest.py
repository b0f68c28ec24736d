"""A short run on sixty points that writes down what a method of selection could see and do."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


class Points(Dataset):
    """Three overlapping classes of unequal size; feature 0 is the index."""

    def __init__(self, n: int = 60, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.targets = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(n)[:n]
        self.x = torch.randn(n, 5, generator=g)
        self.x[torch.arange(n), 1 + self.targets] += 1.5
        self.x[:, 0] = torch.arange(n)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.targets[index]


class Network(LightningModule):
    """Notes which examples are trained on, and by how much each one's gradient is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.6, 0.6, generator=g)
        self.played: dict[int, list[int]] = {}
        self.weights: dict[int, dict[int, float]] = {}

    def training_step(self, batch, batch_idx):
        x, y = batch
        indices = x[:, 0].long().tolist()
        logits = self.head(self.body(x[:, 1:]))  # an observation gets no further
        self.played.setdefault(self.current_epoch, []).extend(indices)
        noted = self.weights.setdefault(self.current_epoch, {})
        plain = (logits.softmax(1) - F.one_hot(y, 3)).detach() / len(y)

        def note(gradient: Tensor) -> None:
            ratios = (gradient * plain).sum(1) / (plain * plain).sum(1)
            noted.update(zip(indices, ratios.tolist(), strict=True))

        logits.register_hook(note)
        return F.cross_entropy(logits, y)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.5)


@dataclass
class View:
    """The model's view of every example, found one by one."""

    features: Tensor
    logits: Tensor

    @classmethod
    def of(cls, module: Network, data: Points) -> View:
        with torch.no_grad():
            features = torch.stack([module.body(x[None, 1:])[0] for x in data.x])
            return cls(features, torch.stack([module.head(f[None])[0] for f in features]))


@dataclass
class Record(Callback):
    """What there was before each epoch; stands before the method, so before it restarts."""

    module: Network
    data: Points
    val: Points
    views: list[View] = field(default_factory=list)
    val_views: list[View] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)  # head weights as each epoch begins
    trainer: Trainer | None = None

    def look(self) -> None:
        """View all examples with the model as it is."""
        self.views.append(View.of(self.module, self.data))
        self.val_views.append(View.of(self.module, self.val))

    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(self.module.head.weight.detach().clone())

    def on_train_epoch_end(self, trainer, pl_module):
        self.look()

    def examples(self, epoch: int) -> set[int]:
        """What the epoch played; nothing twice."""
        played = self.module.played[epoch]
        assert len(set(played)) == len(played)
        return set(played)


@pytest.fixture
def points() -> Points:
    return Points()


@pytest.fixture
def val_points() -> Points:
    return Points(24, seed=5)


@pytest.fixture
def train(points, val_points):
    """Trains with a method; returns the record. ``views[e]`` is what epoch e was decided on."""

    def run(method, epochs: int = 3, *, others=(), **settings) -> Record:
        module = Network()
        record = Record(module, points, val_points)
        record.look()
        record.trainer = Trainer(
            callbacks=[record, method, *others],
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )
        val = DataLoader(val_points, batch_size=8)
        record.trainer.fit(module, DataLoader(points, batch_size=8, shuffle=True), val)
        return record

    return run


@pytest.fixture
def replay(points):
    """Trains again on the batches of a record, by a loss written out; the weights must agree.

    ``loss`` is called with (logits, targets, indices, epoch) and returns a scalar.
    """

    def run(record: Record, loss, before_epoch=None, tolerance=1e-5) -> None:
        module = Network()
        optimizer = module.configure_optimizers()
        for epoch, played in record.module.played.items():
            if before_epoch is not None:
                before_epoch(epoch, module)
            for batch in torch.tensor(played).split(8):
                logits = module.head(module.body(points.x[batch, 1:]))
                optimizer.zero_grad()
                loss(logits, points.targets[batch], batch, epoch).backward()
                optimizer.step()
        for name, weights in record.module.state_dict().items():
            wanted = module.state_dict()[name]
            torch.testing.assert_close(weights, wanted, rtol=1e-4, atol=tolerance)

    return run
