"""Adversarial training (Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    ContractError,
    check_at_least,
    check_integer,
    check_positive,
)
from lightning_robust.functional.perturbations import projected_gradient_ascent
from lightning_robust.randomness import generator, resolve_seed


class AdversarialTraining(Method):
    """Trains on inputs that are perturbed within a small box so that their loss is large.

    **What changes**: every floating-point tensor of a training batch that the logits depend on is
    moved by up to ``epsilon`` in each of its numbers, by ``num_steps`` steps of gradient ascent on
    the cross-entropy of the logits, from a random point of the box. ``training_step`` takes the
    moved batch; callbacks and the data set see it as it was. **Needs** targets, no groups; inputs
    that are floating-point numbers, in tensors, lists, dictionaries or dataclasses. **Costs**
    ``num_steps`` forward and backward passes for each step of training.

    The ascent is in evaluation mode, whatever the module's own loss: it leaves the statistics of
    batch norm, gradients and random states alone. Transforms before the batch reaches the step are
    done once; those within the step before the head are part of what is attacked.

    Args:
        epsilon: The largest change of a number, in the units of the input as it reaches the step:
            after normalisation, if that is done before.
        step_size: How far a step moves; ``None``: ``2.5 * epsilon / num_steps``.
        num_steps: How many steps.
        minimum: The smallest number an input may hold; ``None``: any.
        maximum: The largest.
        start_epoch: Epochs before it, counted from 0, are plain training.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the random starts, each a function of seed, epoch and example; ``None`` takes
            the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range; no input that the logits depend on.

    Logged keys: none.

    References:
        Section 2.1; against poisons, Tao et al., NeurIPS 2021 (arXiv:2102.04716). Departures: the
        attack is on the model in evaluation mode, and on the cross-entropy of the logits.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import AdversarialTraining
        >>> method = AdversarialTraining(epsilon=8 / 255, num_steps=7, minimum=0.0, maximum=1.0)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    observes = True

    def __init__(
        self,
        epsilon: float = 8 / 255,
        *,
        step_size: float | None = None,
        num_steps: int = 7,
        minimum: float | None = None,
        maximum: float | None = None,
        start_epoch: int = 0,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_at_least("epsilon", epsilon, 0)
        if step_size is not None:
            check_positive("step_size", step_size)
        check_integer("num_steps", num_steps, 1)
        check_integer("start_epoch", start_epoch)
        if minimum is not None and maximum is not None:
            check_at_least("maximum", maximum, minimum)
        self.epsilon = epsilon
        self.step_size = step_size
        self.num_steps = num_steps
        self.minimum = minimum
        self.maximum = maximum
        self.start_epoch = start_epoch
        super().__init__(head=head, seed=seed)

    def reset(self) -> None:
        """No batch is perturbed before training."""
        self._perturbed: Any = None

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Have the strategy give ``training_step`` the perturbed batch for the batch."""
        strategy: Any = self.conductor.trainer.strategy
        theirs = strategy.training_step

        def training_step(batch: Any, *others: Any, **named: Any) -> Any:
            batch = batch if self._perturbed is None else self._perturbed
            return theirs(batch, *others, **named)

        strategy.training_step = training_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Perturb the batch."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._perturbed = None
        if self.epsilon and trainer.current_epoch >= self.start_epoch:
            assert self.conductor.sampler is not None
            self._perturbed = self._perturb(
                batch, self.conductor.sampler.indices_of_batch(batch_idx)
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the seam out of the strategy."""
        if stage == "fit":
            vars(trainer.strategy).pop("training_step", None)
            self._perturbed = None
        super().teardown(trainer, pl_module, stage)

    def _perturb(self, batch: Any, indices: Tensor) -> Any:
        inputs: list[Tensor] = []
        apply_to_collection(batch, Tensor, lambda x: inputs.append(x) if _is_input(x) else None)

        def with_inputs(replaced: list[Tensor]) -> Any:
            rest = iter(replaced)
            return apply_to_collection(batch, Tensor, lambda x: next(rest) if _is_input(x) else x)

        reached = [False] * len(inputs)

        def gradients(moved: Any) -> Any:
            found = self.conductor.input_gradients(
                with_inputs(moved), moved, self.targets[indices].to(self.conductor.module.device)
            )
            reached[:] = [slope is not None for slope in found]
            return found

        starts = [self._starts(x, indices, number) for number, x in enumerate(inputs)]
        found = projected_gradient_ascent(
            inputs,
            starts,
            gradients,
            epsilon=self.epsilon,
            step_size=self.step_size or 2.5 * self.epsilon / self.num_steps,
            num_steps=self.num_steps,
            minimum=self.minimum,
            maximum=self.maximum,
        )
        if not any(reached):
            raise ContractError(
                "the logits depend on no floating-point tensor of the batch, so that epsilon="
                f"{self.epsilon} has nothing to perturb; remove AdversarialTraining, or give the "
                "batch as tensors, lists and dictionaries"
            )
        return with_inputs(found)

    def _starts(self, x: Tensor, indices: Tensor, number: int) -> Tensor:
        """One point of the box for each example, whichever batch and rank it is in."""
        seed, epoch = resolve_seed(self.seed), self.conductor.trainer.current_epoch
        if len(x) != len(indices):
            return torch.zeros_like(x)
        rows = [
            torch.rand(
                x.shape[1:], generator=generator(seed, f"adversarial start {number} {index}", epoch)
            )
            for index in indices.tolist()
        ]
        return (2 * torch.stack(rows) - 1).to(x)


def _is_input(x: Tensor) -> bool:
    return x.is_floating_point() and x.ndim > 0
