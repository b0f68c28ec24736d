"""What some methods train before the first step, described by plain values, for YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_robust.contracts import (
    check_at_least,
    check_choice,
    check_integer,
    check_positive,
    clean_view,
)
from lightning_robust.models.networks import logits_of
from lightning_robust.models.optimizing import OptimizerName, make_optimizer
from lightning_robust.models.proxy import loss_trajectories
from lightning_robust.models.xrm import held_out_logits


class HeldOutLogits:
    """XRM's twins as the first stage of `MAT`: ``MAT(HeldOutLogits(network))``.

    :func:`~lightning_robust.models.held_out_logits` with its arguments; batches may be pairs or
    dictionaries, and logits are those of the training set's clean view.

    Args:
        network: Maps inputs to logits; copied.
        epochs: Of training.
        batch_size: Of training.
        learning_rate: Step size.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        optimizer: ``"sgd"`` or ``"adamw"``.
        decay_all: Otherwise biases and norms have no decay.
        max_flip_rate: See :class:`~lightning_robust.models.XRM`.
        num_workers: Of the loaders.
        seed: Seed of halves, order, flips and dropout.

    Raises:
        ContractError: If an argument is refused; when called, as :class:`XRM`.

    Example:
        >>> from lightning_robust import MAT
        >>> from lightning_robust.models import SmallConvNet
        >>> method = MAT(HeldOutLogits(SmallConvNet(), epochs=10), temperature=0.1)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        epochs: int = 10,
        batch_size: int = 64,
        learning_rate: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        optimizer: OptimizerName = "sgd",
        decay_all: bool = True,
        max_flip_rate: float = 0.9,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        check_integer("epochs", epochs, 1)
        check_positive("learning_rate", learning_rate)
        check_at_least("weight_decay", weight_decay, 0)
        check_choice("optimizer", optimizer, ("sgd", "adamw"))
        self.network = network
        self.settings: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": partial(
                make_optimizer,
                name=optimizer,
                learning_rate=learning_rate,
                momentum=momentum,
                weight_decay=weight_decay,
                decay_all=decay_all,
            ),
            "max_flip_rate": max_flip_rate,
            "num_workers": num_workers,
            "seed": seed,
        }

    def __call__(self, dataset: Dataset[Any]) -> Tensor:
        """Held-out logits (n, C) of the training set."""
        return held_out_logits(
            _OnInputs(self.network),
            dataset,
            clean_dataset=clean_view(dataset),
            inputs=_inputs,
            collate_fn=getattr(dataset, "collate_fn", None),
            **self.settings,
        )


class ProxyTrajectories:
    """A small model as the first stage of `S2L`: ``S2L(ProxyTrajectories(proxy))``.

    :func:`~lightning_robust.models.loss_trajectories` with its arguments.

    Args:
        module: The proxy, with its own loss and optimizers; copied.
        epochs: Of training.
        batch_size: Of training.
        every_n_epochs: Record after every so many epochs.
        every_n_steps: Record after every so many optimizer steps instead.
        token_labels: The key of the batch under which a language model's labels are; ``None`` for a
            classifier.
        num_workers: Of the loader.
        seed: Seed of order and dropout.

    Raises:
        ContractError: If an argument is refused; when called, as ``LossTrajectory``.

    Example:
        >>> from lightning_robust import S2L
        >>> from lightning_robust.models import Classifier, SmallConvNet
        >>> method = S2L(ProxyTrajectories(Classifier(SmallConvNet()), epochs=3), fraction=0.3)
    """

    def __init__(
        self,
        module: LightningModule,
        *,
        epochs: int = 3,
        batch_size: int = 128,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        token_labels: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        check_integer("epochs", epochs, 1)
        check_integer("batch_size", batch_size, 1)
        self.module = module
        self.settings: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "every_n_epochs": every_n_epochs,
            "every_n_steps": every_n_steps,
            "token_labels": token_labels,
            "num_workers": num_workers,
            "seed": seed,
        }

    def __call__(self, dataset: Dataset[Any]) -> Tensor:
        """Losses (n, T) of the training set."""
        collate_fn = getattr(dataset, "collate_fn", None)
        return loss_trajectories(self.module, dataset, collate_fn=collate_fn, **self.settings)


class _OnInputs(nn.Module):
    """Takes the inputs of a batch as they come, a tensor or a mapping."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Any) -> Tensor:
        return logits_of(self.network, inputs)


def _inputs(batch: Any) -> Any:
    return batch if isinstance(batch, Mapping) else batch[0]
