"""MAT, Figure 7: two spurious features. Shown as it is: MAT's panel does not reproduce.

Appendix E of Pezeshki et al. (ICLR 2025): Figure 1's set-up with a second spurious feature, as
large and as correlated as the first, which makes eight groups. All constants are those of
:mod:`~lightning_robust.reproduce.mat_fig1`; the paper names no others. It says that MAT is nearly
perfect on all groups. Worst of eight groups here, seeds 0 to 2: ERM without noise 61.0 +- 24.6 %,
ERM with noise 0, MAT 1.9 +- 2.0 %. Nothing is asserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.reproduce import mat_fig1
from lightning_robust.reproduce.mat_fig1 import Run
from lightning_robust.reproduce.report import aligned, check_run, in_percent, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "ERM, no noise": "generalises to majority and minority",
    "ERM, noise": "poor on the minority",
    "MAT, noise": "nearly perfect on all groups",
}
"""The panels of the figure, left to right, and what the paper says of each; it prints no number."""


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train every panel with every seed, print the paper next to what was measured, and draw it.

    Args:
        seeds: Seeds of data, initial weights and draws.
        output: Folder for ``mat-fig7.json`` and ``mat-fig7.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = []
    for panel in PAPER:
        for seed in seeds:
            runs.append(mat_fig1.train(panel, seed, num_spurious=2))
            print(
                f"{panel:<14} seed {seed}   worst {100 * runs[-1].worst_group_acc:5.1f}", flush=True
            )
    print(f"\n{table(runs)}")
    if output is not None:
        write("mat-fig7", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """The paper next to what was measured, in percent, mean and standard deviation over seeds.

    Example:
        >>> print(table([Run("MAT, noise", 0, 0.02, 0.6, [], {})]))
        panel       worst of eight groups  average  paper
        MAT, noise  2.0                    60.0     nearly perfect on all groups
    """
    rows = [["panel", "worst of eight groups", "average", "paper"]]
    for panel in dict.fromkeys(one.panel for one in runs):
        of_panel = [one for one in runs if one.panel == panel]
        rows.append(
            [
                panel,
                in_percent([one.worst_group_acc for one in of_panel]),
                in_percent([one.acc for one in of_panel]),
                PAPER[panel],
            ]
        )
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Accuracy over steps, a panel each, of the first seed."""
    mat_fig1.plot(runs, figure)
    labels = ("training", "test, both a = y", "test, both a ≠ y")
    lines = figure.axes[0].get_lines()
    figure.axes[0].legend(lines, labels, frameon=False, fontsize=9, loc="center right")
