"""MAT, Appendix B (Figure 5): a weight leaves the limit of training alone, a shift does not.

Pezeshki et al. (ICLR 2025): logistic regression with a bias on 100 standardised points of two
Gaussians in the plane. For half of the examples of class +1 the loss is weighted by .1, or
``2 |w|`` is added to the logit. ERM and the weighted loss end at the max-margin
direction, here that of scikit-learn's linear SVC with C = 1e6; the shifted loss ends elsewhere.

Departures: the Gaussians are far enough apart to be separable, for overlapping ones have no such
limit; the learning rate is .3 over the loss, with which the direction converges in thousands
of steps. The paper does not say which half: it is drawn at random, but holds the support vectors
of its class. A half that holds none can be shifted without effect on the limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional as F

from lightning_robust.contracts import check_choice, check_integer
from lightning_robust.randomness import generator
from lightning_robust.reproduce.report import aligned, check_run, mean_and_std, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "ERM": "max-margin direction",
    "weight": "max-margin direction, by another path",
    "shift": "another direction",
}
"""The three losses, and where the paper says that they end."""

NUM_EXAMPLES, STEPS, RATE = 100, 4000, 0.3
WEIGHT, SHIFT = 0.1, 2.0
SMALLEST_LOSS = 1e-250  #: Float64 ends soon after.


@dataclass(frozen=True)
class Run:
    """One loss with one seed.

    Args:
        loss: A key of ``PAPER``.
        seed: Seed of the data.
        angle: Between w at the end and the max-margin direction, in degrees.
        steps: The steps at which the path was measured.
        path: At ``steps``, the two coordinates of w / |w| * log(step).
        max_margin: The max-margin direction, of length 1.
    """

    loss: str
    seed: int
    angle: float
    steps: list[int]
    path: list[list[float]]
    max_margin: list[float]


def points(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the data, and find their max-margin direction.

    Returns:
        Features (n, 2) in float64, y in {-1, +1} (n,), which examples of class +1 are changed (n,)
        bool, and the max-margin direction (2,).
    """
    draw = generator(seed, "MAT, Appendix B")
    y = torch.ones(NUM_EXAMPLES, dtype=torch.float64)
    y[: NUM_EXAMPLES // 2] = -1
    noise = torch.randn(NUM_EXAMPLES, 2, dtype=torch.float64, generator=draw)
    features = y[:, None] * torch.tensor([2.5, 1.25]) + noise
    features = (features - features.mean(0)) / features.std(0)
    svc = SVC(kernel="linear", C=1e6).fit(features.numpy(), y.numpy())
    priority = torch.rand(NUM_EXAMPLES, generator=draw) + (y > 0)
    priority[svc.support_[y[svc.support_].numpy() > 0]] += 1
    changed = torch.zeros(NUM_EXAMPLES, dtype=torch.bool)
    changed[priority.topk(NUM_EXAMPLES // 4).indices] = True
    return features, y, changed, F.normalize(torch.tensor(svc.coef_[0]), dim=0)


def angle_between(first: Tensor, second: Tensor) -> float:
    """The angle between two vectors, in degrees.

    Example:
        >>> round(angle_between(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])), 3)
        45.0
    """
    first, second = F.normalize(first, dim=0), F.normalize(second, dim=0)
    halved = math.atan2(float((first - second).norm()), float((first + second).norm()))
    return math.degrees(2 * halved)


def train(loss: str, seed: int = 0, *, steps: int = STEPS) -> Run:
    """Follow gradient descent on one loss.

    Args:
        loss: A key of ``PAPER``.
        seed: Seed of the data.
        steps: Of gradient descent.

    Raises:
        ContractError: If an argument is refused.
    """
    check_choice("loss", loss, tuple(PAPER))
    check_integer("seed", seed)
    check_integer("steps", steps, 1)
    features, y, changed, max_margin = points(seed)
    weights = torch.where(changed, WEIGHT if loss == "weight" else 1.0, 1.0).double()
    shifts = torch.where(changed, SHIFT if loss == "shift" else 0.0, 0.0).double()
    w = torch.tensor([-0.01, 0.01], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    measured: list[int] = []
    path: list[list[float]] = []
    for step in range(1, steps + 1):
        logits = features @ w + bias + shifts * w.norm()
        value = (weights * F.softplus(-y * logits)).mean()
        if float(value.detach()) < SMALLEST_LOSS:
            break
        of_w, of_bias = torch.autograd.grad(value, (w, bias))
        with torch.no_grad():
            w -= RATE / value * of_w
            bias -= RATE / value * of_bias
        if not measured or step >= 1.05 * measured[-1] or step == steps:
            measured.append(step)
            path.append((F.normalize(w.detach(), dim=0) * math.log(step)).tolist())
    return Run(
        loss=loss,
        seed=seed,
        angle=angle_between(w.detach(), max_margin),
        steps=measured,
        path=path,
        max_margin=max_margin.tolist(),
    )


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Follow every loss with every seed, print the paper next to what was measured, and draw it.

    Args:
        seeds: Seeds of the data.
        output: Folder for ``mat-figB.json`` and ``mat-figB.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = []
    for loss in PAPER:
        for seed in seeds:
            runs.append(train(loss, seed))
            print(f"{loss:<6} seed {seed}   angle {runs[-1].angle:6.2f}", flush=True)
    print(f"\n{table(runs)}")
    if output is not None:
        write("mat-figB", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """The paper next to what was measured, mean and standard deviation over seeds.

    Example:
        >>> print(table([Run("ERM", 0, 0.25, [1], [[0.0, 0.0]], [1.0, 0.0])]))
        loss  degrees to max-margin  paper ends at
        ERM   0.25                   max-margin direction
    """
    rows = [["loss", "degrees to max-margin", "paper ends at"]]
    for loss in dict.fromkeys(one.loss for one in runs):
        angles = [one.angle for one in runs if one.loss == loss]
        rows.append([loss, mean_and_std(angles, digits=2), PAPER[loss]])
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """The points, and the paths of the directions, of the first seed."""
    seed = runs[0].seed
    figure.set_size_inches(8.6, 4.0)
    left, right = figure.subplots(1, 2)
    features, y, changed, _ = points(seed)
    for part, colour, label in (
        (y < 0, "#9ca3af", "class -1"),
        ((y > 0) & ~changed, "#2563eb", "class +1"),
        (changed, "#c2410c", "class +1, weighted or shifted"),
    ):
        left.scatter(*features[part].T.tolist(), s=16, c=colour, label=label)
    left.set_title("points", fontsize=11)
    left.set_aspect("equal", "datalim")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    colours = {"ERM": "#2563eb", "weight": "#d97706", "shift": "#15803d"}
    widths = {"ERM": 3.5, "weight": 1.5, "shift": 2.0}
    for one in runs:
        if one.seed == seed:
            right.plot(
                *zip(*one.path, strict=True),
                color=colours[one.loss],
                lw=widths[one.loss],
                label=one.loss,
            )
    end = math.log(max(one.steps[-1] for one in runs))
    u, v = (end * value for value in runs[0].max_margin)
    right.plot([0, u], [0, v], ":", color="black", lw=1)
    right.plot(u, v, "o", color="black", label="max-margin (SVC)")
    right.set_title("direction of w, times log(step)", fontsize=11)
    right.set_aspect("equal", "datalim")
    right.legend(frameon=False, fontsize=9)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
