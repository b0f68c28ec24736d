"""What ``lightning-robust audit`` does: model and data by name, the audit, its page."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_robust.auditing.looking import Data, loaders_of
from lightning_robust.auditing.measuring import Audit, Inference, audit
from lightning_robust.auditing.sources import (
    COLOURED_DIGITS,
    data_from,
    image_transform,
    model_from,
    options_of,
)
from lightning_robust.contracts import ContractError, check_integer, targets_of
from lightning_robust.models.classifier import Classifier, SmallConvNet
from lightning_robust.models.xrm import alone, silent
from lightning_robust.randomness import isolated

_DEMO_EPOCHS = 40


def run(
    *,
    model: str | None,
    checkpoint: Path | None,
    data: str,
    groups: str | None,
    attributes: str | None,
    infer: Inference | None,
    head: str | None,
    image_size: int | None,
    min_count: int,
    xrm_epochs: int,
    seed: int,
    output: Path,
    options: Sequence[str] = (),
) -> Audit:
    """Audit, print a summary, and write the page and the table.

    Args:
        model: ``timm:NAME`` or a class path; ``None`` trains a small network on coloured digits.
        checkpoint: The model's weights.
        data: A class path, a folder of images, or ``coloured-digits``.
        groups: A file of known groups.
        attributes: A file of attributes.
        infer: How groups are inferred.
        head: The module that returns the logits.
        image_size: Of a folder's images.
        min_count: Smaller groups come last.
        xrm_epochs: Of the twins.
        seed: Of clustering, twins, and the small network.
        output: The folder to write to.
        options: ``--model.NAME=VALUE`` and ``--data.NAME=VALUE``.

    Raises:
        ContractError: Something is refused; nothing is written then.
    """
    check_integer("seed", seed)
    if image_size is not None:
        check_integer("image_size", image_size, 1)
    if output.exists() and not output.is_dir():
        raise ContractError(f"output={str(output)!r} is a file; name a folder")
    if model is None and (data != COLOURED_DIGITS or checkpoint is not None):
        raise ContractError(
            "--model is needed: a class path, as in package.module.Class, or timm:NAME"
        )
    sys.path.insert(0, os.getcwd())  # as `python -m` has it: the user's own modules
    of_model, of_data = (options_of(options, f"--{kind}.") for kind in ("model", "data"))
    transform = _Transform()  # what a folder's images go through hangs on the model
    found, data_name, class_names = data_from(data, of_data, transform)
    network = (
        _demo_network(found, seed)
        if model is None
        else model_from(model, checkpoint, of_model, lambda: _num_classes(found))
    )
    transform.chosen = image_transform(network, image_size)
    print(f"auditing {model or 'a small network'} on {data_name}")
    report = audit(
        network,
        found,
        infer=infer or ("spare" if model else "xrm"),
        groups=groups,
        attributes=attributes,
        class_names=class_names,
        model_name=model.split(":")[-1].split(".")[-1] if model else "A small network",
        data_name=data_name,
        head=head,
        min_count=min_count,
        xrm_epochs=xrm_epochs,
        seed=seed,
    )
    print(f"\n{report}")
    for note in report.notes:
        print(f"\nNote: {note}")
    page = report.write(output)
    print(f"\nWrote {page} and {page.with_name('groups.csv')}")
    return report


class _Transform:
    """A transform that is chosen later."""

    chosen: Callable[[Any], Any]

    def __call__(self, picture: Any) -> Any:
        return self.chosen(picture)


def _num_classes(data: Data) -> int:
    loaders = loaders_of(data, batch_size=1)
    return 1 + max(int(targets_of(loader.dataset).max()) for loader in loaders.values())


def _demo_network(data: Any, seed: int) -> nn.Module:
    """A small network, trained without any care on coloured digits: some four seconds."""
    print(f"training a small network for {_DEMO_EPOCHS} epochs, to have a model to audit")
    with isolated(), silent():
        torch.manual_seed(seed)
        module = Classifier(SmallConvNet())
        Trainer(max_epochs=_DEMO_EPOCHS, **alone()).fit(module, data)
    return module
