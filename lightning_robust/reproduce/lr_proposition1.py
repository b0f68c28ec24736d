"""Large learning rates, Proposition 1: scaling the logits up lets bias-conflicting examples rule.

Barsbey et al. (ICCV 2025), Section 6: if a binary classifier follows the spurious rule and its
logits are scaled by k, the loss of the bias-conflicting examples of a batch by that of the aligned
ones is O(k exp(alpha k)). The aligned losses shrink like exp(-alpha k), where alpha is the smallest
margin of an aligned example, and the conflicting ones grow like k. So the logarithm of the ratio
divided by k has slope alpha in k. Measured, in float64, on 1,000 training examples of the parity
data, for a classifier that predicts the bias label with margins drawn from [1/2, 2]. Up to k = 40,
as drawn, the slope is still a little above alpha, since many margins are near the smallest; the
test goes to 1,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_robust.contracts import check_integer
from lightning_robust.data.synthetic import ParityBits
from lightning_robust.functional.representation import conflicting_loss_ratio
from lightning_robust.randomness import generator
from lightning_robust.reproduce.report import aligned, check_run, mean_and_std, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = "the ratio is O(k exp(alpha k)) for some alpha > 0"
"""What the proposition says; alpha is the smallest margin of an aligned example."""

SCALES = tuple(float(k) for k in range(1, 41))


@dataclass(frozen=True)
class Run:
    """One seed.

    Args:
        seed: Seed of data and margins.
        alpha: The smallest margin of an aligned example.
        slope: Of log(ratio / k) between the two largest k.
        scales: k.
        ratios: Loss of the conflicting examples by that of the aligned ones, at each k.
        shares: The same by the loss of all examples.
    """

    seed: int
    alpha: float
    slope: float
    scales: list[float]
    ratios: list[float]
    shares: list[float]


def measure(seed: int = 0, scales: Sequence[float] = SCALES) -> Run:
    """Scale the logits of a classifier that follows the spurious rule.

    Args:
        seed: Seed of data and margins.
        scales: k, two or more, increasing.

    Raises:
        ContractError: If the seed is refused.
    """
    check_integer("seed", seed)
    data = ParityBits(num_examples=1000, seed=seed)
    draw = generator(seed, "proposition 1: margins")
    margins = 0.5 + 1.5 * torch.rand(len(data), generator=draw, dtype=torch.float64)
    conflicting = data.biases != data.targets
    signed = torch.where(conflicting, -margins, margins)  # logit of the target less the other
    ratios: list[Tensor] = []
    shares: list[float] = []
    for k in scales:
        losses = F.softplus(-k * signed)  # the cross-entropy, exact also where it is tiny
        ratios.append(conflicting_loss_ratio(losses, conflicting, of="aligned"))
        shares.append(float(conflicting_loss_ratio(losses, conflicting)))
    steps = torch.tensor(scales, dtype=torch.float64)
    exponents = (torch.stack(ratios) / steps).log()
    return Run(
        seed=seed,
        alpha=float(margins[~conflicting].min()),
        slope=float((exponents[-1] - exponents[-2]) / (steps[-1] - steps[-2])),
        scales=list(scales),
        ratios=[float(ratio) for ratio in ratios],
        shares=shares,
    )


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Measure with every seed, print the slope next to alpha, and draw the ratio over k.

    Args:
        seeds: Seeds of data and margins.
        output: Folder for ``lr-proposition1.json`` and ``lr-proposition1.png``, made if need be;
            ``None`` writes nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = [measure(seed) for seed in seeds]
    print(f"{table(runs)}\n\nPaper: {PAPER}.")
    if output is not None:
        write("lr-proposition1", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """The slope next to alpha, mean and standard deviation over seeds.

    Example:
        >>> print(table([Run(0, 0.5, 0.51, [1.0], [2.0], [0.6])]))
        slope of log(ratio / k)  alpha
        0.510                    0.500
    """
    cells = [
        mean_and_std(values, 3) for values in ([r.slope for r in runs], [r.alpha for r in runs])
    ]
    return aligned([["slope of log(ratio / k)", "alpha"], cells])


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Left the ratio over k with its rate, right the conflicting examples' share of the loss."""
    one = runs[0]
    figure.set_size_inches(8, 3.2)
    left, right = figure.subplots(1, 2)
    k = torch.tensor(one.scales, dtype=torch.float64)
    rate = k * (one.alpha * k).exp()
    rate = rate * one.ratios[-1] / rate[-1]
    left.plot(one.scales, one.ratios, color="#c2410c", label="measured")
    left.plot(one.scales, rate.tolist(), "--", color="#6b7280", label=r"$c\,k\,e^{\alpha k}$")
    left.set_yscale("log")
    left.set_title("loss, conflicting by aligned", fontsize=11)
    left.legend(frameon=False)
    right.plot(one.scales, [100 * share for share in one.shares], color="#c2410c")
    right.set_title("conflicting examples' share of the loss (%)", fontsize=11)
    right.set_ylim(0, 103)
    for axis in (left, right):
        axis.set_xlabel("logit scale k")
        axis.spines[["top", "right"]].set_visible(False)
