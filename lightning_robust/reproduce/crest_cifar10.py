"""CREST, Tables 2.1 and 2.2: ResNet-20 on CIFAR-10 under a tenth of the training budget.

Setting of the thesis, Section 2.5: SGD with momentum .9 and weight decay 1e-4, batches of 128,
learning rate .1, warmed up over the first tenth of training and divided by 10 after 60 and 85 % of
it; 200 epochs of all examples, or as many steps as a tenth of these have, for random batches,
CRAIG's coresets of a tenth an epoch, and CREST (tau .05, h 1, r 1 %). Measured are the accuracy on
the test set, its relative error beside full training, and CREST's time for selecting,
approximating and checking, in percent of the whole.

The paper's relative errors (Table 2.1, ResNet-20) are not repeated here, where nothing has been run
yet: it needs the data set, which is not downloaded, and a GPU. ``--data`` names the folder that
holds ``cifar-10-batches-py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from lightning_robust import CRAIG, CREST, RandomSubset
from lightning_robust.contracts import check_choice, check_integer
from lightning_robust.data import CIFAR
from lightning_robust.models.resnet20 import ResNet20
from lightning_robust.models.xrm import alone, silent
from lightning_robust.randomness import isolated
from lightning_robust.reproduce.report import aligned, check_run, in_percent, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS, BATCH, FRACTION = 200, 128, 0.1

METHODS: dict[str, Callable[[int], list[Callback]]] = {
    "full": lambda seed: [],
    "random": lambda seed: [RandomSubset(FRACTION, redraw=True, seed=seed)],
    "CRAIG": lambda seed: [CRAIG(FRACTION)],
    "CREST": lambda seed: [CREST(FRACTION, threshold=0.05, seed=seed)],
}
"""The callbacks of each row, made anew for each seed."""


@dataclass(frozen=True)
class Run:
    """One training with one seed.

    Args:
        method: A key of ``METHODS``.
        seed: Seed of initial weights, augmentation and draws.
        acc: On the test set, a fraction.
        seconds: Wall-clock time of training.
        parts: Of these, CREST's selection, approximation and check.
    """

    method: str
    seed: int
    acc: float
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)


class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory, augmented by the module, so that observations see them as they are.

    Args:
        images: (n, 3, 32, 32) float32, standardised.
        targets: (n,) int64.
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image and its class."""
        return self.images[index], int(self.targets[index])


def load(data: Path) -> tuple[Images, Images]:
    """The training and the test images of CIFAR-10, standardised by channel.

    Raises:
        ContractError: The files are not in the folder.
    """
    splits = [CIFAR(data, split) for split in ("train", "test")]
    images = [split.images.float() / 255 for split in splits]
    centre = images[0].mean((0, 2, 3), keepdim=True)
    scale = images[0].std((0, 2, 3), keepdim=True)
    train, test = (
        Images((x - centre) / scale, s.targets) for x, s in zip(images, splits, strict=True)
    )
    return train, test


