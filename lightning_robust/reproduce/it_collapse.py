"""Importance tempering, Theorem 3: what an endless imbalance does to the geometry of the classes.

Lu et al. (2022), Section 3.2: the layer-peeled model, in which the features h of an example are
free variables like the rows w of the classifier, with 10 classes, 5 of them R times as large as the
other 5. As R grows, (a) the minority's rows of the classifier become one; temperatures by the
square root of the class size keep (b) the angle of a simplex of all classes, arccos(-1/9), between
the minority's features where they are on the features (Eq. 3), and (c) the wider one of a simplex
of the minority alone, arccos(-1/4), where they are on the classifier (Eq. 4).

Examples of a class share their features, as they do at the optimum, and count by the size of the
class. L-BFGS minimises the cross-entropy with a weight decay on rows and features of 1e-6, then of
1e-9, which stands for gradient flow without end; a test checks that a Trainer with
``ImportanceTempering`` stays there. Taking R further with temperatures than 10^4 would need a still
smaller decay, beside which the minority's loss has to matter.

Departures: (b) speaks of features centred by their mean and of one length. The directions are those
of a simplex without centring, and the lengths go as the inverse root of the size of the class. In
(a) the minority's *features* do not collapse, only their classifier does, and slowly: rows are 9
degrees apart at a million to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from lightning_robust.contracts import check_at_least, check_choice, check_integer
from lightning_robust.randomness import generator
from lightning_robust.reproduce.report import aligned, check_run, mean_and_std, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES = 10

PENALTIES = (1e-6, 1e-9)

IMBALANCES = {
    "none": (1.0, 10.0, 1e2, 1e3, 1e4, 1e6, 1e8),
    "features": (1.0, 10.0, 1e2, 1e3, 1e4),
    "classifier": (1.0, 10.0, 1e2, 1e3, 1e4),
}
"""Where the temperature is, to the imbalances R that are trained with it."""

PAPER = {
    "none": 0.0,
    "features": math.degrees(math.acos(-1 / (CLASSES - 1))),
    "classifier": math.degrees(math.acos(-1 / (CLASSES / 2 - 1))),
}
"""The limit of the angle in degrees: between rows without temperatures, else between features."""

TOLERANCE = 3.0
"""How far, in degrees, the angle at the largest imbalance may be from its limit."""


@dataclass(frozen=True)
class Run:
    """One training; angles are means over pairs of minority classes, in degrees.

    Args:
        on: Where the temperature is: a key of ``IMBALANCES``.
        imbalance: R.
        seed: Seed of the initial values.
        feature_angle: Between features.
        classifier_angle: Between rows of the classifier.
    """

    on: str
    imbalance: float
    seed: int
    feature_angle: float
    classifier_angle: float

    @property
    def angle(self) -> float:
        """The one that the theorem is about."""
        return self.classifier_angle if self.on == "none" else self.feature_angle


def train(on: str, imbalance: float, seed: int = 0) -> Run:
    """Train one layer-peeled model.

    Args:
        on: Where the temperature is.
        imbalance: R >= 1, examples of a majority class for one of a minority class.
        seed: Seed of the initial values.

    Raises:
        ContractError: If an argument is refused.
    """
    check_choice("on", on, tuple(IMBALANCES))
    check_at_least("imbalance", imbalance, 1)
    check_integer("seed", seed)
    features, rows = optimum(on, sizes(imbalance), seed)
    minority = slice(CLASSES // 2, None)
    return Run(on, imbalance, seed, mean_angle(features[minority]), mean_angle(rows[minority]))


def sizes(imbalance: float) -> Tensor:
    """(K,) float64: R for the first half of the classes, 1 for the other."""
    return torch.tensor([imbalance, 1.0], dtype=torch.float64).repeat_interleave(CLASSES // 2)


def optimum(on: str, sizes: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and rows of the classifier at the end of training.

    Args:
        on: Where the temperature is, the square root of the class's size.
        sizes: (K,) examples of each class.
        seed: Seed of the initial values.

    Returns:
        Features (K, K) of the examples of each class, and rows (K, K) of the classifier, float64.
    """
    num_classes = len(sizes)
    shares = sizes / sizes.sum()
    temperatures = (sizes / sizes.max()).sqrt()
    scale = {
        "none": torch.ones(()),
        "features": temperatures[:, None],
        "classifier": temperatures[None],
    }[on]
    draw = generator(seed, "layer-peeled model")
    start = 0.3 * torch.randn(2, num_classes, num_classes, generator=draw, dtype=torch.float64)
    values = start.flatten().numpy()

    def objective(
        values: npt.NDArray[np.float64], penalty: float
    ) -> tuple[float, npt.NDArray[np.float64]]:
        both = torch.tensor(values.reshape(start.shape), requires_grad=True)
        features = both[0] / shares.sqrt()[:, None]  # what decays is sqrt(share) * features
        logits = scale * (features @ both[1].T)
        losses = F.cross_entropy(logits, torch.arange(num_classes), reduction="none")
        loss = shares @ losses + penalty / 2 * both.square().sum()
        (gradient,) = torch.autograd.grad(loss, both)
        return loss.item(), gradient.flatten().numpy()

    for penalty in PENALTIES:
        options = {"maxiter": 10_000, "maxcor": 30, "ftol": 0.0, "gtol": 1e-5 * penalty}
        values = minimize(
            objective, values, penalty, jac=True, method="L-BFGS-B", options=options
        ).x
    both = torch.from_numpy(values).view(start.shape)
    return both[0] / shares.sqrt()[:, None], both[1]


