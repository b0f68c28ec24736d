"""uLA: unsupervised logit adjustment (Tsirigotis et al., NeurIPS 2023, arXiv:2310.18555)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._tables import Table, _Told
from lightning_robust.contracts import check_at_least, check_positive
from lightning_robust.functional.linear import sparse_logistic_regression
from lightning_robust.functional.logits import calibrated_shift, log_calibration
from lightning_robust.steering import Steer


class ULA(_Told):
    """Adjusts the logits by how often each class goes with the guess of a bias head.

    **What changes**: while training, ``strength * log p(y | guess)`` is added to the logit of class
    y. The guess is that of a bias head: a linear classifier on the features that the model has
    *before* training, best those of self-supervision, or a model of your own. **Needs** targets,
    no groups. **Costs** one forward pass over the training set and a linear classifier on n
    features, once; then one row of a table and one addition a batch. The table is 2 n C bytes.

    Args:
        biased: The logits of the biased model: a tensor or array (n, C) in dataset order; a file;
            or a function that is given the training set before the first step and returns such a
            tensor, as in ``functools.partial(biased_logits, network)`` with
            :func:`~lightning_robust.models.biased_logits`. ``None`` fits the bias head to the
            features of your model. What it, or a function, gave is kept in checkpoints.
        strength: tau_s >= 0, multiplies the adjustment; 0 is plain training.
        temperature: tau > 0 of the biased softmax, from which p is estimated.
        bias_head_strength: Inverse strength of the bias head's L1 penalty; the smaller, the less it
            can see. Only with ``biased=None``.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, logits of
            another shape than (n, C) or not finite, a file that cannot be read, a value out of
            range. In the first step: the head has another number of classes than ``biased``.

    Logged keys: none.

    References:
        The logit-adjusted loss, ``MAT`` with one row of the calibration (that of the guess) for the
        mixture, and a bias head in place of held-out logits. Departures: p is that of the whole
        training set, to which the authors' moving average over batches (.999) tends, as their bias
        head is fixed; the bias head's capacity is limited by an L1 penalty, where theirs is by the
        number of its training steps. A probability is at least 1e-6.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import ULA
        >>> method = ULA(strength=1.0)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    observes = True
    _table_name = "biased"
    _table_holds = "a biased model's logits"
    _table_maker = "biased_logits"

    def __init__(
        self,
        biased: Table | None = None,
        *,
        strength: float = 1.0,
        temperature: float = 1.0,
        bias_head_strength: float = 0.01,
        head: str | None = None,
    ) -> None:
        self._check_table(biased)
        self.biased = biased
        check_at_least("strength", strength, 0.0)
        self.strength = strength
        check_positive("temperature", temperature)
        self.temperature = temperature
        check_positive("bias_head_strength", bias_head_strength)
        self.bias_head_strength = bias_head_strength
        super().__init__(head=head)

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Make the table of shifts, unless the bias head has to be fitted first."""
        if self.biased is not None:
            self._tabulate(self._logits(dataset))
        elif self.provided is not None:
            self._tabulate(self.provided)

    def decide(self, epoch: int) -> None:
        """Fit the bias head, once, before the first step."""
        if self.biased is None and self.provided is None:
            features = self.observe("features").features
            assert features is not None
            self.provided = self.conductor.trainer.strategy.broadcast(self._bias_head(features))
            self._tabulate(self.provided)

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """The rows of these examples."""
        self._check_head(self._shifts.shape[1], logits)
        return Steer(shift=self._shifts[indices].float())

    def _bias_head(self, features: Tensor) -> Tensor:
        """Logits (n, C) of a linear classifier on standardised features."""
        deviation, mean = torch.std_mean(features.flatten(1).double(), 0, correction=0)
        standard = (features.flatten(1).double() - mean) / deviation.clamp(min=1e-8)
        steering = self.conductor.steering
        assert steering is not None
        outputs = getattr(steering.head, "out_features", None)
        num_classes = max(self.num_classes, 2 if outputs == 1 else int(outputs or 0))
        weight, bias = sparse_logistic_regression(
            standard, self.targets, num_classes, self.bias_head_strength
        )
        return (standard @ weight.T + bias).float()

    def _tabulate(self, logits: Tensor) -> None:
        """Put the table of shifts on the model's device."""
        shifts = calibrated_shift(
            logits,
            log_calibration(logits, self.targets, self.temperature),
            self.temperature,
            torch.float16,
            hard=True,
            strength=self.strength,
        )
        self._shifts = shifts.to(self.conductor.module.device)
