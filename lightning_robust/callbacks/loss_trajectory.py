"""LossTrajectory: each example's loss over the time of training, as S2L needs it of a proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import check_choice, check_clean_dataset, check_integer
from lightning_robust.functional.trajectories import save_trajectories


class LossTrajectory(Method):
    """Records the loss of every training example while a model trains.

    **What changes**: nothing in training. **Needs** targets; or, for a causal language model, a
    batch that is a mapping with the labels of its tokens. **Costs** a forward pass over the
    training set each time, and 4 bytes an example and time; the record is in the checkpoint.

    Args:
        path: File for the record, written when training ends; ``None`` writes none. What is there
            is overwritten.
        every_n_epochs: Record after every so many epochs.
        every_n_steps: Record after every so many optimizer steps instead.
        token_labels: The key of the batch under which a language model's labels (B, T) are, -100
            where they do not count; ``None`` for a classifier.
        reduction: Of a language model: ``"mean"`` loss of the tokens, or their ``"sum"``.
        clean_dataset: The training examples without augmentation, in the same order; the losses
            are of these.
        head: Name of the module that returns the logits; ``None`` finds it.

    Attributes:
        losses: A tensor (n,) each time, float32, in nats.
        steps: The optimizer steps after which they were recorded.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. Later: losses that are not finite.

    Logged keys:
        ``loss_trajectory/mean``: mean of the losses recorded last.

    References:
        Section 3.3 and Eq. 3.3 of S2L (Yang et al., NeurIPS 2024, https://arxiv.org/abs/2403.07384).
        Departure: a language model's loss is by default the mean over tokens, as in the authors'
        code, where the equation has the sum, which grows with the length.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import LossTrajectory
        >>> recorder = LossTrajectory(every_n_steps=500)
        >>> trainer = Trainer(callbacks=[recorder], logger=False, enable_checkpointing=False)
    """

    observes = True
    state = ("losses", "steps")

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        token_labels: str | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
    ) -> None:
        check_integer("every_n_epochs", every_n_epochs, 1)
        if every_n_steps is not None:
            check_integer("every_n_steps", every_n_steps, 1)
        check_choice("reduction", reduction, ("mean", "sum"))
        self.path = path
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.token_labels = token_labels
        self.reduction: Literal["mean", "sum"] = reduction
        self.clean_dataset = clean_dataset
        self.needs_targets = token_labels is None
        super().__init__(head=head)

    def reset(self) -> None:
        """Nothing recorded before training."""
        self.losses: list[Tensor] = []
        self.steps: list[int] = []

    @property
    def trajectories(self) -> Tensor:
        """What has been recorded so far, (n, T)."""
        return torch.stack(self.losses, 1)

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Check what can be checked before the first step."""
        check_clean_dataset(self.clean_dataset, self.num_examples)
        if self.path is not None:
            Path(self.path).expanduser().parent.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        """Try it on a few sequences, while nothing is lost."""
        if self.token_labels is not None:
            count = min(self.num_examples, self.conductor.global_batch_size)
            self._losses(torch.arange(count))

    def after_batch(self, batch: int) -> None:
        """Record, where it is counted in steps."""
        if self.every_n_steps is None:
            return
        step = self.conductor.trainer.global_step
        if step and step % self.every_n_steps == 0 and self.steps[-1:] != [step]:
            self._record(step)

    def close(self, epoch: int) -> None:
        """Record, where it is counted in epochs."""
        if self.every_n_steps is None and (epoch + 1) % self.every_n_epochs == 0:
            self._record(self.conductor.trainer.global_step)

    def report(self) -> dict[str, float | Tensor]:
        """The mean of the last record."""
        return {"loss_trajectory/mean": self.losses[-1].mean()} if self.losses else {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        if self.path is not None and self.losses and trainer.is_global_zero:
            save_trajectories(self.trajectories, self.steps, Path(self.path).expanduser())

    def _record(self, step: int) -> None:
        self.losses.append(self._losses())
        self.steps.append(step)

    def _losses(self, indices: Tensor | None = None) -> Tensor:
        """Of all training examples, or of some."""
        if self.token_labels is not None:
            return self.conductor.observe_sequences(
                self.token_labels, self.reduction, self.clean_dataset, indices
            )
        losses = self.observe("losses", dataset=self.clean_dataset, indices=indices).losses
        assert losses is not None
        return losses
