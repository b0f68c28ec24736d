"""PDE, Table 1: what a balanced start, and a slow expansion after it, do to a strong shortcut.

Section 4.1 and Appendix A of Deng et al. (NeurIPS 2023): 10,000 training and 10,000 test examples
of three patches, 98 % of them with a = y, a spurious feature five times as strong as the core one
(case 2: the two strengths swapped); 40 cubic filters; full-batch gradient descent, learning rate
.1, or .03 with momentum .9 in PyTorch's form. PDE adds 100 examples every 101 steps, three times;
"on to all data" adds 800 every 101 steps, and goes on for 1,501.
The table's "worst" is over two groups, a = y and a != y; here the worst of the four groups of
(y, a) stands beside it.

Departures: the warm-up ends at a loss below .15 and not after 800 steps, which are not always
enough; noise has a standard deviation of 1/8 a coordinate, as in the authors' notebooks; expansions
are random, as in Algorithm 1, where the notebooks add slices of one group; filters have a bias,
which Eq. 2.3 does not, and PyTorch's initial values times .1.

The biases were chosen after a look at the numbers. In prototypes, four networks without (N(0, s^2)
with s of .1, .2 and .5, and .1 with doubled logits) ended Warmup+All at 1.6 to 5.5 %, six with them
(all weights or not the biases times .1, one output or two) at 60 to 68 %, the paper at 74 %.

Measured with seeds 0 to 2, worst of two groups: PDE 89.8 +- 2.0, average 94.7; Warmup+All 66.0 +-
1.6; ERM 0.0 by gradient descent. The explanation by momentum does not reproduce: clearing it makes
no difference (89.8), the balanced subset alone gets 92.0, PDE carried on to all data falls to 67.6,
and ERM with momentum reaches 65.0 after 2,000 steps. The gain is where training stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_robust import PDE, Subsample
from lightning_robust.contracts import check_choice, check_integer
from lightning_robust.data.synthetic import SpuriousPatches
from lightning_robust.models import Classifier
from lightning_robust.models.xrm import silent
from lightning_robust.randomness import isolated
from lightning_robust.reproduce.report import aligned, check_run, in_percent, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "ERM (GD)": "0.00, gap 97.71",
    "ERM (GD+M)": "0.00, gap 97.71",
    "ERM (GD+M), 2,000 steps": "",
    "Warmup+All (reset)": "67.69, gap 31.18",
    "Warmup+All": "74.24, gap 24.76",
    "PDE (reset)": "92.51, gap 2.29",
    "PDE": "93.01, gap 0.03",
    "PDE, on to all data": "",
    "warm-up subset alone": "",
    "case 2, ERM (GD)": "learns the core feature",
    "case 2, ERM (GD+M)": "learns the core feature",
}
"""The rows, and what the paper says of them: worst of the two groups and gap, in percent."""

THRESHOLDS = {"ERM (GD)": (0, 2), "PDE": (87, 100), "Warmup+All": (60, 85)}
"""Between what the worst of the two groups has to be, in percent."""

MIN_ACC_OF_PDE, MIN_GAIN_OF_PDE = 93, 8
"""PDE's overall accuracy, and its lead over Warmup+All in the worst of two groups, in percent."""

ERM_STEPS, LONG_STEPS, ALL_STEPS, ON_STEPS = 401, 2000, 701, 1501
INTERVAL, NUM_NEW, NUM_EXPANSIONS = 101, 100, 3
WARM_LOSS, MAX_WARMUP = 0.15, 5000


@dataclass(frozen=True)
class Run:
    """One row with one seed; accuracies are fractions of the test set, after the last step.

    Args:
        row: A key of ``PAPER``.
        seed: Seed of data, initial weights and draws.
        worst_of_two: The smaller of the accuracies where a = y and where a != y.
        worst_of_four: The smallest accuracy of the groups of (y, a).
        acc: On the whole test set.
        warmup: Steps on the balanced subset, 0 for rows without.
        steps: The steps at which the curves were measured.
        curves: At ``steps``: ``"core"`` and ``"spurious"``, the largest inner product of a filter
            with v_c and v_s, and ``"loss"``, of the step's batch.
    """

    row: str
    seed: int
    worst_of_two: float
    worst_of_four: float
    acc: float
    warmup: int
    steps: list[int]
    curves: dict[str, list[float]]


