"""LC: logit correction (Liu et al., ICLR 2023, https://arxiv.org/abs/2212.01433)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.callbacks._tables import Table, _Told
from lightning_robust.contracts import (
    ContractError,
    check_integer,
    check_positive,
    check_probability,
)
from lightning_robust.functional.logits import check_held_out, log_shift
from lightning_robust.steering import Steer


class LogitCorrection(_Told):
    """Corrects the logits by how often each class goes with what a biased network sees.

    **What changes**: while training, ``log sum_s q_s J[s, y]`` is added to the logit of class y. q
    is the tempered softmax of a biased network, its guess at the spurious feature s; J, the joint
    distribution of s and the class, is a moving average over batches. What the spurious feature
    says is in the correction, and does not have to be learned. **Needs** targets and the logits of
    a biased network, no groups. **Costs** the training of that network, once; then a (B, C) by
    (C, C) product a batch, ``2 n C T`` bytes on the model's device, and under DDP one all-reduce
    of C^2 numbers.

    Args:
        biased: The logits of the biased network: a tensor or array, (n, T, C) for T epochs (later
            epochs take the last) or (n, C) for all; a file; or a function that is given the
            training set before the first step and returns such a tensor, as in
            ``functools.partial(biased_logits, network, epochs=40, every_epoch=True)`` with
            :func:`~lightning_robust.models.biased_logits`. What a function returned is kept in
            checkpoints. ``None`` has to be replaced before training.
        temperature: tau > 0 of the biased softmax.
        momentum: Of the moving average of J, in [0, 1]; 0 takes the batch's.
        start_epoch: First epoch that is corrected; plain training before.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, no logits, or
            some of another shape or not finite, a file that cannot be read, a value out of range.
            In the first step: the head has another number of classes than ``biased``.

    Logged keys: none.

    References:
        The logit correction loss, with the joint distribution estimated as in the paper's
        algorithm. Departures: **no group mixup**, which mixes the inputs of two examples: a
        callback that leaves your batches as they are cannot; the paper's ablation credits it with a
        part of the gain. The biased network, which does not depend on the other, is trained before
        it, not beside it. J is not normalised further, as in the paper's formula; the authors' code
        has three variants. A probability is at least 1e-6 / C.

    Example:
        >>> from functools import partial
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import LogitCorrection
        >>> from lightning_robust.models import SmallConvNet, biased_logits
        >>> biased = partial(biased_logits, SmallConvNet(), epochs=40, every_epoch=True)
        >>> method = LogitCorrection(biased, temperature=0.1)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("provided", "active", "joint")
    _table_name = "biased"
    _table_holds = "a biased network's logits"
    _table_maker = "biased_logits"

    def __init__(
        self,
        biased: Table | None = None,
        *,
        temperature: float = 0.1,
        momentum: float = 0.5,
        start_epoch: int = 0,
        head: str | None = None,
    ) -> None:
        self._check_table(biased)
        self.biased = biased
        check_positive("temperature", temperature)
        self.temperature = temperature
        check_probability("momentum", momentum)
        self.momentum = momentum
        check_integer("start_epoch", start_epoch, 0)
        self.start_epoch = start_epoch
        super().__init__(head=head)

    def reset(self) -> None:
        """No joint distribution before training."""
        super().reset()
        self.active = False
        self.joint: Tensor | None = None  # (C, C): row s, column y

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Put the biased softmax on the model's device."""
        device = self.conductor.module.device
        tables = self._tables(dataset)
        self._probs = torch.stack(
            [(table.float() / self.temperature).softmax(1).half() for table in tables]
        ).to(device)
        self._targets = self.targets.to(device)
        if self.joint is not None:
            self.joint = self.joint.to(device)

    def decide(self, epoch: int) -> None:
        """Become active at ``start_epoch``."""
        self.active = epoch >= self.start_epoch

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Update the joint distribution with this batch and correct its logits."""
        if not self.active:
            return None
        num_classes = self._probs.shape[2]
        self._check_head(num_classes, logits)
        column = min(self.conductor.progress.epoch, len(self._probs) - 1)
        probs = self._probs[column, indices].float()
        one_hot = F.one_hot(self._targets[indices], num_classes).float()
        counts = self.conductor.sum_over_ranks(probs.T @ one_hot)
        batch = counts / (len(indices) * self.conductor.trainer.world_size)
        before = batch if self.joint is None else self.joint
        self.joint = self.momentum * before + (1 - self.momentum) * batch
        return Steer(shift=log_shift(num_classes * probs @ self.joint))

    def _tables(self, dataset: Dataset[Any]) -> tuple[Tensor, ...]:
        """The logits of each epoch, (n, C), checked."""
        table = self._table(dataset)
        if table.ndim != 3:
            return (self._logits(dataset),)
        if not table.shape[1]:
            raise ContractError("biased has no epoch; give (n, T, C) logits with T >= 1")
        columns = table.unbind(1)
        for column in columns:
            check_held_out(column, self.num_examples, self.num_classes, "biased")
        return columns
