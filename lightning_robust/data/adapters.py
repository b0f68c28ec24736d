"""Datasets of other libraries, with targets and groups where this package looks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.contracts import (
    AnnotatedDataset,
    ContractError,
    Groups,
    _combined,
    _levels,
    _parsed,
)


def from_huggingface(
    dataset: Any, *, target: str = "label", groups: str | Sequence[str] | None = None
) -> AnnotatedDataset[Any]:
    """Any dataset of Hugging Face's ``datasets`` whose examples have columns; its items stay.

    Args:
        dataset: A map-style dataset with ``column_names``, n examples.
        target: Column of the class: whole numbers, or strings, numbered in sorted order.
        groups: Column of the group, or several, each combination of whose values that occurs is a
            group; ``None``: there are none.

    Raises:
        ContractError: It is no such dataset, or has no such column.

    Example:
        >>> class Table(list):
        ...     column_names = ["text", "label", "place"]
        ...     def __getitem__(self, key):
        ...         return [row[key] for row in self] if isinstance(key, str) else [*self][key]
        >>> rows = [("a", 1, "sea"), ("b", 0, "land")]
        >>> table = Table(dict(zip(Table.column_names, row)) for row in rows)
        >>> dataset = from_huggingface(table, groups=["label", "place"])
        >>> dataset.targets.tolist(), dataset.groups.tolist(), dataset.group_names
        ([1, 0], [1, 0], ('label=0,place=land', 'label=1,place=sea'))
    """
    found = getattr(dataset, "column_names", None)
    if not isinstance(found, list):
        raise ContractError(
            f"dataset must have columns, as one of the splits of a dataset of Hugging Face has, "
            f"got a {type(dataset).__name__}; take one split of it, not streamed"
        )
    columns = [groups] if isinstance(groups, str) else list(groups or ())
    for name in (target, *columns):
        if name not in found:
            raise ContractError(f"dataset has no column {name!r}, only {found}; name another")
    arrays = {name: np.asarray(dataset[name]) for name in (target, *columns)}
    values = {
        name: _parsed(array if array.dtype.kind in "buif" else array.tolist(), name)
        for name, array in arrays.items()
    }
    classes = values[target]
    targets = classes if isinstance(classes, Tensor) else _levels(classes)[1]
    annotated = _combined({name: values[name] for name in columns}) if columns else None
    return AnnotatedDataset(dataset, targets, annotated)


def from_wilds(subset: Any, *, groups: Sequence[str], pairs: bool = True) -> AnnotatedDataset[Any]:
    """Any split of a dataset of ``wilds`` that has one class an example.

    Ids mean the same in all splits: they are counted on the whole dataset.

    Args:
        subset: What ``get_subset("train")`` returns, n examples, or a whole dataset.
        groups: Metadata fields, such as ``["background", "y"]``: each combination of values is a
            group.
        pairs: Items are (x, y); otherwise (x, y, metadata), as wilds has them.

    Raises:
        ContractError: It is no such dataset, or has no such field.
    """
    needed = ("y_array", "metadata_array", "metadata_fields")
    lacking = [name for name in needed if not hasattr(subset, name)]
    if lacking:
        raise ContractError(
            f"subset must have {', '.join(needed)}, as a dataset of wilds has, got a "
            f"{type(subset).__name__} without {lacking[0]}"
        )
    fields = list(subset.metadata_fields)
    if not groups:
        raise ContractError(f"groups must name at least one metadata field of {fields}")
    for name in groups:
        if name not in fields:
            raise ContractError(f"wilds has no metadata field {name!r} here, only {fields}")
    targets = torch.as_tensor(subset.y_array)
    if targets.is_floating_point() or targets.numel() != len(targets):
        raise ContractError(
            f"subset.y_array must be one class an example, got {tuple(targets.shape)}, "
            f"{targets.dtype}; only classification is meant here"
        )
    whole = torch.as_tensor(getattr(subset, "dataset", subset).metadata_array).long()
    here = torch.as_tensor(subset.metadata_array).long()
    known = getattr(subset, "metadata_map", None) or {}
    ids, names = torch.zeros(len(here), dtype=torch.int64), [""]
    for name in groups:
        place = fields.index(name)
        values = whole[:, place].unique()
        words = known.get(name)
        shown = [str(words[v]).strip() if words is not None else str(v) for v in values.tolist()]
        ids = ids * len(values) + torch.searchsorted(values, here[:, place].contiguous())
        names = [f"{before},{name}={word}" for before in names for word in shown]
    annotated = Groups.from_ids(ids, [name.removeprefix(",") for name in names])
    return AnnotatedDataset(_Pairs(subset) if pairs else subset, targets.flatten(), annotated)


class _Pairs(Dataset[tuple[Any, Any]]):
    """The first two entries of each item."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        x, y, *_ = self.dataset[index]
        return x, y
