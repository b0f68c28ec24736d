"""What every artifact does with its runs: a table beside the paper, a file of numbers, a figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from lightning_robust.contracts import ContractError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_run(seeds: Sequence[int], output: Path | None) -> None:
    """Refuse, before anything is trained, what would fail after it.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    if not seeds:
        raise ContractError("seeds must hold at least one seed, got none")
    if output is not None:
        require_matplotlib()


def require_matplotlib() -> None:
    """Raise ``ModuleNotFoundError`` with the fix if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the figure needs matplotlib, which is not installed; install the extra 'demo': "
            "pip install 'lightning-robust[demo]'"
        ) from error


def mean_and_std(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± sample standard deviation; of one value, the value.

    Example:
        >>> mean_and_std([90.0, 92.0]), mean_and_std([0.5], digits=2)
        ('91.0 ± 1.4', '0.50')
    """
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def in_percent(fractions: Sequence[float]) -> str:
    """Mean ± sample standard deviation of fractions, in percent.

    Example:
        >>> in_percent([0.9, 0.92])
        '91.0 ± 1.4'
    """
    return mean_and_std([100 * fraction for fraction in fractions])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, columns under each other.

    Example:
        >>> print(aligned([["run", "worst"], ["ERM", "8.0"]]))
        run  worst
        ERM  8.0
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def write(name: str, runs: Sequence[Any], output: Path, draw: Callable[[Figure], object]) -> None:
    """Write ``<name>.json``, one entry a run, and ``<name>.png`` into a folder made if need be.

    Args:
        name: The artifact's name on the command line.
        runs: Dataclasses of plain values.
        output: The folder.
        draw: Draws on an empty figure with constrained layout, and may set its size.
    """
    output.mkdir(parents=True, exist_ok=True)
    numbers, picture = output / f"{name}.json", output / f"{name}.png"
    numbers.write_text(json.dumps([asdict(run) for run in runs], indent=2) + "\n")
    save_figure(picture, draw)
    print(f"\nWrote {numbers} and {picture}")


def save_figure(path: Path, draw: Callable[[Figure], object]) -> None:
    """Write a PNG file.

    Args:
        path: The file.
        draw: Draws on an empty figure with constrained layout, and may set its size.
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=150)
    draw(figure)
    figure.savefig(path)
