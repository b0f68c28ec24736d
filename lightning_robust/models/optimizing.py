"""Optimizers and schedules that plain values describe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import cos, pi
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

OptimizerName: TypeAlias = Literal["sgd", "adamw"]
ScheduleName: TypeAlias = Literal["constant", "linear", "cosine", "multistep"]


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    name: OptimizerName,
    learning_rate: float,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_all: bool = True,
) -> Optimizer:
    """SGD or AdamW.

    Args:
        parameters: All that are to be trained.
        name: ``"sgd"`` or ``"adamw"``, with AdamW's usual betas and epsilon.
        learning_rate: Step size.
        momentum: Of SGD.
        nesterov: Of SGD.
        weight_decay: Weight decay.
        decay_all: Otherwise biases and norms, all parameters of one dimension, have no decay.

    Example:
        >>> settings = {"weight_decay": 1, "decay_all": False}
        >>> optimizer = make_optimizer(nn.Linear(3, 2).parameters(), "adamw", 0.1, **settings)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 1), (1, 0.0)]
    """
    groups: Any = list(parameters)
    if not decay_all:
        wide = [parameter for parameter in groups if parameter.ndim > 1]
        flat = [parameter for parameter in groups if parameter.ndim <= 1]
        groups = [{"params": wide}, {"params": flat, "weight_decay": 0.0}]
    if name == "adamw":
        return AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    return SGD(
        groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )


class ProgressSchedule(LRScheduler):
    """Learning rates that follow how much of the training is done, not how many steps.

    So epochs may change their length, as they do under `PDE`, `S2L` or `EPIC`; and where a method
    starts training again, as `SPARE` and `JTT` do, the schedule starts again too, and comes to its
    end when training does.

    Args:
        optimizer: Whose learning rates are multiplied.
        name: ``"constant"``; ``"linear"`` and ``"cosine"``, from 1 to 0; ``"multistep"``, times
            ``decay_factor`` at each milestone.
        progress: Tells the epochs done so far and the share of training done so far, in [0, 1].
        warmup: Share of the training, in [0, 1), in which the factor first rises from 0 to 1.
        milestones: In epochs.
        decay_factor: At each milestone.

    Example:
        >>> done = [0.0]
        >>> optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        >>> schedule = ProgressSchedule(
        ...     optimizer, "linear", lambda: (10 * done[0], done[0]), warmup=0.5
        ... )
        >>> for done[0] in (0.25, 0.5, 0.75, 1.0):
        ...     optimizer.step()
        ...     schedule.step()
        ...     print(schedule.get_last_lr())
        [0.5]
        [1.0]
        [0.5]
        [0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        name: ScheduleName,
        progress: Callable[[], tuple[float, float]],
        *,
        warmup: float = 0.0,
        milestones: Sequence[float] = (),
        decay_factor: float = 0.1,
    ) -> None:
        self._progress = progress
        self.name = name
        self.warmup = warmup
        self.milestones = sorted(milestones)
        self.decay_factor = decay_factor
        self.start = progress()
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates for the next step."""
        epochs, share = self._progress()
        first_epoch, first_share = self.start
        share = (share - first_share) / (1 - first_share) if first_share < 1 else 1.0
        factor = self._factor(epochs - first_epoch, share)
        return [rate * factor for rate in self.base_lrs]

    def _factor(self, epochs: float, share: float) -> float:
        if share < self.warmup:
            return share / self.warmup
        if self.name == "multistep":
            return float(self.decay_factor ** sum(epochs >= m for m in self.milestones))
        after = min(1.0, (share - self.warmup) / (1 - self.warmup))
        if self.name == "linear":
            return 1 - after
        return (1 + cos(pi * after)) / 2 if self.name == "cosine" else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "last_epoch": self.last_epoch,
            "_last_lr": list(self._last_lr),
            "base_lrs": list(self.base_lrs),
            "start": list(self.start),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue; from a state in which no step has been made, start here."""
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = list(state_dict["_last_lr"])
        self.base_lrs = list(state_dict["base_lrs"])
        first_epoch, first_share = state_dict["start"]
        self.start = (first_epoch, first_share)
        if self.last_epoch == 0:
            self.start = max(self.start, self._progress())
