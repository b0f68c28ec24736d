"""What a command line names: models, checkpoints and data."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from lightning_robust.auditing.looking import Data, is_lightning
from lightning_robust.contracts import ContractError

COLOURED_DIGITS = "coloured-digits"
TIMM = "timm:"

_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val"}
_SPLIT_FOLDERS["test"] = "test"


def value_of(text: str) -> Any:
    """A value of an option: a Python literal, a class path of a module (made), or the text.

    Example:
        >>> value_of("3"), value_of("[1, 2]"), value_of("true"), value_of("relu")
        (3, [1, 2], True, 'relu')
        >>> type(value_of("torch.nn.ReLU")).__name__
        'ReLU'
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if "." in text and all(part.isidentifier() for part in text.split(".")):
        try:
            found = imported(text)
        except ContractError:
            return text
        return found() if isinstance(found, type) and issubclass(found, nn.Module) else found
    return text


def options_of(words: Sequence[str], prefix: str) -> dict[str, Any]:
    """Options such as ``--model.NAME=VALUE`` by name, those of one prefix.

    Raises:
        ContractError: One of them is something else.

    Example:
        >>> options_of(["--model.width=3", "--data.seed=1"], "--model.")
        {'width': 3}
    """
    found = {}
    for word in words:
        if word.startswith(prefix):
            name, equals, value = word.removeprefix(prefix).partition("=")
            if not equals or not name.isidentifier():
                raise ContractError(f"{word!r} must be {prefix}NAME=VALUE")
            found[name] = value_of(value)
    return found


