"""Gradient shaping (Hong et al., 2020, https://arxiv.org/abs/2002.11497)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import check_at_least, check_positive
from lightning_robust.functional.gradients import logit_gradients
from lightning_robust.randomness import generator, resolve_seed
from lightning_robust.steering import Steer


class GradientClipNoise(Method):
    """Clips what each example contributes to the gradient, and adds Gaussian noise.

    **What changes**: the gradient of an example is multiplied by ``min(1, clip_norm / g)``, in all
    layers alike, where g is the norm of its cross-entropy's gradient by weight and bias of the
    head, in closed form ``|softmax(z) - onehot(y)| * sqrt(|h|^2 + 1)`` with h the head's input.
    Before each step of an optimizer, noise of standard deviation ``noise_multiplier * clip_norm /
    B`` is added to every number of the gradient, with B the examples a step is made of. **Needs**
    targets, no groups; a linear head; a loss that is a mean over the batch. **Costs** as many
    random numbers a step as there are weights.

    This is no differential privacy: that needs the gradient of all layers clipped.

    Args:
        clip_norm: The largest norm that an example's gradient by the head may have.
        noise_multiplier: Standard deviation of the noise, in units of ``clip_norm / B``; 0 adds
            none.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the noise, which is a function of it and of the number of the step; ``None``
            takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range.

    Logged keys: none.

    References:
        DP-SGD (Abadi et al., 2016, Algorithm 1) as a defence. Departures: norms are those of the
        last layer, where the paper has all; with label smoothing or another loss they are still
        those of the plain cross-entropy.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import GradientClipNoise
        >>> method = GradientClipNoise(clip_norm=1.0, noise_multiplier=0.1)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        clip_norm: float = 1.0,
        *,
        noise_multiplier: float = 0.1,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_positive("clip_norm", clip_norm)
        check_at_least("noise_multiplier", noise_multiplier, 0)
        self.clip_norm = clip_norm
        self.noise_multiplier = noise_multiplier
        super().__init__(head=head, seed=seed)

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Have the head's hook show the features, too."""
        steering = self.conductor.steering
        assert steering is not None
        self._has_bias = getattr(steering.head, "bias", None) is not None
        self._targets = self.targets.to(self.conductor.module.device)
        steering.readers.append(self._read)

    def _read(self, features: Tensor, logits: Tensor) -> None:
        self._norms = (features.float().flatten(1).square().sum(1) + self._has_bias).sqrt()
        self._num_outputs = 1 if logits.ndim == 1 else logits.shape[1]

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Clip; ``logits`` have a column for the class 0 also where the head has one output."""
        errors = logit_gradients(logits.float(), self._targets[indices])[:, -self._num_outputs :]
        norms = errors.norm(dim=1) * self._norms
        return Steer(weight=(self.clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add noise, the same on all ranks."""
        examples = self.conductor.global_batch_size * trainer.accumulate_grad_batches
        std = self.noise_multiplier * self.clip_norm / examples
        if std == 0:
            return
        random = generator(resolve_seed(self.seed), "gradient noise", trainer.global_step)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    noise = std * torch.randn(parameter.grad.shape, generator=random)
                    parameter.grad += noise.to(parameter.grad)