class CubicNetwork(nn.Module):
    """Eq. 2.3: the sum over filters and patches of the cube of their inner product.

    The biases are not in the paper. Cubes are odd, so that the difference of two outputs of 20
    filters each is such a sum of 40 again.

    Args:
        dimension: d of a patch.
        num_filters: J.
        biased: With biases, and PyTorch's initial values times .1; without, N(0, .1^2).

    Shape:
        Patches (n, P, d) to logits (n, 2), of which the first is 0: the logistic loss.

    Example:
        >>> CubicNetwork(50)(torch.zeros(2, 3, 50)).shape
        torch.Size([2, 2])
    """

    def __init__(self, dimension: int, num_filters: int = 40, *, biased: bool = True) -> None:
        super().__init__()
        self.filters = nn.Linear(dimension, num_filters, bias=biased)
        with torch.no_grad():
            if not biased:
                self.filters.weight.normal_()
            for parameter in self.filters.parameters():
                parameter.mul_(0.1)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits (n, 2) of patches (n, P, d)."""
        products = self.filters(patches.flatten(0, 1))
        sums = (products * products * products).sum(1).view(patches.shape[:2]).sum(1)
        return F.pad(sums[:, None], (1, 0))


class _Batched(SpuriousPatches):
    """Gives a full batch by one indexing operation instead of ten thousand."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices)
        return self.patches[rows], self.targets[rows]


def _as_it_is(batch: Any) -> Any:
    return batch


class _Growth(Callback):
    """Measures how well the two features are learnt; stops at a loss, where one is given."""

    def __init__(self, data: SpuriousPatches, network: CubicNetwork, stop_at: float = 0.0) -> None:
        self.data, self.network, self.stop_at = data, network, stop_at
        self.steps: list[int] = []
        self.curves: dict[str, list[float]] = {"core": [], "spurious": [], "loss": []}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"])
        trainer.should_stop = loss < self.stop_at
        if trainer.global_step % 20 == 1:
            weight = self.network.filters.weight.detach()
            self.steps.append(trainer.global_step)
            self.curves["core"].append(float((weight @ self.data.core).max()))
            self.curves["spurious"].append(float((weight @ self.data.spurious).max()))
            self.curves["loss"].append(loss)


@torch.no_grad()
def accuracies(network: nn.Module, dataset: SpuriousPatches) -> tuple[float, float, float]:
    """Worst of two groups, worst of four groups, and overall, as fractions."""
    right = (network(dataset.patches).argmax(1) == dataset.targets).float()
    agrees = dataset.groups % 2 == dataset.targets
    of_two = [float(right[part].mean()) for part in (agrees, ~agrees)]
    of_four = [float(right[dataset.groups == group].mean()) for group in range(4)]
    return min(of_two), min(of_four), float(right.mean())


def fit(
    data: SpuriousPatches,
    callbacks: Sequence[Callback],
    steps: int,
    seed: int,
    *,
    learning_rate: float = 0.03,
    momentum: float = 0.9,
    stop_at: float = 0.0,
    biased: bool = True,
) -> tuple[CubicNetwork, _Growth]:
    """Train with full batches; an epoch is a step.

    Args:
        data: The training set.
        callbacks: Methods of ours.
        steps: How many, unless ``stop_at`` is reached before.
        seed: Of the initial weights.
        learning_rate: Of gradient descent.
        momentum: Of gradient descent.
        stop_at: Stop when the loss of a step is below.
        biased: See :class:`CubicNetwork`.
    """
    with isolated(seed):
        network = CubicNetwork(data.patches.shape[2], biased=biased)
    model = Classifier(network, learning_rate=learning_rate, momentum=momentum, weight_decay=0)
    growth = _Growth(data, network, stop_at)
    loader = DataLoader(data, len(data), collate_fn=_as_it_is, generator=torch.Generator())
    with silent():
        Trainer(
            accelerator="cpu",
            max_epochs=steps,
            callbacks=[*callbacks, growth],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, loader)
    return network, growth


@lru_cache
def warmup_steps(seed: int, biased: bool = True) -> int:
    """Steps on PDE's balanced subset until the loss is below ``WARM_LOSS``."""
    counter = _Counter()
    pde = PDE(warmup_epochs=MAX_WARMUP, seed=seed)
    fit(
        _Batched(seed=seed),
        [pde, counter],
        MAX_WARMUP + 1,
        seed,
        stop_at=WARM_LOSS,
        biased=biased,
    )
    return counter.steps


class _Counter(Callback):
    steps = 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps = trainer.global_step


