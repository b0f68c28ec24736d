"""What the seams add to a training step, in percent: ``python benchmarks/step.py``.

CPU time, one thread. The contestants take turns in one process, in another order each round. A
run's time a step is the median over its steps, from the start of one ``training_step`` to the start
of the next, so all of Lightning's loop and all hooks are in it. Each round gives a ratio to the
plain run of that round; the table has the median ratio and the middle half of the rounds.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_robust import GroupMetrics
from lightning_robust.callbacks._base import Method
from lightning_robust.models.classifier import SmallConvNet

BATCH_SIZE, NUM_CLASSES, NUM_GROUPS = 64, 10, 4


class Random(Dataset[Any]):
    """Random inputs; a batch is taken at once, so that loading costs next to nothing."""

    def __init__(self, steps: int, shape: tuple[int, ...]) -> None:
        g = torch.Generator().manual_seed(0)
        n = steps * BATCH_SIZE
        self.x = torch.randn(256, *shape, generator=g)
        self.targets = torch.randint(NUM_CLASSES, (n,), generator=g)
        self.groups = torch.randint(NUM_GROUPS, (n,), generator=g)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One example."""
        return self.x[index % 256], self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch."""
        places = torch.tensor(indices)
        return self.x[places % 256], self.targets[places]


class Timed(LightningModule):
    """A plain module that notes when each training step starts."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.starts: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch."""
        self.starts.append(time.process_time())
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Idle(Method):
    """A method that has no opinion: all it brings is the PlanSampler."""


class IdleSteering(Method):
    """A method that looks at every batch's logits and asks for nothing."""

    def steer(self, indices: Tensor, logits: Tensor) -> None:
        """Nothing."""


CONTESTANTS: dict[str, Callable[[], list[Callback]]] = {
    "plain": list,
    "an empty callback": lambda: [Callback()],
    "GroupMetrics": lambda: [GroupMetrics(stages=["train"])],
    "PlanSampler (a method without opinion)": lambda: [Idle()],
    "idle LogitSteering, with PlanSampler": lambda: [IdleSteering()],
    "all together": lambda: [IdleSteering(), GroupMetrics(stages=["train"])],
}
NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "small CNN, 3x32x32 images": ((3, 32, 32), lambda: SmallConvNet(NUM_CLASSES, 3, 32)),
    "MLP 784-256-10": (
        (784,),
        lambda: nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)),
    ),
}


def run(
    network: nn.Module, shape: tuple[int, ...], callbacks: list[Callback], steps: int
) -> list[float]:
    """Return the seconds of each step of a short fit, the first few left out."""
    dataset = Random(steps, shape)
    module = Timed(network)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    loader = DataLoader(
        dataset, batch_size=BATCH_SIZE, shuffle=True, collate_fn=lambda batch: batch
    )
    trainer.fit(module, loader)
    starts = torch.tensor(module.starts, dtype=torch.float64)
    return (starts[1:] - starts[:-1])[5:].tolist()


def measure(name: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the median seconds a step of every contestant in every round."""
    shape, network = NETWORKS[name]
    order = list(CONTESTANTS)
    shuffler = random.Random(0)
    times: dict[str, list[float]] = {contestant: [] for contestant in CONTESTANTS}
    for round_ in range(rounds + 1):
        shuffler.shuffle(order)
        for contestant in order:
            seconds = statistics.median(run(network(), shape, CONTESTANTS[contestant](), steps))
            if round_:  # the first round warms up
                times[contestant].append(seconds)
    return times


def table(times: dict[str, list[float]]) -> str:
    """Return one network's times as a Markdown table."""
    lines = [
        "| | ms a step | more than plain, median | middle half of the rounds |",
        "|---|---|---|---|",
    ]
    for contestant, seconds in times.items():
        ratios = [100 * (a / b - 1) for a, b in zip(seconds, times["plain"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        cells = (
            ("", "")
            if contestant == "plain"
            else (f"{statistics.median(ratios):+.1f} %", f"{low:+.1f} to {high:+.1f} %")
        )
        milliseconds = 1e3 * statistics.median(seconds)
        lines.append(f"| {contestant} | {milliseconds:.2f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def machine() -> str:
    """Return when and where this runs."""
    versions = f"torch {torch.__version__}, lightning {lightning.__version__}"
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    cores = f"{os.cpu_count()} cores (load {os.getloadavg()[0]:.1f})"
    return f"{when}, {platform.machine()}, {cores}, CPU time of one thread, {versions}"


def quiet() -> None:
    """One thread, and nothing of Lightning's chatter."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    quiet()
    print(f"{machine()}; {arguments.rounds} rounds of {arguments.steps} steps, batch {BATCH_SIZE}")
    for name in NETWORKS:
        print(f"\n**{name}**\n\n{table(measure(name, arguments.rounds, arguments.steps))}")


if __name__ == "__main__":
    main()
