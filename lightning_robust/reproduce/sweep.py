"""Training over a grid of learning rates, and what becomes of robustness and compressibility."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from lightning_robust.contracts import (
    ContractError,
    check_at_least,
    check_integer,
    check_positive,
    targets_of,
)
from lightning_robust.functional.losses import focal_weights
from lightning_robust.functional.representation import (
    attribution_entropy,
    background_attribution,
    class_separation,
    compressibility,
    conflicting_loss_ratio,
    logit_norm,
    prunability,
    selectivity,
)
from lightning_robust.models.attribution import integrated_gradients, require_captum
from lightning_robust.models.sam import SAM
from lightning_robust.models.xrm import silent
from lightning_robust.randomness import generator, isolated
from lightning_robust.reproduce.report import (
    aligned,
    check_run,
    in_percent,
    mean_and_std,
    write,
)
from lightning_robust.sampling import RecordingBatchSampler
from lightning_robust.steering import (
    HeadHook,
    LogitSteering,
    Steer,
    class_logits,
    find_head,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES_AT_A_TIME = 1000
_READER = "LearningRateSweep"


@dataclass(frozen=True)
class Run:
    """What training at one learning rate with one seed gave; measured on the test set.

    Args:
        learning_rate: Of the whole training.
        seed: Of initial weights and order.
        diverged: The loss became NaN or infinite, or the logits the same for all examples, which
            ended the training; accuracies are those of the network as it was then, and what is
            measured after training is NaN.
        epochs: Trained.
        train_acc: On the training set, a fraction.
        acc: On the test set, a fraction: the unbiased accuracy, if bias and class are independent.
        prunability: Sum of the shares of ``acc`` kept with .1, .2, ..., .9 of the units pruned.
        compressibility: (2, .1)-compressibility of the head's input, mean over examples.
        class_separation: R^2 of the head's input.
        class_selectivity: Of the head's input, mean over neurons.
        logit_norm: Mean over examples.
        bias_selectivity: Like ``class_selectivity``; NaN if the test set has no ``biases``.
        attribution_entropy: Of integrated gradients, mean over examples; NaN if not asked for.
        core_attribution: Share of the absolute integrated gradients where the core cue is, mean
            over examples; NaN if not asked for, or the test set has no ``core``.
        max_loss_ratio: The largest share that the bias-conflicting examples had in the
            cross-entropy of a batch of training (Section 6); NaN if the training set has no
            ``biases``.
        max_epoch_loss_ratio: The largest share that they had in that of an epoch.
        setting: What runs of one line in a figure have in common.
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
    bias_selectivity: float = math.nan
    attribution_entropy: float = math.nan
    core_attribution: float = math.nan
    max_loss_ratio: float = math.nan
    max_epoch_loss_ratio: float = math.nan
    setting: str = "plain"

    def __str__(self) -> str:
        """A line about the run.

        Example:
            >>> print(Run(0.5, 0, False, 13, 1.0, 0.98, 7.5, 0.4, 0.6, 0.3, 9.0))
            plain, learning rate 0.5, seed 0: accuracy 98.0, of training 100.0, after 13 epochs
        """
        figures = f"accuracy {100 * self.acc:.1f}, of training {100 * self.train_acc:.1f}, "
        return (
            f"{self.setting}, learning rate {self.learning_rate:g}, seed {self.seed}: "
            f"{'diverged ' if self.diverged else figures}after {self.epochs} epochs"
        )


