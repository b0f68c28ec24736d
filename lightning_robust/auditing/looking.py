"""What a trained model makes of data sets, outside any fit of the user's."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_robust.contracts import ContractError, targets_of
from lightning_robust.models.classifier import Classifier
from lightning_robust.models.xrm import alone, silent
from lightning_robust.observing import Observation, Observer
from lightning_robust.randomness import isolated
from lightning_robust.steering import HeadHook, find_head

Data = LightningDataModule | Dataset[Any] | Mapping[str, Dataset[Any]]
"""What can be audited: a data module, one data set, or data sets by split."""

_SPLITS = ("train", "val", "test")


def is_lightning(value: object, kind: str) -> bool:
    """Whether something is a ``LightningModule`` or ``LightningDataModule`` of either package.

    Example:
        >>> is_lightning(nn.Linear(1, 1), "LightningModule")
        False
    """
    return any(
        base.__name__ == kind and base.__module__.startswith(("lightning.", "pytorch_lightning."))
        for base in type(value).__mro__
    )


def loaders_of(data: Data, batch_size: int) -> dict[str, DataLoader[Any]]:
    """The loader of each split, whose data set, ``collate_fn`` and workers are used.

    A data module is asked for its training and validation loaders, and for its test loader where
    it has no validation loader. One data set alone is the split ``"train"``.

    Raises:
        ContractError: There is no split, a name is unknown, or a loader is no ``DataLoader``.
    """
    if is_lightning(data, "LightningDataModule"):
        return _loaders_of_datamodule(cast(LightningDataModule, data))
    splits = data if isinstance(data, Mapping) else {"train": cast(Dataset[Any], data)}
    unknown = [name for name in splits if name not in _SPLITS]
    if unknown or not splits:
        raise ContractError(
            f"data must hold data sets by split, {', '.join(_SPLITS)}, got {list(splits)}"
        )
    return {name: DataLoader(splits[name], batch_size) for name in _SPLITS if name in splits}


def _loaders_of_datamodule(datamodule: LightningDataModule) -> dict[str, DataLoader[Any]]:
    datamodule.prepare_data()
    datamodule.setup("fit")
    found = {
        "train": _loader(datamodule, "train_dataloader"),
        "val": _loader(datamodule, "val_dataloader"),
    }
    if found["val"] is None:
        datamodule.setup("test")
        found["test"] = _loader(datamodule, "test_dataloader")
    loaders = {name: loader for name, loader in found.items() if loader is not None}
    if not loaders:
        raise ContractError(f"{type(datamodule).__name__} has no train, val or test DataLoader")
    return loaders


def _loader(datamodule: LightningDataModule, hook: str) -> DataLoader[Any] | None:
    defined = getattr(type(datamodule), hook)
    if defined.__module__.startswith(("lightning.", "pytorch_lightning.")):
        return None
    loader = getattr(datamodule, hook)()
    if isinstance(loader, list | tuple) and loader:  # the first of several validation sets
        loader = loader[0]
    if not isinstance(loader, DataLoader):
        raise ContractError(
            f"{hook} of {type(datamodule).__name__} returned a {type(loader).__name__}; an audit "
            "needs a DataLoader of a map-style data set"
        )
    return loader


def observe_splits(
    model: nn.Module, data: Data, loaders: Mapping[str, DataLoader[Any]], head: str | None
) -> tuple[dict[str, Observation], str]:
    """Logits and features of every example of every split, in order, and the head's name.

    A module's own ``training_step`` is run up to the head, in evaluation mode, so batches may look
    as they like; a plain network gets the first part of a batch. The model is left as found.

    Raises:
        ContractError: The head is not found, or outputs are not finite.
    """
    module: Any = model if is_lightning(model, "LightningModule") else Classifier(model)
    package, settings = "lightning.pytorch", alone()
    if _is_of_pytorch_lightning(module):
        package = "pytorch_lightning"
        del settings["plugins"]  # of the other package
    look = _Look(loaders, head)
    first = next(iter(loaders.values()))
    with (
        isolated(),
        silent(),
        warnings.catch_warnings(),
        _instead(module, "predict_step", lambda *_: None),
    ):
        trainer: Trainer = importlib.import_module(package).Trainer(callbacks=[look], **settings)
        warnings.filterwarnings("ignore", message="predict returned None")
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        device = module.device
        try:
            one = DataLoader(Subset(first.dataset, [0]), collate_fn=first.collate_fn)
            if is_lightning(data, "LightningDataModule"):  # its transfer hooks belong to the batch
                with _instead(data, "predict_dataloader", lambda: one):
                    datamodule = cast(LightningDataModule, data)
                    trainer.predict(module, datamodule=datamodule, return_predictions=False)
            else:
                trainer.predict(module, one, return_predictions=False)
        finally:
            module.to(device)
    return look.seen, look.head_name


class _Look(Callback):
    """Observes as soon as a Trainer has the module on its device."""

    def __init__(self, loaders: Mapping[str, DataLoader[Any]], head: str | None) -> None:
        self.loaders, self.head = loaders, head
        self.seen: dict[str, Observation] = {}
        self.head_name = ""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        targets = {name: targets_of(loader.dataset) for name, loader in self.loaders.items()}
        num_classes = 1 + max(int(of_split.max()) for of_split in targets.values())
        first = next(iter(self.loaders.values()))
        probe = Observer(trainer, pl_module, HeadHook(nn.Identity()), first)
        self.head_name, head = find_head(
            pl_module,
            num_classes,
            head=self.head,
            last_to_run=lambda candidates: probe.last_to_run(first.dataset, candidates),
        )
        with HeadHook(head) as hook:
            for name, loader in self.loaders.items():
                observer = Observer(trainer, pl_module, hook, loader)
                wanted = ("logits", "features")
                self.seen[name] = observer(loader.dataset, targets[name], wanted)


def _is_of_pytorch_lightning(module: object) -> bool:
    return any(base.__module__.startswith("pytorch_lightning.") for base in type(module).__mro__)


def network_of(model: nn.Module) -> nn.Module:
    """A copy-able network that maps inputs to logits, for twins that are trained anew.

    Raises:
        ContractError: The module has no ``forward`` of its own.
    """
    if is_lightning(model, "LightningModule") and not _has_forward(model):
        raise ContractError(
            f"infer='xrm' trains copies of the network, and {type(model).__name__} has no forward "
            "that maps inputs to logits; pass the network itself, or infer='spare'"
        )
    return _Forward(model)


def _has_forward(model: nn.Module) -> bool:
    return not type(model).forward.__module__.startswith(("lightning.", "pytorch_lightning."))


class _Forward(nn.Module):
    """A module's ``forward`` without the rest of it: a Lightning module cannot hold another."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return self.model(inputs)


def restarted(network: nn.Module, seed: int) -> nn.Module:
    """A copy with the weights of a new network, as far as its layers know how to draw them.

    Raises:
        ContractError: No layer has ``reset_parameters``.
    """
    fresh = copy.deepcopy(network)
    layers = [layer for layer in fresh.modules() if callable(getattr(layer, "reset_parameters", 0))]
    if not layers:
        raise ContractError(
            "infer='xrm' trains copies of the network from the start, and no layer of "
            f"{type(network).__name__} has reset_parameters; use infer='spare'"
        )
    with isolated(seed):
        for layer in layers:
            layer.reset_parameters()  # type: ignore[operator]
    return fresh


@contextmanager
def _instead(owner: object, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Another attribute of one object, for a while."""
    attributes = vars(owner)
    missing = object()
    found = attributes.get(name, missing)
    attributes[name] = value
    try:
        yield
    finally:
        if found is missing:
            del attributes[name]
        else:
            attributes[name] = found
