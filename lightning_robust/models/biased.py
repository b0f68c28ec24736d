"""A network that is made to rely on what is easiest, by the generalised cross-entropy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.contracts import (
    check_bool,
    check_clean_dataset,
    check_integer,
    check_positive,
)
from lightning_robust.functional.losses import generalised_cross_entropy
from lightning_robust.models.xrm import _fit, _OnIndices
from lightning_robust.observing import undisturbed
from lightning_robust.randomness import isolated
from lightning_robust.steering import class_logits


class _Biased(_OnIndices):
    """A copy of a network; ``record`` is given what it makes of each batch before the step."""

    def __init__(
        self, network: nn.Module, dataset: Dataset[Any], exponent: float, **settings: Any
    ) -> None:
        super().__init__(dataset, **settings)
        self.network = copy.deepcopy(network)
        self.exponent = exponent
        self.logits: list[Tensor] = []  # (n, C) an epoch, where they are kept
        self.losses: list[Tensor] = []  # (n,) an epoch
        self.keeps_logits = False

    def training_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        indices, examples = batch
        logits = class_logits(self.network(self.inputs(examples))).float()
        targets = self.targets[indices.cpu()].to(logits.device)
        self._record(indices.cpu(), logits.detach(), targets)
        return generalised_cross_entropy(logits, targets, self.exponent).mean()

    def _record(self, indices: Tensor, logits: Tensor, targets: Tensor) -> None:
        n = len(self.targets)
        if len(self.losses) <= self.current_epoch:
            self.losses.append(torch.zeros(n))
            if self.keeps_logits:
                self.logits.append(torch.zeros(n, logits.shape[1]))
        self.losses[-1][indices] = F.cross_entropy(logits, targets, reduction="none").cpu()
        if self.keeps_logits:
            self.logits[-1][indices] = logits.cpu()


def biased_logits(
    network: nn.Module,
    dataset: Dataset[Any],
    *,
    epochs: int = 10,
    exponent: float = 0.7,
    every_epoch: bool = False,
    clean_dataset: Dataset[Any] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """Train a copy of a network to be biased, on one device, and return its logits.

    What :class:`~lightning_robust.LogitCorrection` and :class:`~lightning_robust.ULA` need. With
    ``functools.partial`` it is the first stage of a fit of two:
    ``LogitCorrection(partial(biased_logits, network, epochs=40, every_epoch=True))``. The global
    random generators are left as found. Costs one training of the network.

    Args:
        network: Maps inputs to logits; copied.
        dataset: The training set.
        epochs: T, of training.
        exponent: q of the generalised cross-entropy; larger is more biased.
        every_epoch: Return what the network made of each example when it came in each epoch,
            before the step; otherwise the logits at the end, in evaluation mode.
        clean_dataset: The training examples without augmentation, in the same order, for the
            logits at the end.
        seed: Seed of order and dropout.
        settings: ``batch_size``, ``optimizer``, ``inputs``, ``collate_fn``, ``num_workers``, as
            those of :class:`~lightning_robust.models.XRM`.

    Returns:
        (n, C), or (n, T, C) with ``every_epoch``, float32 on the CPU.

    Raises:
        ContractError: An argument is refused.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.randn(20, 3), torch.arange(20) % 2)
        >>> biased_logits(nn.Linear(3, 2), dataset, epochs=2, every_epoch=True).shape
        torch.Size([20, 2, 2])
    """
    check_bool("every_epoch", every_epoch)
    module = _train(network, dataset, epochs, exponent, clean_dataset, every_epoch, seed, settings)
    if every_epoch:
        return torch.stack(module.logits, 1)
    clean = dataset if clean_dataset is None else clean_dataset
    rows = []
    with isolated(), undisturbed(module.trainer, module):
        for _, inputs in module.in_order(clean, torch.arange(len(module.targets))):
            rows.append(class_logits(module.network(inputs)).float().cpu())
    return torch.cat(rows)


def biased_losses(
    network: nn.Module,
    dataset: Dataset[Any],
    *,
    epochs: int = 10,
    exponent: float = 0.7,
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """Train a copy of a network to be biased, and return its cross-entropies in every epoch.

    What :class:`~lightning_robust.LfF` needs, as ``LfF(partial(biased_losses, network,
    epochs=40))``; otherwise as :func:`biased_logits`.

    Args:
        network: Maps inputs to logits; copied.
        dataset: The training set.
        epochs: T, of training.
        exponent: q of the generalised cross-entropy.
        seed: Seed of order and dropout.
        settings: As those of :func:`biased_logits`.

    Returns:
        (n, T), each loss from before the step in which the example came; float32 on the CPU.

    Raises:
        ContractError: An argument is refused.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.randn(20, 3), torch.arange(20) % 2)
        >>> biased_losses(nn.Linear(3, 2), dataset, epochs=4).shape
        torch.Size([20, 4])
    """
    module = _train(network, dataset, epochs, exponent, None, False, seed, settings)
    return torch.stack(module.losses, 1)


def _train(
    network: nn.Module,
    dataset: Dataset[Any],
    epochs: int,
    exponent: float,
    clean_dataset: Dataset[Any] | None,
    keeps_logits: bool,
    seed: int,
    settings: dict[str, Any],
) -> _Biased:
    check_integer("epochs", epochs, 1)
    check_positive("exponent", exponent)
    check_clean_dataset(clean_dataset, len(dataset))  # type: ignore[arg-type]
    with isolated():
        torch.manual_seed(seed)
        module = _Biased(network, dataset, exponent, seed=seed, **settings)
        module.keeps_logits = keeps_logits
        _fit(module, epochs)
    return module