def fully_connected(width: int, num_classes: int) -> nn.Sequential:
    """The paper's network of Figure 3: three hidden layers of 200, ReLU.

    Args:
        width: Of the inputs, which are flattened.
        num_classes: C.

    Example:
        >>> fully_connected(16, 2)(torch.zeros(3, 4, 4)).shape
        torch.Size([3, 2])
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((width, 200, 200, 200)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(200, num_classes))


def small_network(shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """A small ReLU network for inputs of a shape.

    Args:
        shape: (d,): :func:`fully_connected`; (channels, height, width): two
            convolutions (16 and 32 channels, 3x3), each with max-pooling, and a hidden layer of 64.
        num_classes: C.

    Raises:
        ContractError: If the shape is something else.

    Example:
        >>> small_network((1, 8, 16), 10)(torch.zeros(2, 1, 8, 16)).shape
        torch.Size([2, 10])
    """
    if len(shape) == 1:
        return fully_connected(shape[0], num_classes)
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ContractError(
            "the small network takes inputs of shape (d,), or (channels, height, width) with at "
            f"least 4 pixels a side, got {tuple(shape)}; give a model"
        )
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


@dataclass(frozen=True)
class Setting:
    """What is set against the learning rate (Figure 6); ``None`` leaves what the module has.

    It acts on any module: on the groups of its optimiser, on the gradients of its parameters, and,
    for the focal loss, on the gradient that flows back into its logits.

    Args:
        momentum: Of SGD, >= 0.
        batch_size: Instead of the sweep's, >= 1.
        l1: Factor >= 0 of the sum of absolute parameters that is added to the loss.
        l2: The optimiser's weight decay, >= 0.
        focal: Gamma of the focal loss, >= 0; exact where the loss is cross-entropy.
        sam: Radius rho > 0 of sharpness-aware minimisation around the optimiser.
        asam: Radius rho > 0 of its adaptive form.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> Setting(momentum=0.9, l1=1e-4).name, Setting().name
        ('momentum 0.9, L1 0.0001', 'plain')
    """

    momentum: float | None = None
    batch_size: int | None = None
    l1: float | None = None
    l2: float | None = None
    focal: float | None = None
    sam: float | None = None
    asam: float | None = None

    def __post_init__(self) -> None:
        """Refuse bad values."""
        for name in ("momentum", "l1", "l2", "focal"):
            if (value := getattr(self, name)) is not None:
                check_at_least(name, value, 0)
        for name in ("sam", "asam"):
            if (value := getattr(self, name)) is not None:
                check_positive(name, value)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, minimum=1)
        if self.sam is not None and self.asam is not None:
            raise ContractError(f"sam={self.sam} and asam={self.asam} exclude each other")

    @property
    def name(self) -> str:
        """Such as ``"momentum 0.9"``; ``"plain"`` where all is left as it is."""
        given = [(word, getattr(self, name)) for name, word in SETTINGS.items()]
        return ", ".join(f"{word} {value:g}" for word, value in given if value is not None) or (
            "plain"
        )


SETTINGS = {
    "momentum": "momentum",
    "batch_size": "batch size",
    "l1": "L1",
    "l2": "L2",
    "focal": "focal loss",
    "sam": "SAM",
    "asam": "ASAM",
}
"""The arguments of a :class:`Setting`, and what figures call them."""


class LearningRateSweep:
    """Trains a module at each learning rate until it fits its training set, and measures it.

    A run ends when all training examples are classified correctly, after ``max_epochs``, or, as
    diverged, at the first loss that is not finite, or when all training examples have the same
    logits: then neurons are dead for good.

    The learning rate is constant: schedules of the module are left out. Where its optimiser has
    several groups of parameters the largest of their rates is what is swept, and the others keep
    their ratio to it.

    Args:
        make: Makes the module for a learning rate. Its ``forward`` takes inputs and gives logits,
            its batches are pairs of inputs and targets; initial weights come from torch's
            generator, which is seeded. The rate of its optimiser is overwritten, so it may ignore
            the one it is given.
        train: Training set, with targets; with ``biases`` (n,), labels numbered like the classes,
            the bias-conflicting loss ratio is recorded.
        test: Test set, with targets; with ``biases`` bias selectivity is measured, and with
            ``core``, bool of the shape of an input without its channels, how much of the
            attributions falls on the core cue.
        batch_size: Of training.
        max_epochs: At most so many.
        head: Name of the module that returns the logits; ``None`` finds it.
        attributed: For how many of the test examples, the first, integrated gradients of the
            predicted class are computed; 0 leaves out what needs them, and captum.
        setting: What is set against the learning rate, by default nothing.
        accelerator: Lightning's, of one device: ``"cpu"``, ``"gpu"``, ``"auto"``.

    Raises:
        ContractError: If an argument is refused; when it runs, if the optimiser has no momentum
            to set.
        ModuleNotFoundError: If attributions are asked for and captum is missing.

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
        attributed: int = 0,
        setting: Setting | None = None,
        accelerator: str = "cpu",
    ) -> None:
        check_integer("batch_size", batch_size, minimum=1)
        check_integer("max_epochs", max_epochs, minimum=1)
        check_integer("attributed", attributed)
        if attributed:
            require_captum()
        self.make = make
        self.train, self.test = train, test
        self.batch_size, self.max_epochs = batch_size, max_epochs
        self.head = head
        self.attributed, self.accelerator = attributed, accelerator
        self.setting = setting or Setting()

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
        batch_size = self.setting.batch_size or self.batch_size
        loader = DataLoader(self.train, batch_size, shuffle=True, generator=order)
        with silent(), isolated(seed):
            module = self.make(rate)
            watch = _Watch(self.train, loader, self._head(module), self.setting.focal)
            trainer = Trainer(
                accelerator=self.accelerator,
                devices=1,
                max_epochs=self.max_epochs,
                callbacks=[_Optimiser(rate, self.setting), watch],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, loader)
            module.to(trainer.strategy.root_device).eval()
        return self._measured(module, watch, rate, seed)

    def _head(self, module: LightningModule) -> nn.Module:
        _, head = find_head(module, int(targets_of(self.test).max()) + 1, head=self.head)
        return head

    @torch.no_grad()
    def _measured(self, module: LightningModule, watch: _Watch, rate: float, seed: int) -> Run:
        targets = targets_of(self.test)
        head = self._head(module)
        name = next(name for name, child in module.named_modules() if child is head)
        parts: list[Tensor] = []
        hook = HeadHook(head)
        hook.readers.append(lambda features, logits: parts.append(features.flatten(1).cpu()))
        with hook:
            logits = class_logits(_logits(module, self.test))
        features = torch.cat(parts)
        values = dict.fromkeys(_MEASURES, math.nan)
        if not watch.diverged:
            module._trainer = None  # a copy of the module is pruned, and none of the Trainer
            kept = prunability(module, lambda one: _accuracy(one, self.test), head=name)
            values = {
                "prunability": float(kept.sum()),
                "compressibility": float(compressibility(features).mean()),
                "class_separation": float(class_separation(features, targets)),
                "class_selectivity": float(selectivity(features, targets).mean()),
                "logit_norm": float(logit_norm(logits).mean()),
                **self._attributions(module),
            }
            if (biases := _biases(self.test)) is not None:
                values["bias_selectivity"] = float(selectivity(features, biases).mean())
        return Run(
            learning_rate=rate,
            seed=seed,
            diverged=watch.diverged,
            epochs=watch.epochs,
            train_acc=_accuracy(module, self.train),
            acc=float((logits.argmax(1) == targets).float().mean()),
            max_loss_ratio=watch.largest,
            max_epoch_loss_ratio=watch.largest_of_epochs,
            setting=self.setting.name,
            **values,
        )

    def _attributions(self, module: LightningModule) -> dict[str, float]:
        if not self.attributed:
            return {}
        loader = DataLoader(self.test, self.attributed, generator=torch.Generator())
        inputs = next(iter(loader))[0].to(_device(module))
        maps = integrated_gradients(module, inputs).cpu()
        found = {"attribution_entropy": float(attribution_entropy(maps).nanmean())}
        core: Tensor | None = getattr(self.test, "core", None)
        if core is not None:
            elsewhere = (~core).expand(len(maps), *core.shape)
            shares = background_attribution(maps, elsewhere)
            found["core_attribution"] = float(1 - shares.nanmean())
        return found


