"""PDE, Figure 3: which of the two features the filters grow towards, with ERM and with PDE.

Deng et al. (NeurIPS 2023): the largest inner product of a filter with the core vector v_c and the
spurious vector v_s, and the training loss, over the iterations of ERM on case 1 (spurious feature
five times as strong), of ERM on case 2 (core feature five times as strong), and of PDE on case 1.
Data, network, settings and departures are those of :mod:`~lightning_robust.reproduce.pde_table1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.reproduce.pde_table1 import INTERVAL, NUM_EXPANSIONS, Run, train
from lightning_robust.reproduce.report import aligned, check_run, mean_and_std, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "ERM (GD)": "learns the spurious feature, barely the core one",
    "case 2, ERM (GD)": "learns the core feature",
    "PDE": "learns the core feature",
}
"""The panels, left to right, by their rows of Table 1, and what the paper says of each."""


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train every panel with every seed, print the paper next to what was measured, and draw it.

    Args:
        seeds: Seeds of data, initial weights and draws.
        output: Folder for ``pde-fig3.json`` and ``pde-fig3.png``, made if need be; ``None`` writes
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
            curves = runs[-1].curves
            print(
                f"{panel:<17} seed {seed}   core {curves['core'][-1]:5.2f}   "
                f"spurious {curves['spurious'][-1]:5.2f}",
                flush=True,
            )
    print(f"\n{table(runs)}")
    if output is not None:
        write("pde-fig3", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """The paper next to the last inner products, mean and standard deviation over seeds.

    Example:
        >>> curves = {"core": [0.1, 5.0], "spurious": [0.1, 0.5], "loss": [0.7, 0.1]}
        >>> print(table([Run("PDE", 0, 0.9, 0.85, 0.95, 800, [1, 21], curves)]))
        panel  core  spurious  loss   paper
        PDE    5.00  0.50      0.100  learns the core feature
    """
    rows = [["panel", "core", "spurious", "loss", "paper"]]
    for panel in dict.fromkeys(one.row for one in runs):
        of_panel = [one.curves for one in runs if one.row == panel]
        rows.append(
            [
                panel,
                mean_and_std([curves["core"][-1] for curves in of_panel], digits=2),
                mean_and_std([curves["spurious"][-1] for curves in of_panel], digits=2),
                mean_and_std([curves["loss"][-1] for curves in of_panel], digits=3),
                PAPER[panel],
            ]
        )
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Inner products and loss over iterations, a panel each, of the first seed."""
    panels = list(dict.fromkeys(one.row for one in runs))
    figure.set_size_inches(3.9 * len(panels), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    titles = {"ERM (GD)": "ERM (case 1)", "case 2, ERM (GD)": "ERM (case 2)", "PDE": "PDE (case 1)"}
    for axis, panel in zip(axes, panels, strict=True):
        one = next(one for one in runs if one.row == panel)
        right = axis.twinx()
        right.plot(one.steps, one.curves["loss"], "--", color="#9ca3af")
        right.set_ylim(0, 0.75)
        right.spines[["top"]].set_visible(False)
        right.tick_params(axis="y", colors="#6b7280")
        for name, label, colour in (
            ("core", "core feature, max ⟨w, v$_c$⟩", "#2563eb"),
            ("spurious", "spurious feature, max ⟨w, v$_s$⟩", "#c2410c"),
        ):
            axis.plot(one.steps, one.curves[name], color=colour, lw=2, label=label)
        axis.plot([], [], "--", color="#9ca3af", label="training loss (right)")
        axis.set_title(titles[panel], fontsize=11)
        axis.set_xlabel("iteration")
        axis.spines[["top"]].set_visible(False)
        for expansion in range(NUM_EXPANSIONS if one.warmup else 0):
            axis.axvline(one.warmup + INTERVAL * expansion, color="#d1d5db", lw=1, zorder=0)
        if one.warmup:
            axis.annotate(
                "expansions → ",
                (one.warmup, 0.8),
                xycoords=("data", "axes fraction"),
                ha="right",
                fontsize=8,
                color="#6b7280",
            )
    axes[0].set_ylabel("largest inner product of a filter")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        ncols=3,
        loc="outside lower center",
    )
