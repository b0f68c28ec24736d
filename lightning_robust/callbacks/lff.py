"""LfF: learning from failure (Nam et al., NeurIPS 2020, https://arxiv.org/abs/2007.02561)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.callbacks._batches import over_ranks
from lightning_robust.callbacks._tables import Table, _Told
from lightning_robust.contracts import ContractError, check_integer, check_probability
from lightning_robust.functional.losses import (
    class_maxima,
    moving_average,
    relative_difficulty,
)
from lightning_robust.steering import Steer


class LfF(_Told):
    """Weighs each example by how much harder it is for a network that is made to be biased.

    **What changes**: the loss of an example counts ``L_b / (L_b + L_d)`` times, where L_b is the
    cross-entropy of the biased network and L_d that of the model that is trained: moving averages
    over epochs, each divided by the largest of its class. What the biased network explains counts
    little. **Needs** targets and the losses of a biased network, no groups. **Costs** the training
    of that network, once; then a cross-entropy without gradient a batch, ``4 n (T + 1)`` bytes on
    the model's device, and under DDP two gathered numbers an example.

    Args:
        biased: The losses of the biased network: a tensor or array, (n, T) for T epochs (later
            epochs take the last) or (n,) for all; a file; or a function that is given the
            training set before the first step and returns such a tensor, as in
            ``functools.partial(biased_losses, network, epochs=40)`` with
            :func:`~lightning_robust.models.biased_losses`. What a function returned is kept in
            checkpoints. ``None`` has to be replaced before training.
        momentum: Of the moving averages, in [0, 1].
        start_epoch: First epoch that is weighed; plain training before.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, no losses, or
            some of another shape, negative or not finite, a file that cannot be read, a value out
            of range.

    Logged keys: none.

    References:
        Algorithm 1. Moving averages and the division by the largest of the class are those of the
        authors' code. Departures: the biased network, which does not depend on the other, is
        trained before it, not beside it; losses of the same epoch are compared, from before the
        step in which the example came, as in the code. Under the model that is trained, the
        largest of a class is found anew once an epoch and raised by each batch: O(C) a batch.

    Example:
        >>> from functools import partial
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import LfF
        >>> from lightning_robust.models import SmallConvNet, biased_losses
        >>> method = LfF(partial(biased_losses, SmallConvNet(), epochs=40))
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("provided", "active", "losses", "largest")
    _table_name = "biased"
    _table_holds = "a biased network's losses"
    _table_form = "a tensor (n, T)"
    _table_maker = "biased_losses"

    def __init__(
        self,
        biased: Table | None = None,
        *,
        momentum: float = 0.7,
        start_epoch: int = 0,
        head: str | None = None,
    ) -> None:
        self._check_table(biased)
        self.biased = biased
        check_probability("momentum", momentum)
        self.momentum = momentum
        check_integer("start_epoch", start_epoch, 0)
        self.start_epoch = start_epoch
        super().__init__(head=head)

    def reset(self) -> None:
        """No example has been seen before training."""
        super().reset()
        self.active = False
        self.losses: Tensor | None = None  # (n,) moving averages, -1 where nothing was seen
        self.largest: Tensor | None = None  # (C,) of them

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Average the biased losses, and divide them by the largest of their class."""
        biased = self._biased_losses(dataset)
        device = self.conductor.module.device
        averages = moving_average(biased.float().cpu(), self.momentum)
        columns = [
            column / class_maxima(column, self.targets, self.num_classes)[self.targets].clamp(1e-8)
            for column in averages.unbind(1)
        ]
        self._biased = torch.stack(columns).to(device)
        self._targets = self.targets.to(device)
        losses = torch.full((self.num_examples,), -1.0) if self.losses is None else self.losses
        largest = torch.zeros(self.num_classes) if self.largest is None else self.largest
        self.losses, self.largest = losses.to(device), largest.to(device)

    def decide(self, epoch: int) -> None:
        """Find the largest moving average of each class anew."""
        self.active = epoch >= self.start_epoch
        assert self.losses is not None
        self.largest = class_maxima(self.losses, self._targets, self.num_classes)

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Update the moving averages with this batch and weigh its examples."""
        if not self.active:
            return None
        assert self.losses is not None
        assert self.largest is not None
        targets = self._targets[indices]
        new = F.cross_entropy(logits.float(), targets, reduction="none")
        every_index, every_new = (
            over_ranks(self.conductor, indices),
            over_ranks(self.conductor, new),
        )
        before = self.losses[every_index]
        average = self.momentum * before + (1 - self.momentum) * every_new
        average = torch.where(before < 0, every_new, average)
        # An example that comes twice counts once, by the larger: alike on all ranks.
        self.losses.scatter_reduce_(0, every_index, average, "amax", include_self=False)
        batch = class_maxima(average, self._targets[every_index], self.num_classes)
        self.largest = torch.maximum(self.largest, batch)
        column = min(self.conductor.progress.epoch, len(self._biased) - 1)
        return Steer(
            weight=relative_difficulty(
                self._biased[column, indices],
                self.losses[indices] / self.largest[targets].clamp(min=1e-8),
            )
        )

    def _biased_losses(self, dataset: Dataset[Any]) -> Tensor:
        """The losses, checked, (n, T)."""
        biased = self._table(dataset)
        if biased.ndim == 1:
            biased = biased.unsqueeze(1)
        n = self.num_examples
        if biased.ndim != 2 or len(biased) != n or not biased.shape[1]:
            raise ContractError(
                f"biased has shape {tuple(biased.shape)}, and the training set has {n} examples; "
                f"give losses ({n}, T) in dataset order, a column an epoch"
            )
        bad = ~(biased.isfinite() & (biased >= 0)).all(1)
        if bool(bad.any()):
            raise ContractError(
                f"biased is negative or not finite for example {int(bad.nonzero()[0])}; give "
                "cross-entropies, of a network that has not diverged"
            )
        return biased
