"""MAT, Figure 3: good, bad and ugly memorisation of noisy labels.

Setup 5.1 of Pezeshki et al. (ICLR 2025): 20 evenly spaced points of a grid of 1,000 on [-1.5,
1.5], labels tanh(x) + .5 tanh(-5x) with noise of standard deviation .08, and 30 more input
dimensions that are noise of standard deviation 1e-4 (good), 1e-3 (bad) or 0 (ugly). An MLP with two
hidden layers of 300 tanh units is trained with full-batch Adam (1e-3) until the mean squared error
is below 1e-6. The clean error is the root of the mean squared distance to the true function where
these dimensions are 0, for abs(x) <= 1.2. The paper prints no number.

Measured with seeds 0 to 2: good .061 +- .002, ugly .087 +- .004, bad .130 +- .006, the order of the
benchmark in every seed. With 20 points of the grid at random, the other reading of its words, good
is still best, and ugly worst: .073 +- .034, .180 +- .054 and bad .109 +- .006.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust.contracts import check_choice, check_integer
from lightning_robust.randomness import generator, isolated
from lightning_robust.reproduce.report import aligned, check_run, mean_and_std, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE = {"good": 1e-4, "bad": 1e-3, "ugly": 0.0}
"""The panels, left to right, and the standard deviation of their noise dimensions."""

PAPER = {
    "good": "the true function, with spikes at the training points",
    "bad": "partly the true function, the rest by the noise dimensions",
    "ugly": "a wild function through all points",
}
"""What the paper says that the network learns."""

NUM_POINTS, NUM_NOISE, LABEL_NOISE, TOLERANCE = 20, 30, 0.08, 1e-6


@dataclass(frozen=True)
class Run:
    """One panel with one seed.

    Args:
        panel: A key of ``PAPER``.
        seed: Seed of data and initial weights.
        clean_error: Root mean squared distance to the true function, noise dimensions at 0.
        loss: Mean squared error of the training points at the end.
        steps: Of Adam, until the loss was low enough.
        x: Of the training points.
        labels: Of the training points.
        grid: Where the network was evaluated.
        fitted: What it says there, noise dimensions at 0.
    """

    panel: str
    seed: int
    clean_error: float
    loss: float
    steps: int
    x: list[float]
    labels: list[float]
    grid: list[float]
    fitted: list[float]


def true_function(x: Tensor) -> Tensor:
    """tanh(x) + .5 tanh(-5x), of any shape."""
    return torch.tanh(x) + 0.5 * torch.tanh(-5 * x)


def train(panel: str, seed: int = 0, *, max_steps: int = 50_000) -> Run:
    """Train one panel.

    Args:
        panel: A key of ``PAPER``.
        seed: Seed of data and initial weights.
        max_steps: Stop here, however large the loss.

    Raises:
        ContractError: If an argument is refused.
    """
    check_choice("panel", panel, tuple(PAPER))
    check_integer("seed", seed)
    check_integer("max_steps", max_steps, 1)
    draw = generator(seed, "MAT, Figure 3")
    grid = torch.linspace(-1.5, 1.5, 1000)
    x = grid[torch.linspace(0, len(grid) - 1, NUM_POINTS).round().long()]
    labels = true_function(x) + LABEL_NOISE * torch.randn(NUM_POINTS, generator=draw)
    noise = NOISE[panel] * torch.randn(NUM_POINTS, NUM_NOISE, generator=draw)
    inputs = torch.cat([x[:, None], noise], 1)
    with isolated(seed):
        network = nn.Sequential(
            nn.Linear(1 + NUM_NOISE, 300),
            nn.Tanh(),
            nn.Linear(300, 300),
            nn.Tanh(),
            nn.Linear(300, 1),
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(1, max_steps + 1):
        loss = F.mse_loss(network(inputs).squeeze(1), labels)
        if step == max_steps or float(loss.detach()) < TOLERANCE:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        fitted = network(F.pad(grid[:, None], (0, NUM_NOISE))).squeeze(1)
    inner = grid.abs() <= 1.2
    error = (fitted - true_function(grid))[inner].square().mean().sqrt()
    return Run(
        panel=panel,
        seed=seed,
        clean_error=float(error),
        loss=float(loss.detach()),
        steps=step,
        x=x.tolist(),
        labels=labels.tolist(),
        grid=grid.tolist(),
        fitted=fitted.tolist(),
    )


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train every panel with every seed, print the paper next to what was measured, and draw it.

    Args:
        seeds: Seeds of data and initial weights.
        output: Folder for ``mat-fig3.json`` and ``mat-fig3.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = []
    for panel in PAPER:
        for seed in seeds:
            runs.append(train(panel, seed))
            one = runs[-1]
            print(
                f"{panel:<5} seed {seed}   {one.steps:>6} steps, loss {one.loss:.1e}   "
                f"clean error {one.clean_error:.3f}",
                flush=True,
            )
    print(f"\n{table(runs)}")
    if output is not None:
        write("mat-fig3", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """The paper next to what was measured, mean and standard deviation over seeds.

    Example:
        >>> print(table([Run("ugly", 0, 0.07, 9e-7, 4000, [], [], [], [])]))
        panel  noise  clean error  steps  paper
        ugly   0      0.070        4000   a wild function through all points
    """
    rows = [["panel", "noise", "clean error", "steps", "paper"]]
    for panel in dict.fromkeys(one.panel for one in runs):
        of_panel = [one for one in runs if one.panel == panel]
        rows.append(
            [
                panel,
                f"{NOISE[panel]:g}",
                mean_and_std([one.clean_error for one in of_panel], digits=3),
                mean_and_std([one.steps for one in of_panel], digits=0),
                PAPER[panel],
            ]
        )
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Fitted and true function and training points, a panel each, of the first seed."""
    panels = list(dict.fromkeys(one.panel for one in runs))
    figure.set_size_inches(3.6 * len(panels), 3.3)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        one = next(one for one in runs if one.panel == panel)
        truth = true_function(torch.tensor(one.grid)).tolist()
        axis.plot(one.grid, truth, "--", color="#9ca3af", lw=2, label="true function")
        axis.plot(
            one.grid, one.fitted, color="#2563eb", lw=2, label="fitted, noise dimensions at 0"
        )
        axis.scatter(one.x, one.labels, s=22, c="#c2410c", zorder=3, label="training points")
        noise = f"std {NOISE[panel]:g}" if NOISE[panel] else "none"
        axis.set_title(
            f"{panel}: noise dimensions {noise}\nclean error {one.clean_error:.3f}", fontsize=10
        )
        axis.set_xlabel("x")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("y")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        ncols=3,
        loc="outside lower center",
    )