def imported(path: str) -> Any:
    """What a dotted path names.

    Raises:
        ContractError: There is no such module or no such name in it.

    Example:
        >>> imported("torch.nn.Linear").__name__
        'Linear'
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise ContractError(f"{path!r} is no class path; write package.module.Class")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ContractError(
            f"{path!r} cannot be imported ({error}); run the command where its module can be, or "
            "set PYTHONPATH"
        ) from error


def model_from(
    name: str,
    checkpoint: Path | None,
    options: Mapping[str, Any],
    num_classes: Callable[[], int],
) -> nn.Module:
    """A model by its name.

    Args:
        name: ``timm:NAME`` or a class path of a LightningModule or a torch module.
        checkpoint: Its weights: a Lightning checkpoint, or a state dict, of the module or of what
            Lightning holds under one attribute (``network.``, ``model.``).
        options: Arguments of its constructor.
        num_classes: Asked for by a timm model without ``num_classes``.

    Raises:
        ContractError: The name, the options or the checkpoint are refused.
    """
    if checkpoint is not None and not checkpoint.is_file():
        raise ContractError(f"checkpoint={str(checkpoint)!r} must be an existing file")
    if name.startswith(TIMM):
        return _loaded(_timm(name.removeprefix(TIMM), options, num_classes), checkpoint)
    kind = imported(name)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ContractError(f"{name!r} must be a LightningModule or a torch module, got {kind!r}")
    if checkpoint is not None and hasattr(kind, "load_from_checkpoint"):
        return _lightning_checkpoint(kind, checkpoint, options)
    try:
        model = kind(**options)
    except TypeError as error:
        raise ContractError(
            f"{name!r} cannot be made ({error}); give its arguments as --model.NAME=VALUE"
        ) from error
    return _loaded(model, checkpoint)


def data_from(
    name: str, options: Mapping[str, Any], transform: Callable[[Any], Any]
) -> tuple[Data, str, tuple[str, ...] | None]:
    """Data by their name.

    Args:
        name: ``coloured-digits``, a folder of images (a folder a class, or first a folder a split:
            train, val, test), or the class path of a LightningDataModule or a data set.
        options: Arguments of its constructor.
        transform: What an image of a folder goes through.

    Returns:
        The data, what they are called, and names of the classes where the data do not know them.

    Raises:
        ContractError: The name or the options are refused.
    """
    if name == COLOURED_DIGITS:
        from lightning_robust.data.coloured_digits import CLASS_NAMES, ColouredDigitsDataModule

        return _made(ColouredDigitsDataModule, options), "coloured digits", CLASS_NAMES
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, transform), path.resolve().name, None
    if "/" in name or "." not in name:
        raise ContractError(
            f"data {name!r} must be {COLOURED_DIGITS}, an existing folder, or a class path; looked "
            f"for {path.absolute()}"
        )
    kind = imported(name)
    data = _made(kind, options)
    if not is_lightning(data, "LightningDataModule") and not isinstance(data, Dataset):
        raise ContractError(
            f"data {name!r} must be a LightningDataModule or a Dataset, got {type(data).__name__}"
        )
    return data, kind.__name__, None


def image_transform(model: nn.Module | None, size: int | None) -> Callable[[Any], Any]:
    """What a picture of a folder goes through: as timm says for its models, else resized."""
    from torchvision.transforms import v2

    if model is not None and hasattr(model, "pretrained_cfg"):
        timm_data = importlib.import_module("timm.data")
        config = timm_data.resolve_model_data_config(model)
        if size is not None:
            config["input_size"] = (3, size, size)
        transform: Callable[[Any], Any] = timm_data.create_transform(**config, is_training=False)
        return transform
    side = size or 224
    resized: Callable[[Any], Any] = v2.Compose(
        [v2.ToImage(), v2.RGB(), v2.Resize((side, side)), v2.ToDtype(torch.float32, scale=True)]
    )
    return resized


def _folder(path: Path, transform: Callable[[Any], Any]) -> dict[str, Dataset[Any]]:
    from torchvision.datasets import ImageFolder

    splits = {
        _SPLIT_FOLDERS[child.name.lower()]: child
        for child in sorted(path.iterdir())
        if child.is_dir() and child.name.lower() in _SPLIT_FOLDERS
    }
    try:
        found: dict[str, Dataset[Any]] = {
            split: ImageFolder(str(folder), transform)
            for split, folder in (splits or {"train": path}).items()
        }
    except FileNotFoundError as error:
        raise ContractError(
            f"folder {str(path)!r} must hold a folder of images for each class ({error})"
        ) from error
    classes = {split: dataset.classes for split, dataset in found.items()}  # type: ignore[attr-defined]
    if len({tuple(names) for names in classes.values()}) > 1:
        raise ContractError(f"the splits of {str(path)!r} have different classes: {classes}")
    return found


def _made(kind: Any, options: Mapping[str, Any]) -> Any:
    try:
        return kind(**options)
    except TypeError as error:
        raise ContractError(
            f"{kind.__name__} cannot be made ({error}); give its arguments as --data.NAME=VALUE"
        ) from error


def _timm(name: str, options: Mapping[str, Any], num_classes: Callable[[], int]) -> nn.Module:
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:8])
        raise ContractError(f"timm has no model {name!r}; near it are: {near or 'none'}")
    settings = {"num_classes": num_classes(), **options}
    model: nn.Module = timm.create_model(name, **settings)
    return model


def _lightning_checkpoint(kind: Any, checkpoint: Path, options: Mapping[str, Any]) -> nn.Module:
    try:
        model: nn.Module = kind.load_from_checkpoint(checkpoint, map_location="cpu", **options)
    except TypeError as error:
        raise ContractError(
            f"{kind.__name__} cannot be made from {str(checkpoint)!r} ({error}); give the "
            "arguments that the checkpoint does not hold as --model.NAME=VALUE"
        ) from error
    except (KeyError, RuntimeError, OSError, EOFError) as error:
        raise ContractError(
            f"checkpoint={str(checkpoint)!r} does not fit {kind.__name__}: {error}"
        ) from error
    return model


def _loaded(model: nn.Module, checkpoint: Path | None) -> nn.Module:
    """The network with the weights of a state dict, or of a Lightning checkpoint that holds it."""
    if checkpoint is None:
        return model
    contents = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = contents.get("state_dict", contents) if isinstance(contents, dict) else contents
    if not isinstance(weights, dict):
        raise ContractError(f"checkpoint={str(checkpoint)!r} holds no state dict")
    names = set(model.state_dict())
    if not names <= weights.keys():
        for prefix in sorted({name.split(".")[0] + "." for name in weights}):
            inside = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            if names <= inside.keys():
                weights = inside
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ContractError(
            f"checkpoint={str(checkpoint)!r} does not fit {type(model).__name__}: {error}"
        ) from error
    return model
