"""Any images in a folder a class, with a CSV file that tells their groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import find_classes

from lightning_robust.contracts import ContractError, check_bool, check_choice
from lightning_robust.data._datamodule import SPLITS, Split
from lightning_robust.data._images import (
    ImageFiles,
    ImageFilesDataModule,
    ImageFormat,
    image_folder,
)
from lightning_robust.data._sources import Source, read_columns

SOURCE = Source(
    name="a folder of images for each class",
    address="wherever you have them",
    place="sort them into train/<class>, val/<class> and, where you have one, test/<class> there",
    licence="yours",
)


class GroupedImageFolder(ImageFiles):
    """Images as ImageNet's are sorted, and a CSV file with their groups.

    Images are at ``<root>/<split>/<class>/...``; without a folder ``test``, the test split is the
    validation split. Classes are numbered as torchvision's `ImageFolder` does, by name, as the
    training folder has them. The CSV file has a header, a column ``filename`` with the path below
    the root (``train/cat/1.jpg``), and one or more columns of groups. It may be of all splits, and
    may hold more than these images.

    Args:
        root: Folder that holds ``train`` and ``val``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        groups: The CSV file, below the root or anywhere; ``None`` makes classes the groups.
        columns: Its group column, or several: each combination that occurs is a group, such as
            ``"place=water,light=dim"``. Ids count the values that the file has, sorted.
        by_class: Groups are pairs of a class and what the columns say: ``class * m + value``.
        augment: Random parts of .08 to 1 of the image, mirrored half of the time; else the central
            square, resized.
        image_size: Height and width in pixels; ``None`` takes the model's, or 224.
        timm_model: Name of the timm model whose data config is wanted.

    Attributes:
        targets: (n,) int64.
        groups: (n,) int64.
        class_names: The folders' names.

    Raises:
        ContractError: If an argument is refused, files are missing, or an image has no row.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Split = "train",
        *,
        groups: str | None = "groups.csv",
        columns: str | Sequence[str] = "group",
        by_class: bool = False,
        augment: bool = False,
        image_size: int | None = None,
        timm_model: str | None = None,
    ) -> None:
        check_choice("split", split, SPLITS)
        check_bool("by_class", by_class)
        check_bool("augment", augment)
        expects = ImageFormat.of(image_size, timm_model)
        folder = Path(root).expanduser()
        own = "val" if split == "test" and not (folder / "test").is_dir() else split
        try:
            names, numbers = find_classes(str(folder / "train"))
            present = {path.name for path in (folder / own).iterdir() if path.is_dir()}
            known = {name: number for name, number in numbers.items() if name in present}
            if unknown := present - numbers.keys():
                raise ContractError(
                    f"{folder / own} has a class {min(unknown)!r} that train has not; remove it"
                )
            files, targets = image_folder(folder / own, known)
        except FileNotFoundError as error:
            raise SOURCE.missing(root, [f"train/<class> and {own}/<class> ({error})"]) from error
        files = [f"{own}/{file}" for file in files]
        if groups is None:
            ids, group_names = targets.clone(), tuple(names)
        else:
            ids, group_names = _groups(folder / groups, columns, files)
            if by_class:
                ids = len(group_names) * targets + ids
                group_names = tuple(f"{y}_{value}" for y in names for value in group_names)
        self.class_names = tuple(names)
        super().__init__(
            folder,
            files,
            targets,
            ids,
            group_names,
            expects.central(),
            expects.resized_crop((0.08, 1.0)) if augment else None,
        )


class ImageFolderDataModule(ImageFilesDataModule):
    """The splits of :class:`GroupedImageFolder` as loaders.

    Args:
        root: Folder that holds ``train`` and ``val``.
        groups: The CSV file, below the root or anywhere; ``None`` makes classes the groups.
        columns: Its group column, or several.
        by_class: Groups are pairs of a class and what the columns say.
        settings: ``augment``, ``image_size``, ``timm_model``, ``batch_size``, ``eval_batch_size``,
            ``num_workers`` and ``seed``, as for every data set of image files.

    Raises:
        ContractError: If an argument is refused; in :meth:`setup`, if files are missing.
    """

    source, dataset = SOURCE, GroupedImageFolder

    def __init__(
        self,
        root: str | Path = "data",
        *,
        groups: str | None = "groups.csv",
        columns: str | list[str] = "group",
        by_class: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        check_bool("by_class", by_class)
        self.groups = groups
        self.columns = columns
        self.by_class = by_class

    def settings(self) -> dict[str, Any]:
        """Also where groups come from."""
        return {"groups": self.groups, "columns": self.columns, "by_class": self.by_class}


def _groups(
    table: Path, columns: str | Sequence[str], files: list[str]
) -> tuple[Tensor, tuple[str, ...]]:
    """Group of each file (n,), and the names of all groups of the table."""
    wanted = [columns] if isinstance(columns, str) else list(columns)
    if not table.is_file():
        raise ContractError(
            f"groups={str(table)!r} must be an existing file, with columns filename and "
            f"{', '.join(wanted)}; write it, or pass groups=None"
        )
    listed, *values = read_columns(table, ["filename", *wanted]).values()
    repeated, count = Counter(listed).most_common(1)[0] if listed else ("", 0)
    if count > 1:
        raise ContractError(f"{table} names {repeated!r} {count} times; remove all but one row")
    rows = [tuple(_sortable(value) for value in row) for row in zip(*values, strict=True)]
    levels = {row: number for number, row in enumerate(sorted(set(rows)))}
    number_of = {file: levels[row] for file, row in zip(listed, rows, strict=True)}
    if lacking := [file for file in files if file not in number_of]:
        raise ContractError(
            f"{table} has no row for {lacking[0]!r} and {len(lacking) - 1} more; add a row for "
            "each image, its path below the root in column filename"
        )
    names = [
        level[0][1]
        if len(wanted) == 1
        else ",".join(f"{column}={cell[1]}" for column, cell in zip(wanted, level, strict=True))
        for level in levels
    ]
    return torch.tensor([number_of[file] for file in files]), tuple(names)


def _sortable(cell: str) -> tuple[float, str]:
    """Numbers in their order, before words in theirs."""
    text = cell.strip()
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
