"""A plain classifier, as a user would write it: it knows nothing of this package's callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_robust.contracts import (
    ContractError,
    check_at_least,
    check_bool,
    check_choice,
    check_in_range,
    check_integer,
    check_positive,
)
from lightning_robust.models.networks import logits_of
from lightning_robust.models.optimizing import (
    OptimizerName,
    ProgressSchedule,
    ScheduleName,
    make_optimizer,
)


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
    """Any network trained with cross-entropy, described by plain values.

    Batches are pairs of inputs and targets (n,), or dictionaries with targets as ``"labels"``,
    whose other entries go to the network by name. Logs ``train/loss``, ``val/loss`` and
    ``test/loss``, means over the epoch.

    Args:
        network: Maps inputs to logits (n, C), or to an object that has them as ``logits``; see also
            :func:`~lightning_robust.models.timm_network` and its kin, for YAML files.
        learning_rate: Step size.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        optimizer: ``"sgd"`` or ``"adamw"``.
        nesterov: Nesterov's momentum, for SGD.
        decay_all: Otherwise biases and norms, all parameters of one dimension, have no decay.
        schedule: ``"constant"``; ``"linear"`` or ``"cosine"``, to 0 at the end of training;
            ``"multistep"``, times ``decay_factor`` at each of ``milestones``. It follows how much
            of the training is done: see
            :class:`~lightning_robust.models.optimizing.ProgressSchedule`.
        warmup: Share of the training, in [0, 1), in which the learning rate rises from 0.
        milestones: In epochs.
        decay_factor: At each milestone.

    Raises:
        ContractError: If an argument is refused; when training starts, if the schedule needs the
            end of training and the Trainer has neither ``max_epochs`` nor ``max_steps``.

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
        optimizer: OptimizerName = "sgd",
        nesterov: bool = False,
        decay_all: bool = True,
        schedule: ScheduleName = "constant",
        warmup: float = 0.0,
        milestones: Sequence[int] = (),
        decay_factor: float = 0.1,
    ) -> None:
        super().__init__()
        check_positive("learning_rate", learning_rate)
        check_at_least("momentum", momentum, 0)
        check_at_least("weight_decay", weight_decay, 0)
        check_choice("optimizer", optimizer, ("sgd", "adamw"))
        check_bool("nesterov", nesterov)
        check_bool("decay_all", decay_all)
        check_choice("schedule", schedule, ("constant", "linear", "cosine", "multistep"))
        check_in_range("warmup", warmup, 0, 0.999)
        for milestone in milestones:
            check_integer("milestones", milestone, minimum=1)
        if bool(milestones) != (schedule == "multistep"):
            raise ContractError(
                f"schedule={schedule!r} and milestones={list(milestones)} do not go together; "
                'milestones are those of "multistep", give both or neither'
            )
        check_positive("decay_factor", decay_factor)
        self.network = network
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.nesterov = nesterov
        self.decay_all = decay_all
        self.schedule = schedule
        self.warmup = warmup
        self.milestones = milestones
        self.decay_factor = decay_factor
        self._place = (0, 0)

    def forward(self, inputs: Any) -> Tensor:
        """Logits (n, C) of the inputs."""
        return logits_of(self.network, inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch."""
        return self._loss(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss of a validation batch."""
        self._loss(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss of a test batch."""
        self._loss(batch, "test")

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule if it is not constant."""
        optimizer = make_optimizer(
            self.parameters(),
            self.optimizer,
            self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            decay_all=self.decay_all,
        )
        if self.schedule == "constant" and not self.warmup:
            return optimizer
        self._check_end()
        schedule = ProgressSchedule(
            optimizer,
            self.schedule,
            self._progress,
            warmup=self.warmup,
            milestones=self.milestones,
            decay_factor=self.decay_factor,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Note where training is, for the schedule."""
        self._place = (self.current_epoch, batch_idx + 1)

    def _progress(self) -> tuple[float, float]:
        """Epochs, and the share of training, that are done after the batch that is being seen."""
        trainer = self.trainer
        epoch, batches = self._place
        epochs = float(self.current_epoch)
        if epoch == self.current_epoch and batches:
            epochs += batches / trainer.num_training_batches
        max_epochs = trainer.max_epochs or -1
        of_epochs = epochs / max_epochs if max_epochs > 0 else 0.0
        of_steps = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        return epochs, min(1.0, max(of_epochs, of_steps))

    def _check_end(self) -> None:
        needs_end = self.schedule in ("linear", "cosine") or self.warmup > 0
        if needs_end and (self.trainer.max_epochs or -1) < 0 and self.trainer.max_steps < 0:
            raise ContractError(
                f"schedule={self.schedule!r} with warmup={self.warmup} needs to know when training "
                "ends; give the Trainer max_epochs or max_steps"
            )

    def _loss(self, batch: Any, stage: str) -> Tensor:
        if isinstance(batch, Mapping):
            inputs, targets = batch, batch["labels"]
        else:
            inputs, targets = batch
        loss = F.cross_entropy(self(inputs), targets)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss


class LanguageModel(Classifier):
    """A causal language model, trained on the tokens of its examples that have a label.

    Batches are dictionaries with ``input_ids``, ``attention_mask`` and ``labels``, all (B, T);
    a label of -100 does not count. The network shifts labels itself, as Hugging Face's do. Logs
    as :class:`Classifier`, whose arguments it takes.
    """

    def _loss(self, batch: Any, stage: str) -> Tensor:
        loss: Tensor = self.network(**batch).loss
        size = len(batch["labels"])
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=size)
        return loss
