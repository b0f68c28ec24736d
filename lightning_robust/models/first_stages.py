"""What some methods train before the first step, described by plain values, for YAML files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from lightning_robust.models.biased import biased_logits, biased_losses
from lightning_robust.models.networks import logits_of
from lightning_robust.models.optimizing import OptimizerName, make_optimizer
from lightning_robust.models.proxy import loss_trajectories
from lightning_robust.models.xrm import held_out_logits


class _OnATrainingSet:
    """Trains copies of a network on the training set that it is called with.

    Args:
        network: Maps inputs to logits; copied. Batches may be pairs or dictionaries.
        epochs: Of training.
        batch_size: Of training.
        learning_rate: Step size.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        optimizer: ``"sgd"`` or ``"adamw"``.
        decay_all: Otherwise biases and norms have no decay.
        num_workers: Of the loaders.
        seed: Seed of order, dropout, and whatever else is drawn.

    Raises:
        ContractError: If an argument is refused; when called, as the function it stands for.
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
            "inputs": _inputs,
            "num_workers": num_workers,
            "seed": seed,
        }

    def _call(
        self, function: Callable[..., Tensor], dataset: Dataset[Any], **settings: Any
    ) -> Tensor:
        collate_fn = getattr(dataset, "collate_fn", None)
        settings = {**self.settings, "collate_fn": collate_fn, **settings}
        return function(_OnInputs(self.network), dataset, **settings)


class HeldOutLogits(_OnATrainingSet):
    """XRM's twins as the first stage of `MAT`: ``MAT(HeldOutLogits(network))``.

    :func:`~lightning_robust.models.held_out_logits` with its arguments; logits are those of the
    training set's clean view.

    Args:
        network: Maps inputs to logits; copied.
        max_flip_rate: See :class:`~lightning_robust.models.XRM`.
        settings: ``epochs``, ``batch_size``, ``learning_rate``, ``momentum``, ``weight_decay``,
            ``optimizer``, ``decay_all``, ``num_workers`` and ``seed``, as of ``Classifier``.

    Raises:
        ContractError: If an argument is refused; when called, as ``XRM``.

    Example:
        >>> from lightning_robust import MAT
        >>> from lightning_robust.models import SmallConvNet
        >>> method = MAT(HeldOutLogits(SmallConvNet(), epochs=10), temperature=0.1)
    """

    def __init__(self, network: nn.Module, *, max_flip_rate: float = 0.9, **settings: Any) -> None:
        super().__init__(network, **settings)
        self.max_flip_rate = max_flip_rate

    def __call__(self, dataset: Dataset[Any]) -> Tensor:
        """Held-out logits (n, C) of the training set."""
        clean, rate = clean_view(dataset), self.max_flip_rate
        return self._call(held_out_logits, dataset, clean_dataset=clean, max_flip_rate=rate)


class BiasedLogits(_OnATrainingSet):
    """A biased network as the first stage of `LogitCorrection` or `ULA`.

    :func:`~lightning_robust.models.biased_logits` with its arguments.

    Args:
        network: Maps inputs to logits; copied.
        exponent: q of the generalised cross-entropy; larger is more biased.
        every_epoch: Logits of each epoch; otherwise those of the training set's clean view at the
            end.
        settings: As of :class:`HeldOutLogits`.

    Raises:
        ContractError: If an argument is refused; when called, as ``biased_logits``.

    Example:
        >>> from lightning_robust import LogitCorrection
        >>> from lightning_robust.models import SmallConvNet
        >>> method = LogitCorrection(BiasedLogits(SmallConvNet(), epochs=40, every_epoch=True))
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        exponent: float = 0.7,
        every_epoch: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(network, **settings)
        self.exponent, self.every_epoch = exponent, every_epoch

    def __call__(self, dataset: Dataset[Any]) -> Tensor:
        """Logits (n, C), or (n, T, C), of the training set."""
        own = {"exponent": self.exponent, "every_epoch": self.every_epoch}
        return self._call(biased_logits, dataset, clean_dataset=clean_view(dataset), **own)


class BiasedLosses(_OnATrainingSet):
    """A biased network as the first stage of `LfF`: ``LfF(BiasedLosses(network))``.

    :func:`~lightning_robust.models.biased_losses` with its arguments.

    Args:
        network: Maps inputs to logits; copied.
        exponent: q of the generalised cross-entropy; larger is more biased.
        settings: As of :class:`HeldOutLogits`.

    Raises:
        ContractError: If an argument is refused; when called, as ``biased_losses``.

    Example:
        >>> from lightning_robust import LfF
        >>> from lightning_robust.models import SmallConvNet
        >>> method = LfF(BiasedLosses(SmallConvNet(), epochs=40))
    """

    def __init__(self, network: nn.Module, *, exponent: float = 0.7, **settings: Any) -> None:
        super().__init__(network, **settings)
        self.exponent = exponent

    def __call__(self, dataset: Dataset[Any]) -> Tensor:
        """Losses (n, T) of the training set."""
        return self._call(biased_losses, dataset, exponent=self.exponent)


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