def train(row: str, seed: int = 0, *, biased: bool = True) -> Run:
    """Train one row.

    Args:
        row: A key of ``PAPER``.
        seed: Seed of data, initial weights and draws.
        biased: See :class:`CubicNetwork`.

    Raises:
        ContractError: If an argument is refused.
    """
    check_choice("row", row, tuple(PAPER))
    check_integer("seed", seed)
    core, spurious = (1.0, 0.2) if row.startswith("case 2") else (0.2, 1.0)
    splits = [
        _Batched(split, core_strength=core, spurious_strength=spurious, seed=seed)
        for split in ("train", "test")
    ]
    data, test = splits
    warmup = 0 if "ERM" in row else warmup_steps(seed, biased)
    reset = "reset" in row
    callbacks: list[Callback] = []
    rates = {"learning_rate": 0.1, "momentum": 0.0} if "(GD)" in row else {}
    if "ERM" in row:
        steps = LONG_STEPS if "2,000" in row else ERM_STEPS
    elif row == "warm-up subset alone":
        steps = warmup + INTERVAL * NUM_EXPANSIONS
        callbacks = [Subsample(seed=seed)]
    elif row.startswith("Warmup+All"):
        steps = warmup + ALL_STEPS
        callbacks = [PDE(warmup_epochs=warmup, num_new=len(data), reset_optimizer=reset, seed=seed)]
    else:
        on = row == "PDE, on to all data"
        steps = warmup + (ON_STEPS if on else INTERVAL * NUM_EXPANSIONS)
        callbacks = [
            PDE(
                warmup_epochs=warmup,
                interval=INTERVAL,
                num_new=8 * NUM_NEW if on else NUM_NEW,
                reset_optimizer=reset,
                seed=seed,
            )
        ]
    network, growth = fit(data, callbacks, steps, seed, biased=biased, **rates)
    of_two, of_four, acc = accuracies(network, test)
    return Run(row, seed, of_two, of_four, acc, warmup, growth.steps, growth.curves)


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train every row with every seed, print the paper next to what was measured, and draw it.

    Args:
        seeds: Seeds of data, initial weights and draws.
        output: Folder for ``pde-table1.json`` and ``pde-table1.png``, made if need be; ``None``
            writes nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = []
    for row in PAPER:
        for seed in seeds:
            runs.append(train(row, seed))
            one = runs[-1]
            print(
                f"{row:<24} seed {seed}   warm-up {one.warmup:>4}   worst of two "
                f"{100 * one.worst_of_two:5.1f}   average {100 * one.acc:5.1f}",
                flush=True,
            )
    print(f"\n{table(runs)}")
    if output is not None:
        write("pde-table1", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """The paper next to what was measured, in percent, mean and standard deviation over seeds.

    Example:
        >>> print(table([Run("PDE", 0, 0.9, 0.85, 0.95, 800, [], {})]))
        row  worst of two  worst of four  average  gap  expected   paper
        PDE  90.0          85.0           95.0     5.0  87 to 100  93.01, gap 0.03
    """
    rows = [["row", "worst of two", "worst of four", "average", "gap", "expected", "paper"]]
    for row in dict.fromkeys(one.row for one in runs):
        of_row = [one for one in runs if one.row == row]
        rows.append(
            [
                row,
                in_percent([one.worst_of_two for one in of_row]),
                in_percent([one.worst_of_four for one in of_row]),
                in_percent([one.acc for one in of_row]),
                in_percent([one.acc - one.worst_of_two for one in of_row]),
                " to ".join(map(str, THRESHOLDS.get(row, ()))),
                PAPER[row],
            ]
        )
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Worst of two and of four groups and the average: a row each, a dot a seed."""
    rows = list(dict.fromkeys(one.row for one in runs))
    figure.set_size_inches(7, 0.42 * len(rows) + 1.3)
    axis = figure.subplots()
    marks = {
        "acc": ("average", "#9ca3af", "|", -0.0),
        "worst_of_two": ("worst of two groups (the paper's)", "#2563eb", "o", -0.16),
        "worst_of_four": ("worst of four groups", "#c2410c", "D", 0.16),
    }
    for name, (label, colour, marker, offset) in marks.items():
        axis.scatter(
            [100 * getattr(one, name) for one in runs],
            [rows.index(one.row) + offset for one in runs],
            s=60 if marker == "|" else 22,
            c=colour,
            marker=marker,
            alpha=0.85,
            label=label,
        )
    for place, row in enumerate(rows):
        worst = PAPER[row].split(",")[0]
        if worst[:1].isdigit():
            axis.plot([float(worst)] * 2, [place - 0.38, place + 0.38], color="black", lw=1.2)
    axis.plot([], [], color="black", lw=1.2, label="paper, worst of two")
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlim(-3, 103)
    axis.set_xlabel("test accuracy (%)")
    axis.grid(axis="x", color="#e5e7eb")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.legend(
        *axis.get_legend_handles_labels(),
        frameon=False,
        fontsize=8,
        ncols=4,
        loc="outside upper center",
    )