_MEASURES = (
    "prunability",
    "compressibility",
    "class_separation",
    "class_selectivity",
    "logit_norm",
)


def _biases(dataset: Dataset[Any]) -> Tensor | None:
    """The bias label of each example (n,), where a data set has them."""
    biases: Tensor | None = getattr(dataset, "biases", None)
    return biases


class _Optimiser(Callback):
    """Puts the learning rate and the setting into the optimisers that the module made."""

    def __init__(self, rate: float, setting: Setting) -> None:
        self._rate, self._setting = rate, setting

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.lr_scheduler_configs.clear()
        setting, wrapped = self._setting, []
        for optimizer in trainer.optimizers:
            largest = max(group["lr"] for group in optimizer.param_groups)
            for group in optimizer.param_groups:
                group["lr"] *= self._rate / largest
                for name, value in (("momentum", setting.momentum), ("weight_decay", setting.l2)):
                    if value is not None and name not in group:
                        raise ContractError(
                            f"{type(optimizer).__name__} has no {name} to set to {value}; take SGD"
                        )
                    if value is not None:
                        group[name] = value
            rho = setting.asam or setting.sam
            if rho is not None:
                optimizer = SAM(optimizer, rho=rho, adaptive=setting.asam is not None)
            wrapped.append(optimizer)
        trainer.optimizers = wrapped

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._setting.l1:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        weight.grad.add_(weight.detach().sign(), alpha=self._setting.l1)


