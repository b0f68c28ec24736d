"""What pictures show: attributes that can be measured, and tables of attributes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.contracts import ContractError, Groups, GroupsLike, resolve_groups

AttributesLike: TypeAlias = Mapping[str, GroupsLike] | str | Path

_HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
_BOOKKEEPING = ("index", "split")


def picture_attributes(pixels: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Simple attributes of pictures: their dominant hue, and extreme brightness or contrast.

    The dominant hue is that of the mean colour, weighted by how colourful a pixel is, in six
    sectors of 60 degrees; a picture whose mean chroma is below .05 is grey. Bright, dark, and of
    high or low contrast are the outer tenths of the pictures at hand.

    Args:
        pixels: (n, 3, h, w) in [0, 1].

    Returns:
        (n, A) bool, and the A names.

    Example:
        >>> red, grey = torch.tensor([1.0, 0.1, 0.0]), torch.full((3,), 0.5)
        >>> pixels = torch.stack([red, grey]).view(2, 3, 1, 1)
        >>> shown, names = picture_attributes(pixels)
        >>> [names[i] for i in shown[0].nonzero().flatten()]
        ['hue: red']
        >>> [names[i] for i in shown[1].nonzero().flatten()]
        ['grey']
    """
    red, green, blue = pixels.double().unbind(1)
    high, low = pixels.double().amax(1), pixels.double().amin(1)
    chroma = (high - low).mean((1, 2))
    # Opponent axes: their angle is the hue, and their length the chroma, of the mean colour.
    across = (red - (green + blue) / 2).mean((1, 2))
    along = (3**0.5 / 2 * (green - blue)).mean((1, 2))
    sector = (torch.atan2(along, across) / (torch.pi / 3)).round().long() % 6
    colourful = chroma >= 0.05
    columns = {f"hue: {name}": colourful & (sector == i) for i, name in enumerate(_HUES)}
    columns["grey"] = ~colourful
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    for words, values in (
        (("dark", "bright"), luminance.mean((1, 2))),
        (("low contrast", "high contrast"), luminance.flatten(1).std(1, correction=0)),
    ):
        lowest, highest = values.quantile(0.1), values.quantile(0.9)
        if highest > lowest:
            columns[words[0]], columns[words[1]] = values <= lowest, values >= highest
    present = {name: shown for name, shown in columns.items() if bool(shown.any())}
    if len(pixels) < 10:  # tenths of a few pictures say nothing
        present = {name: shown for name, shown in present.items() if name in list(columns)[:7]}
    return torch.stack(list(present.values()), 1), tuple(present)


def annotated_attributes(
    attributes: AttributesLike, dataset: Dataset[Any], split: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Attributes from a table: every value of a column is an attribute of its own.

    A column of zeros and ones is one attribute, of the column's name.

    Args:
        attributes: By name, the value of each example: what ``groups=`` takes; or a CSV file,
            of which all columns but ``index`` and ``split`` are read.
        dataset: The data set described, n examples.
        split: Whose rows of the file are wanted.

    Returns:
        (n, A) bool, and the A names.

    Raises:
        ContractError: The table does not fit the data set.

    Example:
        >>> table = {"water": [0, 1], "place": Groups.from_ids([1, 0], ["city", "sea"])}
        >>> annotated_attributes(table, ["a", "b"], "val")
        (tensor([[False, False,  True],
                [ True,  True, False]]), ('water', 'place=city', 'place=sea'))
    """
    if isinstance(attributes, str | Path):
        path = Path(attributes).expanduser()
        columns = {
            name: resolve_groups(path, dataset, split=split, columns=name) for name in _header(path)
        }
    else:
        columns = {name: resolve_groups(values, dataset) for name, values in attributes.items()}
    shown: list[Tensor] = []
    names: list[str] = []
    for column, values in columns.items():
        if values.num_groups <= 2 and values.names == ("0", "1")[: values.num_groups]:
            shown.append(values.ids == 1)
            names.append(column)
        else:
            shown += [values.ids == i for i in range(values.num_groups)]
            names += [f"{column}={name}" for name in values.names]
    return torch.stack(shown, 1), tuple(names)


def group_attributes(groups: Groups, targets: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """The groups of the data as attributes, where they cut across classes.

    Example:
        >>> groups = Groups.from_ids([0, 1, 0, 1], names=["land", "water"])
        >>> group_attributes(groups, torch.tensor([0, 0, 1, 1]))[1]
        ('land', 'water')
        >>> group_attributes(groups, torch.tensor([0, 1, 0, 1]))[1]
        ()
    """
    crossing = [
        group
        for group in range(groups.num_groups)
        if len(targets[groups.ids == group].unique()) > 1
    ]
    shown = torch.stack([groups.ids == group for group in range(groups.num_groups)], 1)
    return shown[:, crossing], tuple(groups.names[group] for group in crossing)


def _header(path: Path) -> Sequence[str]:
    if path.suffix.lower() != ".csv" or not path.is_file():
        raise ContractError(f"attributes={str(path)!r} must be an existing CSV file")
    with path.open(newline="", encoding="utf-8-sig") as file:
        names = [name.strip() for name in next(csv.reader(file), [])]
    columns = [name for name in names if name not in _BOOKKEEPING]
    if not columns:
        raise ContractError(f"attributes={str(path)!r} has no column beside index and split")
    return columns