class Module(LightningModule):
    """ResNet-20 with the paper's schedule, crops and flips.

    Args:
        network: The classifier.
        steps: Of the whole training.
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network, self.steps = network, steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of the augmented batch; an observation sees it as it is."""
        images, targets = batch
        return F.cross_entropy(
            self.network(augmented(images) if self.training else images), targets
        )

    def configure_optimizers(self) -> Any:
        """SGD, warmed up, and divided by 10 twice."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        steps = self.steps

        def factor(step: int) -> float:
            done = step / steps
            return min(1.0, 10 * (step + 1) / steps) * 0.1 ** ((done >= 0.6) + (done >= 0.85))

        schedule = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def augmented(images: Tensor) -> Tensor:
    """Each image moved by up to four pixels, and half of them mirrored; (n, 3, H, W)."""
    n, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    rows = torch.randint(9, (n, 1), device=images.device) + torch.arange(
        height, device=images.device
    )
    columns = torch.randint(9, (n, 1), device=images.device) + torch.arange(
        width, device=images.device
    )
    flip = torch.rand(n, 1, device=images.device) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    number = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None]].permute(
        0, 3, 1, 2
    )


def train(
    method: str,
    seed: int = 0,
    *,
    splits: tuple[Images, Images],
    epochs: int = EPOCHS,
) -> Run:
    """Train and test one method with one seed.

    Args:
        method: A key of ``METHODS``.
        seed: Seed of initial weights, augmentation and draws.
        splits: Training and test images.
        epochs: Of all examples, or of a tenth of them.

    Raises:
        ContractError: If an argument is refused.
    """
    check_choice("method", method, tuple(METHODS))
    check_integer("seed", seed)
    check_integer("epochs", epochs, 1)
    data, test = splits
    share = 1.0 if method == "full" else FRACTION
    steps = epochs * max(1, int(share * len(data) / BATCH))
    callbacks = METHODS[method](seed)
    with isolated(), silent():
        torch.manual_seed(seed)
        module = Module(ResNet20(), steps)
        start = time.perf_counter()
        Trainer(max_epochs=-1, max_steps=steps, callbacks=callbacks, **alone()).fit(
            module, DataLoader(data, BATCH, shuffle=True, drop_last=True)
        )
        seconds = time.perf_counter() - start
        module.eval()
        with torch.no_grad():
            right = [
                module.network(images).argmax(1) == targets
                for images, targets in zip(
                    test.images.split(500), test.targets.split(500), strict=True
                )
            ]
    crest = next((callback for callback in callbacks if isinstance(callback, CREST)), None)
    return Run(
        method=method,
        seed=seed,
        acc=float(torch.cat(right).float().mean()),
        seconds=seconds,
        parts={} if crest is None else dict(crest.seconds),
    )


def run(
    seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None, data: Path = Path("data")
) -> list[Run]:
    """Train each method with each seed, print a table, and draw it.

    Args:
        seeds: Seeds of initial weights, augmentation and draws.
        output: Folder for ``crest-cifar10.json`` and ``.png``, made if need be; ``None`` writes
            nothing.
        data: Folder that holds ``cifar-10-batches-py``.

    Raises:
        ContractError: If there is no seed, or no data.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    splits = load(data)
    runs = []
    for method in METHODS:
        for seed in seeds:
            runs.append(train(method, seed, splits=splits))
            print(f"{method:<6}  seed {seed}   {100 * runs[-1].acc:5.1f}", flush=True)
    print(f"\n{table(runs)}")
    if output is not None:
        write("crest-cifar10", runs, output, partial(plot, runs))
    return runs


def table(runs: Sequence[Run]) -> str:
    """Accuracy, relative error and time of each method; the parts of CREST's.

    Example:
        >>> print(table([Run("full", 0, 0.9, 50.0), Run("CREST", 0, 0.81, 10.0, {"check": 1.0})]))
        method  test accuracy  relative error  seconds  check
        full    90.0           0.0             50.0
        CREST   81.0           10.0            10.0     10.0 %
    """
    parts = list(dict.fromkeys(part for run in runs for part in run.parts))
    rows = [["method", "test accuracy", "relative error", "seconds", *parts]]
    full = [run.acc for run in runs if run.method == "full"]
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        accs, seconds = [run.acc for run in own], mean(run.seconds for run in own)
        error = f"{100 * abs(mean(accs) - mean(full)) / mean(full):.1f}" if full else "-"
        shares = [
            f"{100 * mean(run.parts[part] for run in own) / seconds:.1f} %" if own[0].parts else ""
            for part in parts
        ]
        rows.append([method, in_percent(accs), error, f"{seconds:.1f}", *shares])
    return aligned(rows)


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Accuracy against time, as in Figure 2.2."""
    figure.set_size_inches(4.6, 3.4)
    axis = figure.subplots()
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        axis.plot([run.seconds for run in own], [100 * run.acc for run in own], "o", label=method)
    axis.set_xscale("log")
    axis.set_xlabel("seconds")
    axis.set_ylabel("test accuracy (%)")
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
