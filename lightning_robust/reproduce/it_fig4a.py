"""Importance tempering, Figure 4a: weights lose their effect with width, temperatures gain theirs.

Lu et al. (2022), Section 4.1, on the data of Sagawa et al. (ICML 2020): 3,000 examples, in 90 % of
which a = y, 100 core features of variance 100 and 100 spurious ones of variance 1, and logistic
regression on 10 to 3,000 random features (see ``random_features``; the paper goes to 10,000).
Tempering gives the minority, a != y, a margin of 20; the paper does not print the one it took. Test
set: 4,000 examples in four equal groups.

**Below interpolation, where the table has no star, tempering is worse than plain training**: a
divided logit is there a smaller gradient, and at 100 features the worst group's error is more than
ten points above that of ERM. The paper's claim is about models that fit everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from lightning_robust.reproduce.random_features import Run, plot_by_width, sweep, worst_by_width
from lightning_robust.reproduce.report import aligned, check_run, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("ERM", "importance weighting", "tempering")

WIDTHS = (10, 30, 100, 300, 1000, 3000)

PAPER = {
    ("importance weighting", 100): "weights help a small model",
    ("importance weighting", 1000): "weights do nothing for one that interpolates",
    ("tempering", 1000): "width hurts ERM and weighting, and helps tempering",
}
"""What the paper says of a method at a width; the figure has no numbers."""

THRESHOLDS = {
    ("importance weighting", 100): (-100.0, -15.0),
    ("importance weighting", 1000): (-5.0, 5.0),
    ("tempering", 1000): (-100.0, -6.0),
}
"""Between what the worst-group error has to be, less that of ERM, in percentage points."""


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Fit every method at every width, print the paper next to what was measured, and draw it.

    Args:
        seeds: Seeds of data and random features.
        output: Folder for ``it-fig4a.json`` and ``it-fig4a.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = sweep(METHODS, WIDTHS, seeds)
    print(f"\n{table(runs)}")
    if output is not None:
        write("it-fig4a", runs, output, partial(plot, runs))
    return runs


def less_erm(runs: Sequence[Run], method: str, width: int) -> float:
    """Mean worst-group error of a method less that of ERM, in percentage points."""
    means = [
        mean(one.worst_group_error for one in runs if (one.method, one.width) == (name, width))
        for name in (method, "ERM")
    ]
    return 100 * (means[0] - means[1])


def table(runs: Sequence[Run]) -> str:
    """Worst-group errors by width, and the paper next to the differences from ERM."""
    rows = [["less ERM", "features", "measured", "expected", "paper"]]
    for (method, width), claim in PAPER.items():
        low, high = THRESHOLDS[method, width]
        expected = f"at most {high:.0f}" if low == -100 else f"{low:.0f} to {high:.0f}"
        difference = f"{less_erm(runs, method, width):+.1f}"
        rows.append([method, str(width), difference, expected, claim])
    return f"worst-group error (%); * fits all examples\n{worst_by_width(runs)}\n\n{aligned(rows)}"


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Worst-group and average error over width."""
    plot_by_width(runs, figure)
