"""What XRM's twins cost beside plain training: ``python benchmarks/xrm.py``.

CPU time of one thread, coloured digits, the network and batches of the demo. The two take turns,
some epochs each a round; each round gives a ratio. XRM's pass at its end is in its time.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from lightning.pytorch import LightningModule, Trainer
from step import machine, quiet
from torch.utils.data import DataLoader

from lightning_robust.data import ColouredDigits
from lightning_robust.models import XRM, Classifier, SmallConvNet


def seconds(module: LightningModule, epochs: int, loader: DataLoader | None = None) -> float:
    """Return the CPU time of a fit."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.process_time()
    trainer.fit(module, loader)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    quiet()
    torch.manual_seed(0)
    dataset = ColouredDigits("train")
    ratios, plain = [], []
    for round_ in range(arguments.rounds + 1):
        loader = DataLoader(dataset, batch_size=64, shuffle=True)
        erm = seconds(Classifier(SmallConvNet()), arguments.epochs, loader)
        twins = seconds(XRM(SmallConvNet(), dataset, batch_size=64), arguments.epochs)
        if round_:  # the first warms up
            plain.append(erm)
            ratios.append(twins / erm)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{machine()}; {arguments.rounds} rounds of {arguments.epochs} epochs\n")
    print(f"ERM {1e3 * statistics.median(plain) / arguments.epochs:.0f} ms an epoch;", end=" ")
    print(f"XRM {middle:.2f} times that, middle half of the rounds {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
