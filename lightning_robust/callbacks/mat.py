"""MAT: memorization-aware training (Pezeshki et al., ICLR 2025, https://arxiv.org/abs/2412.07684)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._tables import Table, _Told
from lightning_robust.contracts import check_positive
from lightning_robust.functional.logits import (
    calibrated_shift,
    log_calibration,
)
from lightning_robust.steering import Steer


class MAT(_Told):
    """Leaves nothing to gain from memorising what a biased model already predicts.

    **What changes**: while training, ``log p(y | x_i)`` is added to the logits of example i, where
    p is what a model that was *not* trained on i makes of it, calibrated on the whole training set.
    What that model finds easy, by a spurious feature, is explained by the shift; what it gets wrong
    weighs more and has to be learned. Outside training the logits are the model's own. **Needs**
    targets and held-out logits, no groups. **Costs** one row of a table and one addition a batch;
    the table is 2 n C bytes on the model's device (2 GB for a million examples of a thousand
    classes, and 32 MiB at a time while it is made).

    Args:
        held_out: The held-out logits: a tensor or array (n, C) in dataset order; a file
            (:func:`~lightning_robust.functional.logits.load_held_out`); or a function that is given
            the training set before the first step and returns such a tensor, as in
            ``functools.partial(held_out_logits, network)`` with
            :func:`~lightning_robust.models.xrm.held_out_logits`. What a function returned is kept
            in checkpoints, so that a resumed fit does not compute it again. ``None`` has to be
            replaced before training: there is nothing to take instead.
        temperature: tau > 0 of the held-out softmax; the paper searches .001, .01 and .1.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, no held-out
            logits, or some of another shape than (n, C) or not finite, a file that cannot be read,
            a value out of range. In the first step: the head has another number of classes than
            ``held_out``.

    Logged keys:
        None.

    References:
        Equations 4 to 7 and Algorithm 1. Departures, all from the released code and not from the
        paper: the calibration is that of the whole training set, where the code takes the batch's;
        it is indexed by class, and made in float64 log-space, where the code divides by zero for a
        class that is never predicted. A constant a row, which no softmax sees, makes the largest
        shift 0; shifts are kept in half precision (off by at most .004 nats). A probability is at
        least 1e-6, as in the code.

    Example:
        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import MAT
        >>> method = MAT(torch.randn(1200, 5), temperature=0.1)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _table_name = "held_out"
    _table_holds = "held-out logits"
    _table_maker = "held_out_logits"

    def __init__(
        self, held_out: Table | None = None, *, temperature: float = 0.1, head: str | None = None
    ) -> None:
        self._check_table(held_out)
        self.held_out = held_out
        check_positive("temperature", temperature)
        self.temperature = temperature
        super().__init__(head=head)

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Calibrate, and put the table of shifts on the model's device."""
        logits = self._logits(dataset)
        calibration = log_calibration(logits, self.targets, self.temperature)
        shifts = calibrated_shift(logits, calibration, self.temperature, torch.float16)
        self._shifts = shifts.to(self.conductor.module.device)

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """The rows of these examples."""
        self._check_head(self._shifts.shape[1], logits)
        return Steer(shift=self._shifts[indices].float())
