"""CREST, Figures 2.1, 2.4 and 2.5 in small: what coresets of mini-batch size do while training.

Yang et al. (ICML 2023; chapter 2 of the thesis). On 3,000 augmented digits, a network with a hidden
layer of 128 trains for an ordinary epoch, and then with CREST for 79 of a tenth of the pool each
(batches of 32, subsets of 128, h = 4, b = 1, beta_2 = .9, as there are few selections to average
over): once with all examples, and once letting the learned go. After some epochs, the full gradient
is compared with those of 200 batches of each kind: random ones, mini-batch coresets of random
subsets, and weighted mini-batches of one coreset of a tenth of the pool (CRAIG). Bias is the
distance of their mean from the full gradient, and spread the root of their mean squared distance,
both over the norm of the full gradient.

What holds here: the spread of mini-batch coresets is below that of random batches; with all
examples the curvature falls and the interval between checks grows (by 1.4 from the first quarter of
the epochs to the last); the learned leave, and the interval then grows less (1.2), as what is left
is curved; what is trained on is ever harder. What does not hold is that coresets are nearly
unbiased from the start: until epoch 20 or so their bias is above that of random batches, though
below that of CRAIG's. For accuracies see crest-redundant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_robust import CREST
from lightning_robust.contracts import check_integer
from lightning_robust.data.digit_pool import DigitPool
from lightning_robust.functional.facility_location import (
    facility_location,
    facility_location_batch,
)
from lightning_robust.functional.gradients import logit_gradients
from lightning_robust.models import Classifier
from lightning_robust.models.xrm import alone, silent
from lightning_robust.randomness import generator, isolated
from lightning_robust.reproduce.report import aligned, check_run, mean_and_std, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS, BATCH, SUBSET, FRACTION, NUM_BATCHES = 80, 32, 128, 0.1, 200

MEASURED = (1, 5, 10, 20, 40, 80)
"""After which epochs gradients are compared."""

KINDS = ("random", "CRAIG", "CREST")


@dataclass(frozen=True)
class Run:
    """One training with one seed.

    Args:
        seed: Seed of data, initial weights and draws.
        excludes: Whether learned examples leave.
        bias: By kind of batch, after each epoch of ``MEASURED``.
        spread: Likewise.
        updates: Selections so far, after each epoch.
        interval: T_1 after each epoch.
        kept_fraction: Share of the pool that has not left, after each epoch.
        forgetting: How often an ordinary training forgets what was trained on, mean over each
            epoch's examples.
        acc: On the test set, a fraction.
    """

    seed: int
    excludes: bool
    bias: dict[str, list[float]]
    spread: dict[str, list[float]]
    updates: list[int]
    interval: list[int]
    kept_fraction: list[float]
    forgetting: list[float]
    acc: float


def gradients_of(network: nn.Module, data: DigitPool, batches: Tensor, weights: Tensor) -> Tensor:
    """The gradient of each batch's weighted mean loss, (number of batches, D).

    Args:
        network: A classifier in evaluation mode.
        data: The pool.
        batches: (number of batches, B) indices.
        weights: (number of batches, B), each row of mean 1.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, parameters, (x,))
        return (w * F.cross_entropy(logits, y, reduction="none")).mean()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(
        parameters, data.images[batches], data.targets[batches], weights
    )
    return torch.cat([part.flatten(1) for part in found.values()], 1)