def mean_angle(vectors: Tensor) -> float:
    """Mean angle between two of the rows, in degrees.

    Example:
        >>> round(mean_angle(torch.eye(3)), 3)
        90.0
    """
    units = F.normalize(vectors, dim=1)
    first, second = torch.triu_indices(len(units), len(units), 1)
    cosines = (units[first] * units[second]).sum(1).clamp(-1, 1)
    return math.degrees(float(cosines.arccos().mean()))


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train with every temperature and imbalance, print angles by their limits, and draw them.

    Args:
        seeds: Seeds of the initial values.
        output: Folder for ``it-collapse.json`` and ``it-collapse.png``, made if need be; ``None``
            writes nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = []
    for on, imbalances in IMBALANCES.items():
        for imbalance in imbalances:
            runs += [train(on, imbalance, seed) for seed in seeds]
            print(
                f"temperature on {on:<10}  R {imbalance:<7g}  "
                f"features {runs[-1].feature_angle:5.1f}  "
                f"classifier {runs[-1].classifier_angle:5.1f}",
                flush=True,
            )
    print(f"\n{table(runs)}")
    if output is not None:
        write("it-collapse", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """Angles at the largest imbalance, in degrees, mean and standard deviation over seeds.

    Example:
        >>> print(table([Run("features", 1e4, 0, 96.9, 93.6)]))
        temperature on  R      features  classifier  paper           expected
        features        10000  96.9      93.6        96.4, features  93.4 to 99.4
    """
    rows = [["temperature on", "R", "features", "classifier", "paper", "expected"]]
    for on in dict.fromkeys(one.on for one in runs):
        largest = max(one.imbalance for one in runs if one.on == on)
        last = [one for one in runs if (one.on, one.imbalance) == (on, largest)]
        low, high = max(0, PAPER[on] - TOLERANCE), PAPER[on] + TOLERANCE
        rows.append(
            [
                on,
                f"{largest:g}",
                mean_and_std([one.feature_angle for one in last]),
                mean_and_std([one.classifier_angle for one in last]),
                f"{PAPER[on]:.1f}, {'classifier' if on == 'none' else 'features'}",
                f"{low:.1f} to {high:.1f}",
            ]
        )
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Angles over imbalance, features on the left and classifier on the right, with the limits."""
    figure.set_size_inches(8.4, 3.6)
    axes = figure.subplots(1, 2, sharey=True)
    colours = {"none": "#6b7280", "features": "#2563eb", "classifier": "#c2410c"}
    for axis, title, name in (
        (axes[0], "features", "feature_angle"),
        (axes[1], "rows of the classifier", "classifier_angle"),
    ):
        for on, colour in colours.items():
            here = [one for one in runs if one.on == on]
            xs = sorted({one.imbalance for one in here})
            ys = [torch.tensor([getattr(o, name) for o in here if o.imbalance == x]) for x in xs]
            label = "no temperature" if on == "none" else f"on the {on}"
            axis.plot(xs, [float(y.mean()) for y in ys], "o-", ms=4, color=colour, label=label)
            if name == ("classifier_angle" if on == "none" else "feature_angle"):
                axis.axhline(PAPER[on], color=colour, ls="--", lw=1)
        axis.set_title(f"minority's {title}", fontsize=11)
        axis.set_xscale("log")
        axis.set_xlabel("imbalance R")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("angle (degrees)")
    axes[0].set_ylim(-4, 120)
    axes[0].legend(
        frameon=False,
        fontsize=9,
        title="temperature (dashed: limit in Theorem 3)",
        title_fontsize=9,
        alignment="left",
        loc="center left",
    )
