"""What one observation costs, in training epochs: ``python benchmarks/observing.py``.

CPU time, one thread. In one fit, epochs and observations of the same training set take turns. The
table has the median over rounds of (seconds of an observation) / (seconds of the epoch before it).
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from lightning.pytorch import Callback, Trainer
from step import BATCH_SIZE, NETWORKS, NUM_CLASSES, Random, Timed, machine, quiet
from torch.utils.data import DataLoader

from lightning_robust.observing import Observer
from lightning_robust.steering import HeadHook, find_head

REQUESTS: dict[str, tuple[str, ...]] = {
    "logits": ("logits",),
    "logits, features, losses and gradients": ("logits", "features", "losses", "gradients"),
}


class Clock(Callback):
    """Times every epoch, and the observations after it."""

    def __init__(self) -> None:
        self.ratios: dict[str, list[float]] = {name: [] for name in REQUESTS}
        self.epochs: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop it, and observe."""
        epoch = time.process_time() - self.start
        loader: Any = trainer.train_dataloader
        with HeadHook(find_head(pl_module, NUM_CLASSES)[1]) as hook:
            observe = Observer(trainer, pl_module, hook, loader)
            for name, quantities in REQUESTS.items():
                start = time.process_time()
                observe(loader.dataset, loader.dataset.targets, quantities)
                if trainer.current_epoch:  # the first epoch warms up
                    self.ratios[name].append((time.process_time() - start) / epoch)
        if trainer.current_epoch:
            self.epochs.append(epoch)


def measure(name: str, rounds: int, steps: int) -> Clock:
    """Return the clock of one fit."""
    shape, network = NETWORKS[name]
    module, clock = Timed(network()), Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=rounds + 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    loader = DataLoader(
        Random(steps, shape), batch_size=BATCH_SIZE, shuffle=True, collate_fn=lambda batch: batch
    )
    trainer.fit(module, loader)
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    quiet()
    print(f"{machine()}; {arguments.rounds} rounds of {arguments.steps} steps, batch {BATCH_SIZE}")
    for name in NETWORKS:
        clock = measure(name, arguments.rounds, arguments.steps)
        print(f"\n**{name}**, an epoch takes {statistics.median(clock.epochs):.2f} s\n")
        print("| observed | epochs, median | middle half of the rounds |\n|---|---|---|")
        for request, ratios in clock.ratios.items():
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"| {request} | {middle:.2f} | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    main()