class Measures(Callback):
    """Compares gradients, and notes what CREST has decided, after each epoch."""

    def __init__(self, data: DigitPool, method: CREST, seed: int, scores: Tensor) -> None:
        self.data, self.method, self.seed, self.scores = data, method, seed, scores
        self.bias: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.spread: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.updates: list[int] = []
        self.interval: list[int] = []
        self.kept_fraction: list[float] = []
        self.forgetting: list[float] = []
        self._played: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how hard the examples of the batch are."""
        sampler = self.method.conductor.sampler
        assert sampler is not None
        self._played.append(self.scores[sampler.indices_of_batch(batch_idx)])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure."""
        method = self.method
        assert method.pool is not None
        self.updates.append(method.updates)
        self.interval.append(method.interval)
        self.kept_fraction.append(float(method.pool.float().mean()))
        self.forgetting.append(float(torch.cat(self._played).mean()))
        self._played.clear()
        if trainer.current_epoch + 1 in MEASURED:
            self._compare(pl_module, trainer.current_epoch)

    def _compare(self, module: Any, epoch: int) -> None:
        data, network, draw = self.data, module.network, generator(self.seed, "compare", epoch)
        n, everything = len(data), torch.arange(len(self.data))[None]
        full = gradients_of(network, data, everything, torch.ones(1, n))[0]
        with torch.no_grad():
            points = logit_gradients(network(data.images), data.targets)
        ones = torch.ones(NUM_BATCHES, BATCH)
        random = torch.stack([torch.randperm(n, generator=draw) for _ in range(NUM_BATCHES)])
        subsets = random[:, :SUBSET]
        small = facility_location_batch(points[subsets], BATCH)
        large = facility_location(points, round(FRACTION * n))
        drawn = torch.randint(len(large.indices), (NUM_BATCHES, BATCH), generator=draw)
        counts = large.weights / large.weights.double().mean()
        found = {
            "random": (random[:, :BATCH], ones),
            "CRAIG": (large.indices[drawn], counts[drawn].float()),
            "CREST": (subsets.gather(1, small.indices), small.weights * (BATCH / SUBSET)),
        }
        for kind, (batches, weights) in found.items():
            errors = (gradients_of(network, data, batches, weights) - full) / full.norm()
            self.bias[kind].append(float(errors.mean(0).norm()))
            self.spread[kind].append(float(errors.square().sum(1).mean().sqrt()))


def forgetting_scores(data: DigitPool, seed: int, epochs: int = 20) -> Tensor:
    """How often an ordinary training misclassifies what it had classified, (n,) (Toneva 2019)."""

    class Watches(Callback):
        def __init__(self) -> None:
            self.right = torch.zeros(len(data), dtype=torch.bool)
            self.count = torch.zeros(len(data))

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            with torch.no_grad():
                right = pl_module(data.images).argmax(1) == data.targets
            self.count += self.right & ~right
            self.right = right

    watches = Watches()
    _fit(_model(seed), data, [watches], epochs, seed)
    return watches.count


def _model(seed: int) -> Classifier:
    with isolated():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return Classifier(network, learning_rate=0.1, weight_decay=0)


def _fit(
    model: Classifier, data: DigitPool, callbacks: list[Callback], epochs: int, seed: int
) -> None:
    order = torch.Generator().manual_seed(seed)
    with silent():
        Trainer(max_epochs=epochs, callbacks=callbacks, **alone() | {"accelerator": "cpu"}).fit(
            model, DataLoader(data, BATCH, shuffle=True, generator=order)
        )


def train(seed: int = 0, *, excludes: bool = False, epochs: int = EPOCHS) -> Run:
    """Train with CREST and measure.

    Args:
        seed: Seed of data, initial weights and draws.
        excludes: Whether learned examples leave.
        epochs: The first is of the whole pool, each other of a tenth.

    Raises:
        ContractError: If an argument is refused.
    """
    check_integer("seed", seed)
    check_integer("epochs", epochs, 2)
    data, test = (DigitPool(split, seed=seed) for split in ("train", "test"))
    method = CREST(
        FRACTION,
        interval_factor=4,
        subsets_factor=1,
        subset_size=SUBSET,
        learned_loss=0.05,
        learned_interval=20 if excludes else None,
        curvature_decay=0.9,
        start_epoch=1,
        seed=seed,
    )
    measures = Measures(data, method, seed, forgetting_scores(data, seed))
    model = _model(seed)
    _fit(model, data, [method, measures], epochs, seed)
    with torch.no_grad():
        right = model(test.images).argmax(1) == test.targets
    return Run(
        seed=seed,
        excludes=excludes,
        bias=measures.bias,
        spread=measures.spread,
        updates=measures.updates,
        interval=measures.interval,
        kept_fraction=measures.kept_fraction,
        forgetting=measures.forgetting,
        acc=float(right.float().mean()),
    )


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train with each seed, print the tables, and draw them.

    Args:
        seeds: Seeds of data, initial weights and draws.
        output: Folder for ``crest-mechanics.json`` and ``.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = []
    for seed in seeds:
        for excludes in (False, True):
            one = train(seed, excludes=excludes)
            print(
                f"seed {seed}   {_title(one):<14}   selections {one.updates[-1]}   "
                f"kept {one.kept_fraction[-1]:.2f}   test accuracy {100 * one.acc:.1f}",
                flush=True,
            )
            runs.append(one)
    print(f"\n{table(runs)}")
    if output is not None:
        write("crest-mechanics", runs, output, partial(plot, runs))
    return runs


