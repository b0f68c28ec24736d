"""Training over a grid of learning rates, and what becomes of robustness and compressibility."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_robust.contracts import check_integer, check_positive, targets_of
from lightning_robust.functional.representation import (
    class_separation,
    compressibility,
    logit_norm,
    prunability,
    selectivity,
)
from lightning_robust.models.xrm import silent
from lightning_robust.randomness import generator, isolated
from lightning_robust.steering import HeadHook, class_logits, find_head

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES_AT_A_TIME = 1000


@dataclass(frozen=True)
class Run:
    """What training at one learning rate with one seed gave; measured on the test set.

    Args:
        learning_rate: Of the whole training.
        seed: Of initial weights and order.
        diverged: The loss became NaN or infinite, which ended the training; accuracies are those
            of the network as it was then, and the rest is NaN.
        epochs: Trained.
        train_acc: On the training set, a fraction.
        acc: On the test set, a fraction: the unbiased accuracy, if bias and class are independent.
        prunability: Sum of the shares of ``acc`` kept with .1, .2, ..., .9 of the units pruned.
        compressibility: (2, .1)-compressibility of the head's input, mean over examples.
        class_separation: R^2 of the head's input.
        class_selectivity: Of the head's input, mean over neurons.
        logit_norm: Mean over examples.
    """

    learning_rate: float
    seed: int
    diverged: bool
    epochs: int
    train_acc: float
    acc: float
    prunability: float
    compressibility: float
    class_separation: float
    class_selectivity: float
    logit_norm: float


class LearningRateSweep:
    """Trains a module at each learning rate until it fits its training set, and measures it.

    A run ends when all training examples are classified correctly, after ``max_epochs``, or, as
    diverged, at the first loss that is not finite.

    Args:
        make: Makes the module for a learning rate. Its ``forward`` takes inputs and gives logits,
            its batches are pairs of inputs and targets; initial weights come from torch's
            generator, which is seeded.
        train: Training set, with targets.
        test: Test set, with targets.
        batch_size: Of training.
        max_epochs: At most so many.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> from lightning_robust.data.synthetic import ParityBits
        >>> from lightning_robust.models import Classifier
        >>> data = ParityBits(num_examples=50)
        >>> def make(learning_rate):
        ...     network = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        ...     return Classifier(network, learning_rate=learning_rate)
        >>> sweep = LearningRateSweep(make, data, data, max_epochs=1)
        >>> [run.epochs for run in sweep.run([0.1, 0.2])]
        [1, 1]
    """

    def __init__(
        self,
        make: Callable[[float], LightningModule],
        train: Dataset[Any],
        test: Dataset[Any],
        *,
        batch_size: int = 100,
        max_epochs: int = 500,
        head: str | None = None,
    ) -> None:
        check_integer("batch_size", batch_size, minimum=1)
        check_integer("max_epochs", max_epochs, minimum=1)
        self.make = make
        self.train, self.test = train, test
        self.batch_size, self.max_epochs = batch_size, max_epochs
        self.head = head

    def run(self, learning_rates: Sequence[float], seed: int = 0) -> list[Run]:
        """Train at each learning rate.

        Args:
            learning_rates: Each > 0.
            seed: Of initial weights and order.

        Raises:
            ContractError: If an argument is refused.
        """
        check_integer("seed", seed)
        for rate in learning_rates:
            check_positive("learning_rates", rate)
        return [self._one(float(rate), seed) for rate in learning_rates]

    def _one(self, rate: float, seed: int) -> Run:
        order = generator(seed, "learning rate sweep: order")
        loader = DataLoader(self.train, self.batch_size, shuffle=True, generator=order)
        watch = _Watch(self.train)
        with silent(), isolated(seed):
            module = self.make(rate)
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=self.max_epochs,
                callbacks=[watch],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, loader)
        module.eval()
        return self._measured(module, watch, rate, seed)

    @torch.no_grad()
    def _measured(self, module: LightningModule, watch: _Watch, rate: float, seed: int) -> Run:
        targets = targets_of(self.test)
        _, head = find_head(module, int(targets.max()) + 1, head=self.head)
        name = next(name for name, child in module.named_modules() if child is head)
        parts: list[Tensor] = []
        hook = HeadHook(head)
        hook.readers.append(lambda features, logits: parts.append(features.flatten(1)))
        with hook:
            logits = class_logits(_logits(module, self.test))
        features = torch.cat(parts)
        values = dict.fromkeys(_MEASURES, float("nan"))
        if not watch.diverged:
            module._trainer = None  # a copy of the module is pruned, and none of the Trainer
            kept = prunability(module, lambda one: _accuracy(one, self.test), head=name)
            values = {
                "prunability": float(kept.sum()),
                "compressibility": float(compressibility(features).mean()),
                "class_separation": float(class_separation(features, targets)),
                "class_selectivity": float(selectivity(features, targets).mean()),
                "logit_norm": float(logit_norm(logits).mean()),
            }
        return Run(
            learning_rate=rate,
            seed=seed,
            diverged=watch.diverged,
            epochs=watch.epochs,
            train_acc=_accuracy(module, self.train),
            acc=float((logits.argmax(1) == targets).float().mean()),
            **values,
        )


_MEASURES = (
    "prunability",
    "compressibility",
    "class_separation",
    "class_selectivity",
    "logit_norm",
)


class _Watch(Callback):
    """Ends the training where there is nothing left to fit, or nothing left to hope."""

    def __init__(self, train: Dataset[Any]) -> None:
        self._train = train
        self.diverged = False
        self.epochs = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not bool(loss.isfinite()):
            self.diverged = trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs += 1
        pl_module.eval()
        if not self.diverged and _accuracy(pl_module, self._train) == 1:
            trainer.should_stop = True
        pl_module.train()


def _logits(network: nn.Module, dataset: Dataset[Any]) -> Tensor:
    loader = DataLoader(dataset, _EXAMPLES_AT_A_TIME, generator=torch.Generator())
    with torch.no_grad():
        return torch.cat([network(inputs) for inputs, _ in loader])


def _accuracy(network: nn.Module, dataset: Dataset[Any]) -> float:
    predicted = class_logits(_logits(network, dataset)).argmax(1)
    return float((predicted == targets_of(dataset)).float().mean())


def draw(runs: Sequence[Run], figure: Figure) -> None:
    """Accuracy, prunability, compressibility and selectivity over the learning rate.

    Points are means over seeds, bars standard deviations; diverged runs are left out.
    """
    panels = {
        "acc": ("unbiased accuracy (%)", "#2563eb", 100),
        "prunability": ("prunability (sum of 9)", "#c2410c", 1),
        "compressibility": ("compressibility", "#047857", 1),
        "class_selectivity": ("class selectivity", "#7c3aed", 1),
    }
    figure.set_size_inches(11, 2.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    finished = [one for one in runs if not one.diverged]
    rates = sorted({one.learning_rate for one in finished})
    for axis, (name, (label, colour, scale)) in zip(axes, panels.items(), strict=True):
        values = [
            [scale * getattr(one, name) for one in finished if one.learning_rate == rate]
            for rate in rates
        ]
        spread = [stdev(each) if len(each) > 1 else 0.0 for each in values]
        axis.errorbar(rates, [mean(each) for each in values], spread, color=colour, marker="o")
        axis.set_xscale("log")
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.minorticks_off()
        axis.set_xlabel("learning rate")
        axis.set_title(label, fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
