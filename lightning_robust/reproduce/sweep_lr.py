"""What ``lightning-robust sweep-lr`` does: a grid of learning rates for anyone's module and data.

The large-learning-rate analysis of Barsbey et al. (ICCV 2025), Figures 3 to 6, by name: accuracy,
prunability, compressibility, class separation and selectivity against the learning rate, and
momentum, batch size, L1, L2, focal loss, SAM and ASAM beside it.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_robust.auditing.looking import is_lightning
from lightning_robust.auditing.sources import (
    data_from,
    image_transform,
    imported,
    model_from,
    options_of,
)
from lightning_robust.contracts import ContractError, targets_of
from lightning_robust.data.synthetic import ParityBits
from lightning_robust.data.two_cues import TWO_CUES
from lightning_robust.models.classifier import Classifier
from lightning_robust.reproduce.report import check_run, save_figure
from lightning_robust.reproduce.sweep import (
    LearningRateSweep,
    Run,
    Setting,
    draw,
    small_network,
    table,
)

DATA: dict[str, Callable[..., Dataset[Any]]] = {"parity": ParityBits, **TWO_CUES}
"""Name in the command to the data set, which is made with a split."""

LEARNING_RATES = (0.02, 0.05, 0.1, 0.2, 0.5)

_ATTRIBUTED = 200  # test examples whose integrated gradients are taken, where captum is installed

Splits = tuple[Dataset[Any], Dataset[Any]]


def run(
    output: Path,
    *,
    model: str | None = None,
    data: str = "parity",
    learning_rates: Sequence[float] = LEARNING_RATES,
    compared: Mapping[str, Sequence[float]] | None = None,
    batch_size: int = 100,
    max_epochs: int = 500,
    seeds: Sequence[int] = (0,),
    head: str | None = None,
    accelerator: str = "cpu",
    options: Sequence[str] = (),
) -> list[Run]:
    """Train at each learning rate, print a table, write it as CSV, and draw it.

    Runs that are in the table already, from a command that was killed or had fewer rates, settings
    or seeds, are not trained again.

    Args:
        output: Folder for ``sweep-lr.csv``, a row a run, ``sweep-lr.png`` and ``settings.json``.
        model: ``timm:NAME``, or the class path of a LightningModule or torch module; ``None`` takes
            :func:`~lightning_robust.reproduce.sweep.small_network`. What is no LightningModule is
            trained by plain SGD, without momentum and weight decay.
        data: One of ``DATA``, a class path of a LightningDataModule, or of a data set that is made
            with ``"train"`` and ``"test"`` as its first argument, or a folder of images with a
            folder a split. It is measured on the test split, or the validation split if there is
            none.
        learning_rates: Each > 0.
        compared: For arguments of :class:`~lightning_robust.reproduce.sweep.Setting` the values to
            train with at each learning rate, one at a time, besides the model as it is.
        batch_size: Of training, where it is not compared.
        max_epochs: At most so many.
        seeds: Of initial weights and order.
        head: Name of the module that returns the logits; ``None`` finds it.
        accelerator: Lightning's.
        options: ``--model.NAME=VALUE`` and ``--data.NAME=VALUE``.

    Raises:
        ContractError: If something is refused, or the folder holds another sweep.
        ModuleNotFoundError: If matplotlib is missing.
    """
    check_run(seeds, output)
    if output.exists() and not output.is_dir():
        raise ContractError(f"output={str(output)!r} is a file; name a folder")
    if not learning_rates:
        raise ContractError("learning_rates must hold at least one, got none")
    settings = [Setting()] + [
        Setting(**{name: value})  # type: ignore[arg-type]
        for name, values in (compared or {}).items()
        for value in values
    ]
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it: the user's own modules
    of_model, of_data = (options_of(options, f"--{kind}.") for kind in ("model", "data"))
    train, test = _splits(data, of_data)
    make = partial(_module, model, of_model, train)
    attributed = _ATTRIBUTED if find_spec("captum") and _floating(test) else 0
    sweeps = [
        LearningRateSweep(
            make,
            train,
            test,
            batch_size=batch_size,
            max_epochs=max_epochs,
            head=head,
            attributed=attributed,
            setting=setting,
            accelerator=accelerator,
        )
        for setting in settings
    ]
    same = {
        "model": model,
        "data": data,
        "options": sorted(options),
        "batch_size": batch_size,
        "max_epochs": max_epochs,
        "head": head,
        "attributed": attributed,
    }
    _check_same(output, same)
    found = read(output / "sweep-lr.csv")
    done = {(one.setting, one.learning_rate, one.seed) for one in found}
    for seed in seeds:
        for sweep in sweeps:
            for rate in learning_rates:
                if (sweep.setting.name, float(rate), seed) not in done:
                    found += sweep.run([rate], seed)
                    _write(output, found, same)
                    print(found[-1], flush=True)
    print(f"\n{table(found)}")
    if all(one.diverged for one in found):
        print("\nAll runs diverged: nothing to draw. Take smaller learning rates.")
        return found
    save_figure(output / "sweep-lr.png", partial(draw, found))
    print(f"\nWrote {output / 'sweep-lr.csv'} and {output / 'sweep-lr.png'}")
    return found


# --- model and data by name -----------------------------------------------------------------------


def _module(
    name: str | None, options: Mapping[str, Any], train: Dataset[Any], rate: float
) -> LightningModule:
    num_classes = int(targets_of(train).max()) + 1
    if name is None:
        network: nn.Module = small_network(tuple(train[0][0].shape), num_classes)
    else:
        network = model_from(name, None, options, lambda: num_classes)
    if isinstance(network, LightningModule):
        return network
    if is_lightning(network, "LightningModule"):
        raise ContractError(f"{name!r} is a module of pytorch_lightning; import lightning.pytorch")
    return Classifier(network, learning_rate=rate, momentum=0, weight_decay=0)


def _splits(name: str, options: Mapping[str, Any]) -> Splits:
    if name in DATA or _is_dataset(name):
        kind = DATA[name] if name in DATA else imported(name)
        try:
            return kind("train", **options), kind("test", **options)
        except TypeError as error:
            raise ContractError(
                f"data {name!r} cannot be made with a split, 'train' or 'test', as its first "
                f"argument ({error}); give others as --data.NAME=VALUE, or a LightningDataModule"
            ) from error
    if "." not in name and not Path(name).expanduser().is_dir():
        raise ContractError(
            f"data {name!r} must be one of {', '.join(DATA)}, a class path, or a folder of images"
        )
    found, _, _ = data_from(name, options, image_transform(None, None))
    if isinstance(found, LightningDataModule):
        return _of_datamodule(found)
    if not isinstance(found, Mapping) or "train" not in found or len(found) < 2:
        raise ContractError(f"data {name!r} must have the folders train, and test or val")
    return found["train"], found["test" if "test" in found else "val"]


def _is_dataset(name: str) -> bool:
    if "/" in name or "." not in name or Path(name).expanduser().is_dir():
        return False
    kind = imported(name)
    return isinstance(kind, type) and issubclass(kind, Dataset)


def _of_datamodule(datamodule: LightningDataModule) -> Splits:
    datamodule.prepare_data()
    datamodule.setup("fit")
    datamodule.setup("test")
    hooks = ["train_dataloader", "test_dataloader"]
    if type(datamodule).test_dataloader is LightningDataModule.test_dataloader:
        hooks[1] = "val_dataloader"
    loaders = [getattr(datamodule, hook)() for hook in hooks]
    for hook, loader in zip(hooks, loaders, strict=True):
        if not isinstance(loader, DataLoader) or loader.collate_fn is not default_collate:
            raise ContractError(
                f"{hook} of {type(datamodule).__name__} must return a DataLoader without a "
                "collate_fn of its own, over a data set of inputs and targets"
            )
    train, test = (loader.dataset for loader in loaders)
    return train, test


def _floating(dataset: Dataset[Any]) -> bool:
    """Whether its inputs are tensors that can be scaled to zero."""
    inputs = dataset[0][0]
    return isinstance(inputs, torch.Tensor) and inputs.is_floating_point()


# --- files ----------------------------------------------------------------------------------------


def read(path: Path) -> list[Run]:
    """The runs of a table, none if there is no such file.

    Args:
        path: A ``sweep-lr.csv``.
    """
    if not path.is_file():
        return []
    kinds = get_type_hints(Run)
    of_text: dict[type, Callable[[str], Any]] = {bool: lambda text: text == "True"}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Run(**{name: of_text.get(kinds[name], kinds[name])(row[name]) for name in row})
            for row in csv.DictReader(file)
        ]


def _write(folder: Path, runs: Sequence[Run], settings: Mapping[str, Any]) -> None:
    """The table, all at once: whoever is killed leaves the one before, or the whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    unfinished = folder / "sweep-lr.unfinished"
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Run)])
        writer.writeheader()
        writer.writerows(asdict(one) for one in runs)
    unfinished.replace(folder / "sweep-lr.csv")


def _check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that holds the runs of other settings."""
    path = folder / "settings.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
    other = [name for name in settings if before.get(name) != settings[name]]
    if other:
        raise ContractError(
            f"output={str(folder)!r} holds a sweep with another {other[0]}, "
            f"{before.get(other[0])!r} instead of {settings[other[0]]!r}; give another folder"
        )