def grows(run: Run) -> float:
    """Mean interval of the last quarter of the epochs over that of the first."""
    quarter = len(run.interval) // 4
    return mean(run.interval[-quarter:]) / mean(run.interval[1 : 1 + quarter])


def table(runs: Sequence[Run]) -> str:
    """Bias and spread of batches' gradients over the norm of the full one, and CREST's state."""
    measured = MEASURED[: len(runs[0].bias["CREST"])]
    rows = [["", *(f"epoch {epoch}" for epoch in measured)]]
    whole = [run for run in runs if not run.excludes]
    for kind in KINDS if whole else ():
        for name in ("bias", "spread"):
            values = [[getattr(run, name)[kind][i] for run in whole] for i in range(len(measured))]
            rows.append([f"{name}, {kind}", *(mean_and_std(v, 2) for v in values)])
    for title in dict.fromkeys(map(_title, runs)):
        own = [run for run in runs if _title(run) == title]
        for name, digits in (
            ("updates", 0),
            ("interval", 1),
            ("kept_fraction", 2),
            ("forgetting", 2),
        ):
            values = [[float(getattr(run, name)[epoch - 1]) for run in own] for epoch in measured]
            cells = (mean_and_std(v, digits) for v in values)
            rows.append([f"{name.replace('_', ' ')}, {title}", *cells])
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Gradients of batches, intervals, what is kept, and how hard it is; means over seeds."""
    figure.set_size_inches(15, 3.2)
    axes = figure.subplots(1, 5)
    colours = {"random": "#64748b", "CRAIG": "#2563eb", "CREST": "#c2410c"}
    whole = [run for run in runs if not run.excludes]
    for axis, name in zip(axes, ("bias", "spread"), strict=False):
        for kind in KINDS:
            values = [mean(v) for v in zip(*(getattr(r, name)[kind] for r in whole), strict=True)]
            axis.plot(MEASURED[: len(values)], values, "o-", ms=4, color=colours[kind], label=kind)
        axis.set_title(f"{name} of a batch's gradient", fontsize=11)
        axis.set_ylabel("over the norm of the full gradient")
        axis.set_ylim(0)
        axis.set_xscale("log")
    axes[0].legend(frameon=False, fontsize=9)
    panels = {
        "interval": "batches between checks",
        "kept_fraction": "share of the pool left",
        "forgetting": "forgetting score of an epoch",
    }
    for axis, (name, title) in zip(axes[2:], panels.items(), strict=True):
        for excludes, colour in ((False, "#9ca3af"), (True, colours["CREST"])):
            own = [getattr(run, name) for run in runs if run.excludes == excludes]
            values = [mean(v) for v in zip(*own, strict=True)]
            label = "the learned leave" if excludes else "all examples"
            axis.plot(range(1, len(values) + 1), values, color=colour, label=label)
        axis.set_title(title, fontsize=11)
        axis.set_ylim(0)
    axes[3].legend(frameon=False, fontsize=9, loc="lower left")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.spines[["top", "right"]].set_visible(False)


def _title(run: Run) -> str:
    return "learned leave" if run.excludes else "all examples"
