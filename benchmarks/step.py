"""What the seams and two methods add to a training step: ``python benchmarks/step.py``.

CPU time, one thread. The contestants take turns in one process, in another order each round. A
run's time a step is the median over its steps, from the start of one ``training_step`` to the start
of the next, so all of Lightning's loop and all hooks are in it. Each round gives a ratio and a
difference to the plain run of that round; the tables have their medians and the middle half of the
rounds.

What is added does not depend on the network: the same Python runs, on logits of the same shape.
The milliseconds that it adds to the step of the MLP, which is short and steady, are therefore the
direct cost, and the last table says what they are in percent of the CNN's step, where they drown in
the noise of the convolutions. The MLP has four times as many rounds.
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

from lightning_robust import MAT, GroupMetrics, ImportanceTempering
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


CONTESTANTS: dict[str, Callable[[int], list[Callback]]] = {
    "plain": lambda n: [],
    "an empty callback": lambda n: [Callback()],
    "GroupMetrics": lambda n: [GroupMetrics(stages=["train"])],
    "PlanSampler (a method without opinion)": lambda n: [Idle()],
    "idle LogitSteering, with PlanSampler": lambda n: [IdleSteering()],
    "ImportanceTempering": lambda n: [ImportanceTempering()],
    "MAT": lambda n: [MAT(torch.randn(n, NUM_CLASSES))],
    "idle LogitSteering and GroupMetrics": lambda n: [
        IdleSteering(),
        GroupMetrics(stages=["train"]),
    ],
}
"""The callbacks of each, for n training examples."""
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
            callbacks = CONTESTANTS[contestant](steps * BATCH_SIZE)
            seconds = statistics.median(run(network(), shape, callbacks, steps))
            if round_:  # the first round warms up
                times[contestant].append(seconds)
    return times


def table(times: dict[str, list[float]]) -> str:
    """Return one network's times as a Markdown table."""
    lines = [
        "| | ms a step | more than plain, ms | middle half | in percent | middle half |",
        "|---|---|---|---|---|---|",
    ]
    for contestant, seconds in times.items():
        pairs = list(zip(seconds, times["plain"], strict=True))
        cells = [f"{1e3 * statistics.median(seconds):.2f}"]
        if contestant != "plain":
            for values, form in (
                ([1e3 * (a - b) for a, b in pairs], "+.3f"),
                ([100 * (a / b - 1) for a, b in pairs], "+.1f"),
            ):
                low, middle, high = (f"{x:{form}}" for x in statistics.quantiles(values, n=4))
                cells += [middle, f"{low} to {high}"]
        cells += [""] * (5 - len(cells))
        lines.append(f"| {contestant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def direct(short: dict[str, list[float]], long: dict[str, list[float]]) -> str:
    """Return what the short step's extra time is of the long step, as a Markdown table."""
    whole = statistics.median(long["plain"])
    lines = ["| | added, ms | of a step of the CNN |", "|---|---|---|"]
    for contestant, seconds in short.items():
        if contestant != "plain":
            added = statistics.median(a - b for a, b in zip(seconds, short["plain"], strict=True))
            lines.append(f"| {contestant} | {1e3 * added:+.3f} | {100 * added / whole:+.2f} % |")
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
    times = {}
    for name, rounds in zip(NETWORKS, (arguments.rounds, 4 * arguments.rounds), strict=True):
        times[name] = measure(name, rounds, arguments.steps)
        print(f"\n**{name}**\n\n{table(times[name])}", flush=True)
    long, short = times.values()
    print(f"\n**direct cost**\n\n{direct(short, long)}")


if __name__ == "__main__":
    main()
