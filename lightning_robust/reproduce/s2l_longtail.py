"""S2L on a long tail: as many of each cluster of loss trajectories, or as many of the pool?

The claim of Section 3.3 of Yang et al. (NeurIPS 2024): selecting evenly from clusters of a proxy's
loss trajectories favours what is rare, so that a small share of an imbalanced pool does as well as
all of it. Here on real digits: 2,906 augmented images, the largest class 50 times the smallest, and
a balanced test set. The proxy is a linear softmax, trained for 8 epochs with 16 records; K is 50;
the target, a network with a hidden layer of 128, takes 600 steps on 10 % of the pool chosen at
random or by S2L, or on all of it. On a balanced pool there is nothing to even out.

The proxy has to train calmly. On a more mildly augmented pool (turns of 15 degrees, moves of a
pixel, scales of a tenth) and with momentum .9, its losses jumped, what was hard for a moment made
clusters of its own, and on the balanced pool S2L was 6.3 points worse than random; without
momentum it was .7 better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust import S2L
from lightning_robust.contracts import check_choice, check_integer
from lightning_robust.data.digit_pool import DigitPool
from lightning_robust.models import Classifier, loss_trajectories
from lightning_robust.models.xrm import alone, silent
from lightning_robust.randomness import isolated
from lightning_robust.reproduce.report import aligned, check_run, in_percent, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POOLS = {"long tail": 50.0, "balanced": 1.0}
"""Largest class over smallest."""

METHODS = ("random", "S2L", "full")

MARGINS = {"long tail": 0.08, "balanced": -0.04}
"""By how much S2L has to be better than random, as a fraction of the test images."""

FRACTION, CLUSTERS, STEPS = 0.1, 50, 600


@dataclass(frozen=True)
class Run:
    """One training; accuracies are fractions of the balanced test set.

    Args:
        pool: A key of ``POOLS``.
        method: One of ``METHODS``.
        seed: Seed of data, initial weights and draws.
        acc: On the test set, after the last step.
        counts: How many examples of each digit were trained on.
    """

    pool: str
    method: str
    seed: int
    acc: float
    counts: list[int]


def selection(method: str, seed: int) -> list[Callback]:
    """The callback that selects, if there is one; random selection is S2L with one cluster."""
    if method == "full":
        return []
    with isolated():
        torch.manual_seed(seed)
        proxy = Classifier(nn.Linear(64, 10), learning_rate=0.1, momentum=0, weight_decay=0)
    if method == "random":
        return [S2L(lambda data: torch.zeros(len(data), 1), fraction=FRACTION, seed=seed)]
    # 2,906 images are 46 batches: 16 records are one each 23 steps.
    recorded = partial(
        loss_trajectories, proxy, epochs=8, batch_size=64, every_n_steps=23, seed=seed
    )
    return [S2L(recorded, fraction=FRACTION, num_clusters=CLUSTERS, seed=seed)]


def train(pool: str, method: str, seed: int = 0, *, steps: int = STEPS) -> Run:
    """Select, train and test.

    Args:
        pool: A key of ``POOLS``.
        method: One of ``METHODS``.
        seed: Seed of data, initial weights and draws.
        steps: Of the target.

    Raises:
        ContractError: If an argument is refused.
    """
    check_choice("pool", pool, tuple(POOLS))
    check_choice("method", method, METHODS)
    check_integer("seed", seed)
    check_integer("steps", steps, 1)
    data, test = (
        DigitPool(split, size=2907, imbalance=POOLS[pool], seed=seed) for split in ("train", "test")
    )
    with isolated():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    chosen = selection(method, seed)
    with silent():
        order = torch.Generator().manual_seed(seed)
        loader = DataLoader(data, 64, shuffle=True, generator=order)
        Trainer(
            max_epochs=-1, max_steps=steps, callbacks=chosen, **alone() | {"accelerator": "cpu"}
        ).fit(Classifier(network, learning_rate=0.1, weight_decay=1e-4), loader)
    kept = torch.ones(len(data), dtype=torch.bool)
    for callback in chosen:
        assert isinstance(callback, S2L)
        assert callback.kept is not None
        kept = callback.kept
    with torch.no_grad():
        right = network(test.images).argmax(1) == test.targets
    return Run(
        pool=pool,
        method=method,
        seed=seed,
        acc=float(right.float().mean()),
        counts=torch.bincount(data.targets[kept], minlength=10).tolist(),
    )


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train on both pools with each selection and seed, print a table, and draw it.

    Args:
        seeds: Seeds of data, initial weights and draws.
        output: Folder for ``s2l-longtail.json`` and ``.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = []
    for pool in POOLS:
        for seed in seeds:
            for method in METHODS:
                runs.append(train(pool, method, seed))
                print(
                    f"{pool:<9}  {method:<6}  seed {seed}   {100 * runs[-1].acc:5.1f}", flush=True
                )
    print(f"\n{table(runs)}")
    if output is not None:
        write("s2l-longtail", runs, output, partial(plot, runs))
    return runs


def margin(runs: Sequence[Run], pool: str) -> float:
    """By how much S2L is better than random on a pool."""
    means = {m: mean(r.acc for r in runs if (r.pool, r.method) == (pool, m)) for m in METHODS[:2]}
    return means["S2L"] - means["random"]


def table(runs: Sequence[Run]) -> str:
    """Accuracy in percent, mean and standard deviation over seeds.

    Example:
        >>> found = [Run("balanced", method, 0, 0.9, [4] * 10) for method in METHODS]
        >>> print(table(found))
        pool      random  S2L   full  S2L - random  expected
        balanced  90.0    90.0  90.0  +0.0          at least -4
    """
    rows = [["pool", *METHODS, "S2L - random", "expected"]]
    for pool in dict.fromkeys(one.pool for one in runs):
        found = [
            in_percent([one.acc for one in runs if (one.pool, one.method) == (pool, method)])
            for method in METHODS
        ]
        difference = f"{100 * margin(runs, pool):+.1f}"
        rows.append([pool, *found, difference, f"at least {100 * MARGINS[pool]:+.0f}"])
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """What is selected of each class, rarest to the right; and accuracy."""
    figure.set_size_inches(9, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    colours = {"full": "#cbd5e1", "random": "#64748b", "S2L": "#c2410c"}
    for method in ("full", "random", "S2L"):
        one = next(r for r in runs if (r.pool, r.method) == ("long tail", method))
        left.plot(
            range(1, 11),
            sorted(one.counts, reverse=True),
            "o-",
            ms=4,
            color=colours[method],
            label={"full": "the whole pool"}.get(method, f"10 % by {method}"),
        )
    left.set_yscale("symlog", linthresh=1)
    left.set_ylim(0)
    left.set_xlabel("class, by size")
    left.set_ylabel("examples")
    left.set_title("Long tail: what is trained on", fontsize=11)
    left.legend(frameon=False, fontsize=9)
    for place, pool in enumerate(POOLS):
        for number, method in enumerate(METHODS):
            accs = [100 * r.acc for r in runs if (r.pool, r.method) == (pool, method)]
            x = place + 0.27 * (number - 1)
            right.bar(x, mean(accs), 0.25, color=colours[method], label=None if place else method)
            right.plot([x] * len(accs), accs, "o", color="#111827", ms=2.5)
    right.set_xticks(range(len(POOLS)), POOLS)
    right.set_ylabel("test accuracy (%)")
    right.set_ylim(0, 119)
    right.set_yticks(range(0, 101, 20))
    right.legend(frameon=False, ncols=3, fontsize=9, loc="upper left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
