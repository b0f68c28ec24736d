"""MAT, Figure 1: a spurious feature does harm where there is noise to memorise the exceptions by.

Setup 2.1 of Pezeshki et al. (ICLR 2025): 1,000 examples of 1,802 dimensions, correlation .9, a
spurious feature five times as large, standard deviation .12; a linear model without bias, 1,000
steps of full-batch gradient descent, with learning rate .03 without noise, and .01 with noise of
standard deviation .5 (the caption says 1, the authors' script .5). MAT takes the held-out logits of
XRM's twins, trained likewise, at temperature .1. Worst is the smallest accuracy of the four groups
of (y, a) among 2,000 test examples, in which a says nothing about y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from lightning_robust import MAT
from lightning_robust.contracts import check_choice, check_integer
from lightning_robust.data.synthetic import MemorizableGaussians
from lightning_robust.models import Classifier, held_out_logits
from lightning_robust.models.xrm import silent
from lightning_robust.randomness import isolated
from lightning_robust.reproduce.report import aligned, check_run, in_percent, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "ERM, no noise": "generalises to the minority",
    "ERM, noise": "fails on the minority",
    "MAT, noise": "generalises to the minority",
}
"""The panels of the figure, left to right, and what the paper says of each; it prints no number."""

THRESHOLDS = {"ERM, no noise": (95, 100), "ERM, noise": (0, 25), "MAT, noise": (80, 100)}
"""Between what the worst-group accuracy of each panel has to be, in percent."""

STEPS = 1000


@dataclass(frozen=True)
class Run:
    """One panel with one seed; accuracies are fractions.

    Args:
        panel: A key of ``PAPER``.
        seed: Seed of data, initial weights and draws.
        worst_group_acc: Of the groups of the test set, after the last step.
        acc: On the whole test set, after the last step.
        steps: The steps at which the curves were measured.
        curves: Accuracies at ``steps``: ``"train"``, and of the test set ``"majority"`` (every a is
            y) and ``"minority"`` (no a is y).
    """

    panel: str
    seed: int
    worst_group_acc: float
    acc: float
    steps: list[int]
    curves: dict[str, list[float]]


class _Curves(Callback):
    """Measures accuracies after some of the steps."""

    def __init__(self, train: MemorizableGaussians, test: MemorizableGaussians) -> None:
        self.train, self.test = train, test
        most = int(test.agreements.max())
        self.parts = {"majority": test.agreements == most, "minority": test.agreements == 0}
        self.steps: list[int] = []
        self.curves: dict[str, list[float]] = {"train": [], "majority": [], "minority": []}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.steps and step < 1.2 * self.steps[-1] and step < (trainer.max_epochs or 0):
            return
        self.steps.append(step)
        right = correct(pl_module, self.test)
        for name, part in self.parts.items():
            self.curves[name].append(float(right[part].mean()))
        self.curves["train"].append(float(correct(pl_module, self.train).mean()))


@torch.no_grad()
def correct(network: nn.Module, dataset: MemorizableGaussians) -> Tensor:
    """1 for each example that is classified correctly, else 0: (n,)."""
    training = network.training
    network.eval()  # MAT shifts the logits of a training batch only
    logits: Tensor = network(dataset.features)
    network.train(training)
    return (logits.argmax(1) == dataset.targets).float()


def train(panel: str, seed: int = 0, *, steps: int = STEPS, num_spurious: int = 1) -> Run:
    """Train one panel.

    Args:
        panel: A key of ``PAPER``.
        seed: Seed of data, initial weights and draws.
        steps: Of gradient descent, for the twins as well.
        num_spurious: How many spurious features; Figure 7 has two.

    Raises:
        ContractError: If an argument is refused.
    """
    check_choice("panel", panel, tuple(PAPER))
    check_integer("seed", seed)
    check_integer("steps", steps, 1)
    noise_std, learning_rate = (0.0, 0.03) if "no noise" in panel else (0.5, 0.01)
    setting = partial(
        MemorizableGaussians, noise_std=noise_std, num_spurious=num_spurious, seed=seed
    )
    data, test = setting("train"), setting("test", num_examples=2000)
    with isolated():
        torch.manual_seed(seed)
        network = nn.Linear(data.features.shape[1], 2, bias=False)
    model = Classifier(network, learning_rate=learning_rate, momentum=0, weight_decay=0)
    curves = _Curves(data, test)
    callbacks: list[Callback] = [curves]
    if panel.startswith("MAT"):
        first_stage = partial(
            held_out_logits,
            network,
            epochs=steps,
            batch_size=len(data),
            optimizer=partial(SGD, lr=learning_rate),
            seed=seed,
        )
        callbacks.append(MAT(first_stage, temperature=0.1))
    with silent():
        Trainer(
            accelerator="cpu",
            max_epochs=steps,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, DataLoader(data, len(data), generator=torch.Generator()))
    right = correct(model, test)
    return Run(
        panel=panel,
        seed=seed,
        worst_group_acc=min(
            float(right[test.groups == group].mean()) for group in test.groups.unique()
        ),
        acc=float(right.mean()),
        steps=curves.steps,
        curves=curves.curves,
    )


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train every panel with every seed, print the paper next to what was measured, and draw it.

    Args:
        seeds: Seeds of data, initial weights and draws.
        output: Folder for ``mat-fig1.json`` and ``mat-fig1.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs = []
    for panel in PAPER:
        for seed in seeds:
            runs.append(train(panel, seed))
            print(
                f"{panel:<14} seed {seed}   worst {100 * runs[-1].worst_group_acc:5.1f}", flush=True
            )
    print(f"\n{table(runs)}")
    if output is not None:
        write("mat-fig1", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """The paper next to what was measured, in percent, mean and standard deviation over seeds.

    Example:
        >>> print(table([Run("MAT, noise", 0, 0.9, 0.95, [], {})]))
        panel       worst group  average  expected   paper
        MAT, noise  90.0         95.0     80 to 100  generalises to the minority
    """
    rows = [["panel", "worst group", "average", "expected", "paper"]]
    for panel in dict.fromkeys(one.panel for one in runs):
        low, high = THRESHOLDS[panel]
        rows.append(
            [
                panel,
                in_percent([one.worst_group_acc for one in runs if one.panel == panel]),
                in_percent([one.acc for one in runs if one.panel == panel]),
                f"{low} to {high}",
                PAPER[panel],
            ]
        )
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Accuracy over steps, a panel each, of the first seed."""
    panels = list(dict.fromkeys(one.panel for one in runs))
    figure.set_size_inches(3.6 * len(panels), 3.2)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    styles = {
        "train": ("training", "#9ca3af", "--"),
        "majority": ("test, a = y", "#2563eb", "-"),
        "minority": ("test, a ≠ y", "#c2410c", "-"),
    }
    for axis, panel in zip(axes, panels, strict=True):
        one = next(one for one in runs if one.panel == panel)
        for name, (label, colour, line) in styles.items():
            values = [100 * value for value in one.curves[name]]
            axis.plot(one.steps, values, line, color=colour, label=label)
        axis.set_title(panel, fontsize=11)
        axis.set_xscale("log")
        axis.set_xlabel("step")
        axis.set_ylim(-3, 103)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy (%)")
    axes[0].legend(frameon=False, fontsize=9, loc="lower right")
