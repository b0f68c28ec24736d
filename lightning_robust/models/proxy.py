"""A small model that is trained to see how each example is learned."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_robust.callbacks.loss_trajectory import LossTrajectory
from lightning_robust.contracts import ContractError, check_integer
from lightning_robust.models.xrm import alone, silent
from lightning_robust.randomness import isolated


def loss_trajectories(
    module: LightningModule,
    dataset: Dataset[Any],
    *,
    epochs: int = 3,
    batch_size: int = 128,
    num_workers: int = 0,
    collate_fn: Any = None,
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """Train a copy of a proxy on one device, and return the losses (n, T) of every example.

    With ``functools.partial`` it is the first stage of a fit of two:
    ``S2L(partial(loss_trajectories, proxy, epochs=3))`` trains the proxy before the first step. The
    global random generators are left as found. For several devices, mixed precision or
    checkpoints, fit the proxy with a Trainer and a :class:`~lightning_robust.LossTrajectory` of
    your own, and give ``S2L`` its file.

    Args:
        module: The proxy, with its own loss and optimizers; copied.
        dataset: The training set.
        epochs: Of training.
        batch_size: Of training.
        num_workers: Of the loader.
        collate_fn: Of the loader.
        seed: Seed of order and dropout.
        settings: Further arguments of ``LossTrajectory``, such as ``every_n_steps``.

    Raises:
        ContractError: As ``LossTrajectory``; or training ends before a loss is recorded.

    Example:
        >>> from lightning_robust.data import ColouredDigits
        >>> from lightning_robust.models import Classifier, SmallConvNet
        >>> proxy = Classifier(SmallConvNet(), learning_rate=0.05)
        >>> tuple(loss_trajectories(proxy, ColouredDigits("train"), epochs=2).shape)
        (1200, 2)
    """
    check_integer("epochs", epochs, 1)
    recorder = LossTrajectory(**settings)
    with isolated(), silent():
        torch.manual_seed(seed)
        Trainer(max_epochs=epochs, callbacks=[recorder], **alone()).fit(
            copy.deepcopy(module),
            DataLoader(
                dataset,
                batch_size,
                shuffle=True,
                num_workers=num_workers,
                collate_fn=collate_fn,
                generator=torch.Generator().manual_seed(seed),
            ),
        )
    if not recorder.losses:
        raise ContractError(
            f"the proxy trained for {epochs} epochs and no loss was recorded; lower every_n_steps "
            f"or every_n_epochs, or train it for longer"
        )
    return recorder.trajectories