class _Watch(Callback):
    """Ends the training where there is nothing left to fit, or nothing left to hope.

    On the way it records how much of the loss is that of bias-conflicting examples.

    Args:
        train: The training set.
        loader: What plays it.
        head: The module that returns the logits.
        focal: Gamma of the focal loss to train by, if any.
    """

    def __init__(
        self, train: Dataset[Any], loader: DataLoader[Any], head: nn.Module, focal: float | None
    ) -> None:
        self._train = train
        self.diverged = False
        self.epochs = 0
        self.largest = self.largest_of_epochs = math.nan
        self._targets, self._biases = targets_of(train), _biases(train)
        self._recording = RecordingBatchSampler.put_in(loader, _READER)
        self._steering = LogitSteering(head)
        if focal is not None:
            self._steering.sources.append(partial(self._focal, focal))

    def _focal(self, gamma: float, indices: Tensor, logits: Tensor) -> Steer:
        targets = self._targets[indices.cpu()].to(logits.device)
        return Steer(weight=focal_weights(logits.float(), targets, gamma))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steering.attach(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._of_epoch = torch.zeros(2)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._logits: Tensor | None = None
        self._steering.readers[:] = [self._read]
        self._indices = torch.tensor(self._recording.next_batch(_READER))
        self._steering.begin_batch(self._indices)

    def _read(self, features: Tensor, logits: Tensor) -> None:
        if self._logits is None:  # an optimiser may run the batch again, at other weights
            self._logits = class_logits(logits).float().cpu()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steering.readers.clear()
        self._steering.end_batch()
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        seen = [each for each in (loss, self._logits) if isinstance(each, Tensor)]
        if not all(bool(each.isfinite().all()) for each in seen):
            self.diverged = trainer.should_stop = True
        elif self._biases is not None and self._logits is not None:
            targets = self._targets[self._indices]
            losses = F.cross_entropy(self._logits, targets, reduction="none")
            conflicting = self._biases[self._indices] != targets
            ratio = float(conflicting_loss_ratio(losses, conflicting))
            self.largest = _larger(self.largest, ratio)
            self._of_epoch += torch.stack([losses[conflicting].sum(), losses.sum()])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs += 1
        if self._of_epoch[1] > 0:
            ratio = float(self._of_epoch[0] / self._of_epoch[1])
            self.largest_of_epochs = _larger(self.largest_of_epochs, ratio)
        pl_module.eval()
        logits = class_logits(_logits(pl_module, self._train))
        pl_module.train()
        dead = len(logits) > 1 and bool((logits == logits[0]).all())
        self.diverged = self.diverged or dead
        if self.diverged or bool((logits.argmax(1) == self._targets).all()):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steering.detach()


def _larger(so_far: float, value: float) -> float:
    """The larger of two numbers of which either may be NaN."""
    return value if math.isnan(so_far) or value > so_far else so_far


def _logits(network: nn.Module, dataset: Dataset[Any]) -> Tensor:
    loader = DataLoader(dataset, _EXAMPLES_AT_A_TIME, generator=torch.Generator())
    device = _device(network)
    with torch.no_grad():
        return torch.cat([network(inputs.to(device)).cpu() for inputs, _ in loader])


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _accuracy(network: nn.Module, dataset: Dataset[Any]) -> float:
    predicted = class_logits(_logits(network, dataset)).argmax(1)
    return float((predicted == targets_of(dataset)).float().mean())


def reproduced(
    name: str,
    train: Callable[[int, Sequence[float]], list[Run]],
    learning_rates: Sequence[float],
    paper: str,
    seeds: Sequence[int],
    output: Path | None,
) -> list[Run]:
    """What the artifacts about learning rates do: train, print a table, and draw it.

    Args:
        name: The artifact's name on the command line.
        train: Trains with a seed at learning rates.
        learning_rates: Each > 0.
        paper: What the paper says.
        seeds: Of data, initial weights and order.
        output: Folder for ``<name>.json`` and ``<name>.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs: list[Run] = []
    for seed in seeds:
        for rate in learning_rates:
            found = train(seed, [rate])
            runs += found
            for one in found:
                print(one, flush=True)
    print(f"\n{table(runs)}\n\nPaper: {paper}.")
    if output is not None:
        write(name, runs, output, partial(draw, runs))
    return runs


# --- what was measured ----------------------------------------------------------------------------

_SHOWN = {
    "acc": "accuracy",
    "prunability": "prunability",
    "compressibility": "compressibility",
    "class_separation": "class separation",
    "class_selectivity": "class selectivity",
    "bias_selectivity": "bias selectivity",
    "core_attribution": "core attribution",
    "attribution_entropy": "attribution entropy",
    "max_loss_ratio": "max loss ratio",
}
_DIGITS = {"prunability": 2, "attribution_entropy": 2, "max_loss_ratio": 2, "core_attribution": 2}


def table(runs: Sequence[Run]) -> str:
    """What was measured at each learning rate, mean and standard deviation over seeds.

    Diverged runs are left out of the means; columns are left out that nothing was measured for.

    Example:
        >>> print(table([Run(0.5, 0, False, 13, 1.0, 0.98, 7.5, 0.4, math.nan, 0.3, 9.0)]))
        learning rate  accuracy  prunability  compressibility  class selectivity  epochs
        0.5            98.0      7.50         0.400            0.300              13
    """
    shown = {name: head for name, head in _SHOWN.items() if _measured(runs, name)}
    settings = list(dict.fromkeys(one.setting for one in runs))
    named = len(settings) > 1
    unfitted = any(one.train_acc < 1 for one in runs if not one.diverged)
    heads = ["setting"] * named + ["learning rate"] + ["train accuracy"] * unfitted
    rows = [[*heads, *shown.values(), "epochs"]]
    for setting, rate in _lines(runs):
        of_rate = [one for one in runs if (one.setting, one.learning_rate) == (setting, rate)]
        here = [one for one in of_rate if not one.diverged]
        row = [setting] * named + [f"{rate:g}"]
        if not here:
            row += ["diverged", *[""] * (unfitted + len(shown))]
        else:
            row += [in_percent([one.train_acc for one in here])] * unfitted
            for name in shown:
                values = [getattr(one, name) for one in here]
                row.append(
                    in_percent(values)
                    if name == "acc"
                    else mean_and_std(values, _DIGITS.get(name, 3))
                )
            row.append(mean_and_std([one.epochs for one in here], 0))
            if len(here) < len(of_rate):
                row[-1] += f" ({len(of_rate) - len(here)} of {len(of_rate)} diverged)"
        rows.append(row)
    return aligned(rows)


def _measured(runs: Sequence[Run], name: str) -> bool:
    return name == "acc" or any(not math.isnan(getattr(one, name)) for one in runs)


def _lines(runs: Sequence[Run]) -> list[tuple[str, float]]:
    """Settings in their own order, and the learning rates of each, rising."""
    settings = list(dict.fromkeys(one.setting for one in runs))
    pairs = {(one.setting, one.learning_rate) for one in runs}
    return sorted(pairs, key=lambda pair: (settings.index(pair[0]), pair[1]))


_PANELS = {
    "acc": ("unbiased accuracy (%)", 100),
    "prunability": ("prunability (sum of 9)", 1),
    "compressibility": ("compressibility", 1),
    "class_separation": ("class separation R²", 1),
    "class_selectivity": ("class selectivity", 1),
    "bias_selectivity": ("bias selectivity", 1),
    "core_attribution": ("attribution to the core cue (%)", 100),
    "attribution_entropy": ("attribution entropy (nats)", 1),
    "max_loss_ratio": ("largest share of conflicting\nexamples in a batch's loss (%)", 100),
}
_LINES = ("-", "--", ":")
_COLOURS = ("#2563eb", "#c2410c", "#047857", "#7c3aed", "#64748b", "#ca8a04", "#be185d", "#0e7490")


def draw(runs: Sequence[Run], figure: Figure) -> None:
    """Each measure over the learning rate, a line a setting.

    Points are means over seeds, bars standard deviations; diverged runs are left out, and so are
    panels of what was not measured.
    """
    finished = [one for one in runs if not one.diverged]
    panels = {name: panel for name, panel in _PANELS.items() if _measured(finished, name)}
    columns = 3 if len(panels) % 3 == 0 else min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure.set_size_inches(2.75 * columns, 2.8 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.remove()
    settings = list(dict.fromkeys(one.setting for one in finished))
    every = sorted({one.learning_rate for one in finished})
    for place, (axis, (name, (label, scale))) in enumerate(zip(axes, panels.items(), strict=False)):
        for number, setting in enumerate(settings):
            rates = [rate for line, rate in _lines(finished) if line == setting]
            values = [
                [
                    scale * getattr(one, name)
                    for one in finished
                    if (one.setting, one.learning_rate) == (setting, rate)
                ]
                for rate in rates
            ]
            axis.errorbar(
                rates,
                [mean(each) for each in values],
                [stdev(each) if len(each) > 1 else 0.0 for each in values],
                color=_COLOURS[(place if len(settings) == 1 else number) % len(_COLOURS)],
                linestyle=_LINES[number // len(_COLOURS) % len(_LINES)],
                marker="o",
                markersize=4,
                label=setting if place == 0 and len(settings) > 1 else None,
            )
        axis.set_xscale("log")
        axis.set_xticks(every, [f"{rate:g}" for rate in every], fontsize=9)
        axis.minorticks_off()
        axis.set_xlabel("learning rate")
        axis.set_title(label, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    if len(settings) > 1:
        figure.legend(frameon=False, loc="outside upper center", ncols=min(5, len(settings)))
