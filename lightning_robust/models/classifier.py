"""A plain classifier, as a user would write it: it knows nothing of this package's callbacks."""

from __future__ import annotations

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lightning_robust.contracts import check_at_least, check_integer, check_positive


class SmallConvNet(nn.Sequential):
    """Two convolutions (16 and 32 channels, 3x3), max-pooling, a hidden layer of 64, the classes.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels, even.

    Shape:
        Images (n, in_channels, image_size, image_size) to logits (n, C).

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> import torch
        >>> SmallConvNet()(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(self, num_classes: int = 5, in_channels: int = 3, image_size: int = 8) -> None:
        check_integer("num_classes", num_classes, minimum=2)
        check_integer("in_channels", in_channels, minimum=1)
        check_integer("image_size", image_size, minimum=2)
        super().__init__(
            nn.Conv2d(in_channels, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (image_size // 2) ** 2, 64),
            nn.ReLU(),
            nn.Linear(64, num_classes),
        )


class Classifier(LightningModule):
    """Any network trained with cross-entropy and SGD.

    Batches are pairs of inputs and targets (n,). Logs ``train/loss``, ``val/loss`` and
    ``test/loss``, means over the epoch.

    Args:
        network: Maps inputs to logits (n, C).
        learning_rate: Step size of SGD.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> import torch
        >>> model = Classifier(SmallConvNet(num_classes=3))
        >>> model(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
    ) -> None:
        super().__init__()
        check_positive("learning_rate", learning_rate)
        check_at_least("momentum", momentum, 0)
        check_at_least("weight_decay", weight_decay, 0)
        self.network = network
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, C) of the inputs."""
        logits: Tensor = self.network(inputs)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch."""
        return self._loss(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss of a validation batch."""
        self._loss(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss of a test batch."""
        self._loss(batch, "test")

    def configure_optimizers(self) -> Optimizer:
        """SGD over all parameters."""
        return SGD(
            self.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def _loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(self(inputs), targets)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss
