"""Logistic regression on random ReLU features, which three artifacts have in common.

Section 4.1 of Lu et al. (2022) and Sagawa et al. (ICML 2020): x -> ReLU(W x), the rows of W uniform
on the unit sphere, no bias, and a weight decay of 1e-9, which lets a model that is wide enough fit
every example. The loss is minimised itself, by L-BFGS, and not through a Trainer: a line search
reads the loss, and the callbacks put weights on its gradient only. A test checks that a Trainer
with our callbacks stays where this minimiser ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from lightning_robust.contracts import check_integer
from lightning_robust.data.synthetic import NoisyCoreGaussians
from lightning_robust.functional.groups import balancing_weights, draw_from_groups
from lightning_robust.randomness import generator
from lightning_robust.reproduce.report import aligned, in_percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PENALTY = 1e-9

COLOURS = {
    "ERM": "#6b7280",
    "importance weighting": "#2563eb",
    "tempering": "#c2410c",
    "undersampling": "#15803d",
}


@dataclass(frozen=True)
class Method:
    """What a method changes in the loss.

    Args:
        weighted: Whether every group counts alike, which is also what oversampling comes to.
        margin: Of the minority, a != y, that of the majority being 1.
        subsampled: Whether all groups are cut down to the size of the smallest.
    """

    weighted: bool = False
    margin: float = 1.0
    subsampled: bool = False


METHODS = {
    "ERM": Method(),
    "importance weighting": Method(weighted=True),
    "tempering": Method(margin=20.0),
    "undersampling": Method(subsampled=True),
}


@dataclass(frozen=True)
class Run:
    """One method at one width with one seed; errors are fractions.

    Args:
        method: A key of ``METHODS``.
        width: Number of random features.
        seed: Seed of data, features and draws.
        worst_group_error: Of the four groups of the test set.
        error: On the whole test set, in which all groups are equally large.
        train_error: Of the examples trained on; 0 is interpolation.
    """

    method: str
    width: int
    seed: int
    worst_group_error: float
    error: float
    train_error: float


def random_features(inputs: Tensor, width: int, seed: int = 0) -> Tensor:
    """ReLU(W x), the rows of W uniform on the unit sphere and the same for every call.

    Args:
        inputs: (n, d).
        width: m.
        seed: Draws W.

    Returns:
        (n, m).
    """
    draw = generator(seed, f"random features: {width}")
    directions = F.normalize(torch.randn(width, inputs.shape[1], generator=draw), dim=1)
    return (inputs @ directions.T).relu()


def minimiser(
    features: Tensor, targets: Tensor, *, weights: Tensor | None = None, margin: Tensor
) -> Tensor:
    """The minimiser of the mean of ``weight log(1 + exp(-y features @ theta / margin))``.

    ``PENALTY / 2 |theta|^2`` is added, without which there is none where all examples can be
    fitted. float64, L-BFGS until no entry of the gradient is above 1e-9.

    Args:
        features: (n, m).
        targets: (n,) 0 for y = -1, and 1 for y = +1.
        weights: (n,) with mean 1; ``None`` weighs all examples alike.
        margin: (n,) > 0.

    Returns:
        theta (m,) float64.

    Example:
        >>> x, margin = torch.tensor([[1.0, 0.0], [0.0, -2.0]]), torch.ones(2)
        >>> theta = minimiser(x, torch.tensor([1, 0]), margin=margin)
        >>> bool(theta[0] > theta[1] > 0)
        True
    """
    sign = 2.0 * targets.double() - 1
    rows = (features.double() * (sign / margin.double())[:, None]).numpy()
    each = (torch.ones(len(rows)) if weights is None else weights).double().numpy() / len(rows)

    def objective(theta: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        losses = np.logaddexp(0, -rows @ theta)
        value = float(each @ losses + PENALTY / 2 * theta @ theta)
        slopes = each * -np.expm1(-losses)  # 1 - exp(-loss) is the probability of the other class
        return value, PENALTY * theta - rows.T @ slopes

    options = {"maxiter": 5000, "maxfun": 10_000, "maxcor": 20, "ftol": 0.0, "gtol": 1e-9}
    start = np.zeros(rows.shape[1])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x)


def errors(
    method: Method,
    train: NoisyCoreGaussians,
    test: NoisyCoreGaussians,
    width: int,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Fit one model: its worst-group error, its error, and its error on what it was trained on.

    Args:
        method: What is changed in the loss.
        train: Training set.
        test: Test set.
        width: Number of random features.
        seed: Draws the features, and the subset of undersampling.
    """
    kept = torch.ones(len(train), dtype=torch.bool)
    if method.subsampled:
        sizes = torch.bincount(train.groups, minlength=4)
        draw = generator(seed, "undersampling")
        kept = draw_from_groups(train.groups, sizes.min().expand(4), draw)
    features = random_features(train.features, width, seed)[kept]
    targets, groups = train.targets[kept], train.groups[kept]
    theta = minimiser(
        features,
        targets,
        weights=balancing_weights(groups, 4) if method.weighted else None,
        margin=torch.where(groups % 2 == targets, 1.0, method.margin),
    ).to(features.dtype)
    wrong = _wrong(random_features(test.features, width, seed) @ theta, test.targets)
    worst = max(float(wrong[test.groups == group].mean()) for group in range(4))
    return worst, float(wrong.mean()), float(_wrong(features @ theta, targets).mean())


def fit(method: str, width: int, seed: int = 0) -> Run:
    """Fit a method to 3,000 examples of 100 + 100 features and test it on 4,000 others.

    Args:
        method: A key of ``METHODS``.
        width: Number of random features.
        seed: Seed of data, features and draws.

    Raises:
        ContractError: If width or seed is refused.
    """
    check_integer("width", width, 1)
    check_integer("seed", seed)
    train = NoisyCoreGaussians("train", seed=seed)
    test = NoisyCoreGaussians("test", num_examples=4000, seed=seed)
    return Run(method, width, seed, *errors(METHODS[method], train, test, width, seed))


def sweep(methods: Sequence[str], widths: Sequence[int], seeds: Sequence[int]) -> list[Run]:
    """Fit every method at every width with every seed, and print as it goes."""
    runs = []
    for width in widths:
        for method in methods:
            for seed in seeds:
                runs.append(fit(method, width, seed))
                print(
                    f"{method:<20} {width:>6} features   seed {seed}   "
                    f"worst-group error {100 * runs[-1].worst_group_error:5.1f}",
                    flush=True,
                )
    return runs


def worst_by_width(runs: Sequence[Run]) -> str:
    """Worst-group error in percent, mean and standard deviation over seeds; * where all fit.

    Example:
        >>> runs = [Run("ERM", 10, 0, 0.5, 0.4, 0.3), Run("ERM", 99, 0, 0.6, 0.4, 0.0)]
        >>> print(worst_by_width(runs))
        random features  10    99
        ERM              50.0  60.0*
    """
    widths = sorted({one.width for one in runs})
    rows = [["random features", *map(str, widths)]]
    for method in dict.fromkeys(one.method for one in runs):
        rows.append([method])
        for width in widths:
            here = [one for one in runs if (one.method, one.width) == (method, width)]
            star = "*" if all(one.train_error == 0 for one in here) else ""
            rows[-1].append(in_percent([one.worst_group_error for one in here]) + star)
    return aligned(rows)


def plot_by_width(runs: Sequence[Run], figure: Figure) -> None:
    """Worst-group and average error over width, a colour a method; filled where all fit."""
    figure.set_size_inches(8.4, 3.6)
    axes = figure.subplots(1, 2, sharey=True)
    widths = sorted({one.width for one in runs})
    for axis, title, name in (
        (axes[0], "worst group", "worst_group_error"),
        (axes[1], "average", "error"),
    ):
        for method in dict.fromkeys(one.method for one in runs):
            at = [[o for o in runs if (o.method, o.width) == (method, w)] for w in widths]
            values = torch.tensor([[100 * getattr(o, name) for o in each] for each in at])
            mean, colour = values.mean(1), COLOURS[method]
            axis.plot(widths, mean, color=colour, label=method)
            axis.fill_between(
                widths, values.amin(1), values.amax(1), color=colour, alpha=0.15, lw=0
            )
            for width, height, each in zip(widths, mean.tolist(), at, strict=True):
                fits = all(o.train_error == 0 for o in each)
                axis.plot(width, height, "o", ms=5, mec=colour, mfc=colour if fits else "white")
        axis.set_title(title, fontsize=11)
        axis.set_xscale("log")
        axis.set_xlabel("random features")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test error (%)")
    axes[0].set_ylim(0, 85)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[1].legend(
        handles,
        labels,
        frameon=False,
        fontsize=9,
        title="filled: fits all it is trained on",
        title_fontsize=9,
        loc="upper right",
    )


def _wrong(logits: Tensor, targets: Tensor) -> Tensor:
    """1 for each example that is misclassified, else 0: (n,)."""
    return ((logits > 0).long() != targets).double()
