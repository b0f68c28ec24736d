from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_robust.data import ColouredDigitsDataModule
from lightning_robust.models import Classifier, SmallConvNet
from lightning_robust.models.xrm import alone, silent
from lightning_robust.randomness import isolated


def trained(epochs: int) -> Classifier:
    with isolated(), silent():
        torch.manual_seed(0)
        module = Classifier(SmallConvNet())
        Trainer(max_epochs=epochs, **alone()).fit(module, ColouredDigitsDataModule())
    return module


@pytest.fixture(scope="session")
def early() -> Classifier:
    """A network that knows colours only."""
    return trained(4)


@pytest.fixture(scope="session")
def late() -> Classifier:
    """A network that fits all training examples."""
    return trained(20)
