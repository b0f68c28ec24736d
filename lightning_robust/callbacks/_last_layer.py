"""What methods share that train as usual, and at the end replace weight and bias of the head."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    ContractError,
    GroupsLike,
    check_in_range,
    check_integer,
    check_positive,
)
from lightning_robust.functional.linear import finetune_linear
from lightning_robust.randomness import generator, resolve_seed


class _LastLayer(Method):
    """Fits the head after ``after_epochs``, or after the last epoch; subclasses say how."""

    observes = True
    state: ClassVar[tuple[str, ...]] = ("fitted",)

    def __init__(
        self,
        *,
        groups: GroupsLike | None = None,
        after_epochs: int | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        if after_epochs is not None:
            check_integer("after_epochs", after_epochs, 1)
        self.after_epochs = after_epochs
        super().__init__(groups=groups, head=head, seed=seed)

    def _fit_head(self) -> None:
        """Fit now, and call :meth:`_replace_head`."""
        raise NotImplementedError

    def reset(self) -> None:
        """No head has been fitted before training."""
        self.fitted = False

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Refuse a head that could not hold the result, and another method that replaces it."""
        name, head = type(self).__name__, self._head
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise ContractError(
                f"{name} replaces weight and bias of a Linear head, and this one is {head}; name a "
                "Linear layer with a bias with head="
            )
        last = self.conductor.trainer.max_epochs
        for other in self.conductor.methods:
            if other is self or not isinstance(other, _LastLayer):
                continue
            if (other.after_epochs or last) == (self.after_epochs or last):
                raise ContractError(
                    f"{name} and {type(other).__name__} both replace the head after_epochs="
                    f"{self.after_epochs}; use one of them, or give one another after_epochs"
                )

    def close(self, epoch: int) -> None:
        """Fit the head, if this was the epoch."""
        if self.after_epochs is None:
            now = self.conductor.is_last(epoch)
        else:
            now = epoch + 1 == self.after_epochs
        if now:
            self._fit_head()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where training was stopped early, the head is still to be fitted."""
        if self.after_epochs is None and not self.fitted:
            self._fit_head()

    @property
    def _head(self) -> Any:
        assert self.conductor.steering is not None
        return self.conductor.steering.head

    def _replace_head(self, weight: Tensor, bias: Tensor) -> None:
        """Copy weight and bias, of the head's own shapes, into it."""
        with torch.no_grad():
            self._head.weight.copy_(weight)
            self._head.bias.copy_(bias)
        self.fitted = True


class _Finetuned(_LastLayer):
    """Holds out a share of the training set, and trains the head on, on it and nothing else.

    Subclasses say by what weights, in :meth:`_weights`.
    """

    state: ClassVar[tuple[str, ...]] = ("fitted", "held_out_examples")
    penalty: float = 0.0

    def __init__(
        self,
        *,
        held_out: float,
        num_steps: int,
        learning_rate: float,
        after_epochs: int | None,
        head: str | None,
        seed: int | None,
    ) -> None:
        check_in_range("held_out", held_out, 0, 0.9)
        check_integer("num_steps", num_steps, 0)
        check_positive("learning_rate", learning_rate)
        self.held_out = held_out
        self.num_steps = num_steps
        self.learning_rate = learning_rate
        super().__init__(after_epochs=after_epochs, head=head, seed=seed)

    def _weights(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        """The weight of each of the held-out examples, (m,), from what the model says of them."""
        raise NotImplementedError

    def reset(self) -> None:
        """Nothing is held out before training."""
        super().reset()
        self.held_out_examples: Tensor | None = None  # (m,) dataset indices

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Choose what is held out; the same of one size and seed, whichever the method."""
        super().prepare(dataset)
        if self.held_out > 0 and self.held_out_examples is None:
            count = max(1, round(self.held_out * self.num_examples))
            if count == self.num_examples:
                raise ContractError(
                    f"held_out={self.held_out} of {self.num_examples} examples leaves none to "
                    "train on; hold out less"
                )
            random = generator(resolve_seed(self.seed), "last layer: held out")
            order = torch.randperm(self.num_examples, generator=random)
            self.held_out_examples = order[:count].sort().values

    def vote(self) -> Tensor | None:
        """0 for what is held out, else 1."""
        if self.held_out_examples is None:
            return None
        kept = torch.ones(self.num_examples, dtype=torch.bool)
        kept[self.held_out_examples] = False
        return kept

    def _fit_head(self) -> None:
        targets = self.targets
        if self.held_out_examples is not None:
            targets = targets[self.held_out_examples]
        seen = self.observe("features", "logits", indices=self.held_out_examples)
        assert seen.features is not None
        assert seen.logits is not None
        weights = self._weights(seen.logits.double(), targets)
        if weights is None:
            return
        found = finetune_linear(
            seen.features,
            targets,
            weights,
            (self._head.weight.detach().cpu(), self._head.bias.detach().cpu()),
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            penalty=self.penalty,
        )
        self._replace_head(*found)
