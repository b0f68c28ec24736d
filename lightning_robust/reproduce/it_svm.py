"""Importance tempering, Theorem 1: it ends at the cost-sensitive SVM, whatever the margins.

Lu et al. (2022), Section 2, for a model that is linear: on data that can be separated, gradient
descent on the tempered loss ends in the direction of ``min |w|`` subject to ``y w.x >= margin`` of
the example's group. Two clouds in the plane, 40 and 10 examples, a linear classifier without bias,
``ImportanceTempering`` with a margin of 1 for the minority and 1, .33 and .1 for the majority (the
paper's f is 1 / margin). Departure: gradient flow takes as long as ``exp(|w|)``, so that each
step here is of length .3 (steepest descent with a normalised gradient), which has the same limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_robust import ImportanceTempering
from lightning_robust.contracts import check_integer, check_positive
from lightning_robust.data.synthetic import SeparableClouds
from lightning_robust.models import Classifier
from lightning_robust.models.xrm import silent
from lightning_robust.reproduce.report import aligned, check_run, mean_and_std, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGINS = (1.0, 0.33, 0.1)
"""Of the majority; that of the minority is 1."""

PAPER = 1.0
"""The cosine between the direction of training and that of the SVM, in the limit."""

THRESHOLD = 0.999

STEPS = 400


@dataclass(frozen=True)
class Run:
    """One training; directions are unit vectors, normals of the boundary on the minority's side.

    Args:
        margin: Of the majority.
        seed: Seed of the data.
        cosine: Between ``found`` and ``svm``.
        found: Direction at which training ended.
        svm: Direction of the cost-sensitive SVM.
    """

    margin: float
    seed: int
    cosine: float
    found: list[float]
    svm: list[float]


class _SteepestDescent(Classifier):
    """Steps of one length, in the direction of the gradient."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        gradients = [one.grad for one in self.parameters() if one.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient /= norm


def train(margin: float, seed: int = 0, *, steps: int = STEPS) -> Run:
    """Train one classifier and compare it with the SVM.

    Args:
        margin: Of the majority.
        seed: Seed of the data.
        steps: Of gradient descent, from 0.

    Raises:
        ContractError: If an argument is refused.
    """
    check_positive("margin", margin)
    check_integer("seed", seed)
    check_integer("steps", steps, 1)
    data = SeparableClouds(seed=seed)
    network = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    nn.init.zeros_(network.weight)
    with silent():
        Trainer(
            accelerator="cpu",
            max_epochs=steps,
            callbacks=[ImportanceTempering(margins={"majority": margin, "minority": 1.0})],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(
            _SteepestDescent(network, learning_rate=0.3, momentum=0, weight_decay=0),
            DataLoader(data, len(data), generator=torch.Generator()),
        )
    weight = network.weight.detach()
    found = nn.functional.normalize(weight[1] - weight[0], dim=0)
    margins = torch.tensor([margin, 1.0], dtype=torch.float64)[data.groups]
    svm = cost_sensitive_svm(data.features, data.targets, margins)
    svm = nn.functional.normalize(svm, dim=0)
    return Run(margin, seed, float(found @ svm), found.tolist(), svm.tolist())


def cost_sensitive_svm(features: Tensor, targets: Tensor, margins: Tensor) -> Tensor:
    """The shortest w with ``y w.x >= margin`` for every example of the plane.

    At most two constraints hold it in place: every one, and every pair, is tried.

    Args:
        features: (n, 2) float64, separable by a line through 0.
        targets: (n,) 0 for y = -1, and 1 for y = +1.
        margins: (n,) > 0.

    Returns:
        w (2,).

    Example:
        >>> x = torch.tensor([[2.0, 0.0], [0.0, -1.0]]).double()
        >>> cost_sensitive_svm(x, torch.tensor([1, 0]), torch.tensor([1.0, 3.0]).double())
        tensor([0.5000, 3.0000], dtype=torch.float64)
    """
    rows = (2 * targets - 1)[:, None] * features
    singles = rows * (margins / rows.square().sum(1))[:, None]
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    systems = torch.stack([rows[first], rows[second]], 1)
    proper = torch.linalg.det(systems).abs() > 1e-12
    sides = torch.stack([margins[first], margins[second]], 1)[proper]
    candidates = torch.cat([singles, torch.linalg.solve(systems[proper], sides)])
    feasible = (candidates @ rows.T >= margins * (1 - 1e-9)).all(1)
    candidates = candidates[feasible]
    return candidates[candidates.norm(dim=1).argmin()]


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train with every margin and seed, print the cosines, and draw the boundaries.

    Args:
        seeds: Seeds of the data.
        output: Folder for ``it-svm.json`` and ``it-svm.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = [train(margin, seed) for margin in MARGINS for seed in seeds]
    print(table(runs))
    if output is not None:
        write("it-svm", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """Cosine with the SVM, mean and standard deviation over seeds.

    Example:
        >>> print(table([Run(0.33, 0, 0.99995, [0.6, 0.8], [0.6, 0.8])]))
        margin of majority, minority  cosine with the SVM  expected  paper
        0.33, 1                       0.99995              > 0.999   1
    """
    rows = [["margin of majority, minority", "cosine with the SVM", "expected", "paper"]]
    for margin in dict.fromkeys(one.margin for one in runs):
        cosines = [one.cosine for one in runs if one.margin == margin]
        cell = mean_and_std(cosines, digits=5)
        rows.append([f"{margin:g}, 1", cell, f"> {THRESHOLD}", f"{PAPER:g}"])
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """The data of the first seed, and for each margin the boundary that training and SVM give."""
    first = [one for one in runs if one.seed == runs[0].seed]
    data = SeparableClouds(seed=runs[0].seed)
    figure.set_size_inches(3.2 * len(first), 3.3)
    axes = figure.subplots(1, len(first), sharex=True, sharey=True, squeeze=False)[0]
    for axis, one in zip(axes, first, strict=True):
        for target, (name, colour) in enumerate((("majority", "#2563eb"), ("minority", "#c2410c"))):
            part = data.features[data.targets == target]
            axis.scatter(part[:, 0], part[:, 1], s=18, color=colour, alpha=0.75, lw=0, label=name)
        for (x, y), style, name in (
            (one.found, {"color": "#111827", "lw": 1.6}, "tempered training"),
            (one.svm, {"color": "#facc15", "lw": 1.6, "ls": (0, (3, 3))}, "cost-sensitive SVM"),
        ):
            axis.axline((0, 0), (y, -x), label=name, **style)
        axis.set_title(f"margins {one.margin:g} and 1\ncosine {one.cosine:.5f}", fontsize=11)
        axis.set_aspect("equal")
        axis.set_xlim(-1.7, 1.7)
        axis.set_ylim(-0.1, 2.5)
        axis.set_xticks([-1, 0, 1])
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=4)
