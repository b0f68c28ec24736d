"""Sagawa et al. (ICML 2020): with more parameters, reweighting fails and undersampling does not.

"An investigation of why overparameterization exacerbates spurious correlations", synthetic data:
the setting of ``it-fig4a`` and the same models, 10 to 3,000 random features. Reweighting every
group to count alike is what oversampling comes to where all data are one batch; undersampling
trains on 150 examples of each of the four groups. No number is asserted, only the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.reproduce.random_features import Run, plot_by_width, sweep, worst_by_width
from lightning_robust.reproduce.report import aligned, check_run, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("ERM", "importance weighting", "undersampling")

WIDTHS = (10, 30, 100, 300, 1000, 3000)

PAPER = {
    "ERM": "high at every width",
    "importance weighting": "low while the model is small, ERM's once it interpolates",
    "undersampling": "low at every width, and not hurt by width",
}
"""What the paper says of each method's worst-group error."""


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Fit every method at every width, print the paper next to what was measured, and draw it.

    Args:
        seeds: Seeds of data, random features and undersampling.
        output: Folder for ``sagawa.json`` and ``sagawa.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = sweep(METHODS, WIDTHS, seeds)
    print(f"\n{table(runs)}")
    if output is not None:
        write("sagawa", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """Worst-group errors by width, and what the paper says of each method."""
    claims = aligned([["method", "paper"], *map(list, PAPER.items())])
    return f"worst-group error (%); * fits all examples\n{worst_by_width(runs)}\n\n{claims}"


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Worst-group and average error over width."""
    plot_by_width(runs, figure)
