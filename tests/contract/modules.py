"""A zoo of data and modules as users write them; none of them knows lightning_robust."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytorch_lightning
import timm
import torch
from lightly.utils.benchmarking import FinetuneClassifier, LinearClassifier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

NUM_FEATURES = 12
_INDEX_UNIT = 1 / 1024  # feature 0 of example i is i / 1024, so that a batch tells what is in it


class Examples(Dataset):
    """n examples whose first feature is their index; group = 2 * target + (is it a minority?).

    Args:
        n: How many.
        balanced: Classes and groups of equal size, instead of random ones.
        augment: Add noise from the torch, numpy and Python global generators.
    """

    def __init__(
        self,
        n: int = 60,
        *,
        num_classes: int = 3,
        balanced: bool = False,
        as_dict: bool = False,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        random_source = torch.Generator().manual_seed(seed)
        place = torch.arange(n)
        self.as_dict, self.augment = as_dict, augment
        if balanced:
            self.targets, minority = place % num_classes, (place // num_classes) % 2
        else:
            self.targets = torch.randint(num_classes, (n,), generator=random_source)
            minority = (torch.rand(n, generator=random_source) < 0.3).long()
        self.groups = 2 * self.targets + minority
        self.group_names = [f"y={y},m={m}" for y in range(num_classes) for m in range(2)]
        self.x = 0.5 * torch.randn(n, NUM_FEATURES, generator=random_source)
        self.x[place, 1 + self.targets] += 1.0
        self.x[:, 5] += 2.0 * minority
        self.x[:, 0] = place * _INDEX_UNIT

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index].clone()
        if self.augment:
            x[1] += torch.rand(()) + np.random.rand() + random.random()
        y = self.targets[index]
        return {"features": x, "label": y} if self.as_dict else (x, y)


class Shortcut(Dataset):
    """Three classes, a weak core feature and a strong one that is the class's in nine of ten.

    It has no ``groups``: nobody but a test knows who is in the ``minority``.
    """

    def __init__(self, n: int = 300, *, share: float = 0.1, seed: int = 0) -> None:
        random_source = torch.Generator().manual_seed(seed)
        place = torch.arange(n)
        self.targets = place % 3
        self.minority = torch.rand(n, generator=random_source) < share
        others = torch.randint(1, 3, (n,), generator=random_source)
        shown = (self.targets + self.minority * others) % 3
        self.x = 0.3 * torch.randn(n, NUM_FEATURES, generator=random_source)
        self.x[place, 1 + shown] += 3.0
        self.x[place, 4 + self.targets] += 0.7
        self.x[:, 0] = place * _INDEX_UNIT

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.targets[index]


class Recorded(nn.Module):
    """A network that notes, of each training batch, what is done to the logits and gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.indices: list[list[int]] = []
        self.plain: list[Tensor] = []
        self.steered: list[Tensor] = []
        self.gradients: list[Tensor] = []  # with respect to the plain logits

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        logits = self.head(features)
        if self.training:
            self.indices.append(indices_in([x]))
            self.plain.append(F.linear(features, self.head.weight, self.head.bias).detach())
            self.steered.append(logits.detach())
            logits.register_hook(self.gradients.append)  # behind the hook that weighs it
        return logits


def indices_in(batch: Any) -> list[int]:
    """The dataset indices in a batch of :class:`Examples`, told by their first feature."""
    if isinstance(batch, dict) and "only" in batch:  # from a dictionary of one loader
        batch = batch["only"]
    elif isinstance(batch[0] if not isinstance(batch, dict) else None, list):  # from a list of one
        [batch] = batch
    x = batch["features"] if isinstance(batch, dict) else batch[0]
    return (x[:, 0] / _INDEX_UNIT).round().long().tolist()


def network(num_outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.ReLU(), nn.Linear(8, num_outputs))


class InlineLoss(lightning.LightningModule):
    """Tuple batches, the loss written inline."""

    def __init__(self, net: nn.Module | None = None, momentum: float = 0.9) -> None:
        super().__init__()
        self.net = network() if net is None else net
        self.momentum = momentum

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_loss", F.cross_entropy(self.net(x), y))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=self.momentum)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


class NamedLoss(lightning.LightningModule):
    """The loss is an attribute, Lightning's usual spelling; a step that takes the batch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch):
        return {"loss": self.criterion(self(batch[0]), batch[1])}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class DictBatch(lightning.LightningModule):
    """Batches are dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch["features"]), batch["label"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Manual(lightning.LightningModule):
    """Two optimizers in turn, toggled, each accumulating two batches, zero_grad before forward."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body = nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer = self.optimizers()[batch_idx % 2]
        self.toggle_optimizer(optimizer)
        if batch_idx % 4 < 2:
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.head(self.body(x)), y) / 2)
        if batch_idx % 4 >= 2:
            optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.body, self.head)]


class BinaryOneOutput(lightning.LightningModule):
    """One output and BCE with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self.net(x).squeeze(1), y.float())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class HuggingFaceLike(nn.Module):
    """A classifier with ``config.num_labels``, beside another layer of as many outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=3)
        self.encoder = nn.Sequential(nn.Linear(NUM_FEATURES, 3), nn.Tanh(), nn.Linear(3, 8))
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x))


class TimmImages(nn.Module):
    """A timm model, shown the features as little images."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("test_resnet", pretrained=False, num_classes=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(F.interpolate(x.view(-1, 3, 2, 2), size=32))


def with_batch_norm_and_dropout() -> InlineLoss:
    return InlineLoss(
        nn.Sequential(
            nn.Linear(NUM_FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)
        )
    )


class OnPytorchLightning(pytorch_lightning.LightningModule):
    """A project on ``pytorch_lightning`` imports."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lightly_linear() -> LinearClassifier:
    """A third party's: frozen features, a head to train, schedules from the Trainer's steps."""
    return LinearClassifier(
        nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU()),
        batch_size_per_device=256,
        feature_dim=8,
        num_classes=3,
        topk=(1, 2),
    )


def lightly_finetune() -> FinetuneClassifier:
    """The same third party's, training all weights."""
    return FinetuneClassifier(
        nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU()),
        batch_size_per_device=256,
        feature_dim=8,
        num_classes=3,
        topk=(1, 2),
    )


ZOO: dict[str, Any] = {
    "tuple batch, inline loss": InlineLoss,
    "dict batch": DictBatch,
    "named loss": NamedLoss,
    "manual optimisation": Manual,
    "one binary output": BinaryOneOutput,
    "batch norm and dropout": with_batch_norm_and_dropout,
    "compiled": lambda: InlineLoss(torch.compile(network(), backend="eager")),
    "timm": lambda: InlineLoss(TimmImages()),
    "Hugging Face": lambda: InlineLoss(HuggingFaceLike()),
    "lightly linear": lightly_linear,
    "lightly finetune": lightly_finetune,
    "pytorch_lightning": OnPytorchLightning,
}


def data_for(name: str, **settings: Any) -> Examples:
    """Examples in the form that module ``name`` of the zoo reads."""
    return Examples(
        as_dict=name == "dict batch",
        num_classes=2 if name == "one binary output" else 3,
        **settings,
    )
