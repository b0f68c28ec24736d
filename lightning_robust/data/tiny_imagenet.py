"""TinyImageNet: 200 classes of ImageNet at 64 by 64 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_robust.contracts import (
    ContractError,
    check_bool,
    check_choice,
    check_in_range,
    check_integer,
)
from lightning_robust.data._datamodule import SPLITS, Split
from lightning_robust.data._draws import held_out as hold_out
from lightning_robust.data._images import (
    ImageFiles,
    ImageFilesDataModule,
    ImageFormat,
    image_folder,
)
from lightning_robust.data._sources import Source

SOURCE = Source(
    name="TinyImageNet",
    address="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    place="unpack it in the root, so that there is tiny-imagenet-200/wnids.txt",
    licence="that of ImageNet: non-commercial research and education only",
    archive="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    md5="90528d7ca1a48142e341f4ef8d21d0de",
)

LAYOUTS = ("tiny-imagenet-200/wnids.txt", "wnids.txt")
"""The file that tells each layout, below the root, in the order in which they are tried."""


class TinyImageNet(ImageFiles):
    """Small photographs of 200 classes: 100,000 for training and 10,000 for testing.

    A part of ImageNet made for Stanford's course CS231n; 500 training images and 50 others a class.
    Used for CREST and EPIC (Tables 2.1 and 4.3 of the thesis). The published test images have no
    labels, so that, as everywhere, the published *validation* images are the test split. They are
    found both as published (``val/images`` and ``val/val_annotations.txt``) and sorted into folders
    (``val/<class>``).

    Licence: that of ImageNet, non-commercial research and education.

    Args:
        root: Folder that holds ``tiny-imagenet-200``, or is it.
        split: ``"train"``, ``"val"`` or ``"test"``.
        augment: Images moved by up to four pixels, and mirrored half of the time.
        image_size: Height and width in pixels; ``None`` takes the model's, or 64.
        timm_model: Name of the timm model whose data config is wanted.
        held_out: Share of each training class that is the validation split; at 0 the validation
            split is the test split: choose nothing by it.
        data_seed: Draws who is held out.

    Attributes:
        targets: (n,) int64, the place of the class in ``wnids.txt``, sorted.
        groups: (n,) int64, the same as the targets.
        group_names: WordNet ids of the classes.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Split = "train",
        *,
        augment: bool = False,
        image_size: int | None = None,
        timm_model: str | None = None,
        held_out: float = 0.0,
        data_seed: int = 0,
    ) -> None:
        check_choice("split", split, SPLITS)
        check_bool("augment", augment)
        check_in_range("held_out", held_out, 0, 0.9)
        check_integer("data_seed", data_seed)
        expects = ImageFormat.of(image_size, timm_model, default=64)
        folder = SOURCE.find(Path(root).expanduser(), LAYOUTS).parent
        names = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())
        numbers = {name: number for number, name in enumerate(names)}
        if split == "train" or (split == "val" and held_out > 0):
            files, targets = _folders(root, folder / "train", numbers)
            held = hold_out(targets, held_out, data_seed)
            chosen = (held if split == "val" else ~held).nonzero().flatten()
            files, targets = [f"train/{files[i]}" for i in chosen.tolist()], targets[chosen]
        else:
            files, targets = _published_validation(root, folder, numbers)
        resize = v2.Resize((expects.size, expects.size), expects.mode)
        moved = v2.RandomCrop(expects.size, expects.size // 16)
        super().__init__(
            folder,
            files,
            targets,
            targets.clone(),
            names,
            expects.tensor(resize),
            expects.tensor(resize, moved, v2.RandomHorizontalFlip()) if augment else None,
        )
        self.check_files(SOURCE, root)


class TinyImageNetDataModule(ImageFilesDataModule):
    """The splits of :class:`TinyImageNet` as loaders.

    Args:
        root: Folder that holds ``tiny-imagenet-200``, or is it.
        held_out: Share of each training class that is the validation split; at 0 the validation
            split is the test split: choose nothing by it.
        data_seed: Draws who is held out.
        settings: ``augment``, ``image_size``, ``timm_model``, ``download``, ``batch_size``,
            ``eval_batch_size``, ``num_workers`` and ``seed``, as for every data set of image files.

    Raises:
        ContractError: If an argument is refused; in :meth:`setup`, if files are missing.
    """

    source, layouts, dataset = SOURCE, LAYOUTS, TinyImageNet

    def __init__(
        self,
        root: str | Path = "data",
        *,
        held_out: float = 0.0,
        data_seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        check_in_range("held_out", held_out, 0, 0.9)
        check_integer("data_seed", data_seed)
        self.held_out = held_out
        self.data_seed = data_seed

    def settings(self) -> dict[str, Any]:
        """Also who is held out."""
        return {"held_out": self.held_out, "data_seed": self.data_seed}


def _folders(root: str | Path, folder: Path, numbers: dict[str, int]) -> tuple[list[str], Tensor]:
    try:
        return image_folder(folder, numbers)
    except FileNotFoundError as error:
        raise SOURCE.missing(root, [f"a folder of images for each class in {folder}"]) from error


def _published_validation(
    root: str | Path, folder: Path, numbers: dict[str, int]
) -> tuple[list[str], Tensor]:
    """Names of the files, relative to ``folder``, and their classes (n,)."""
    table = folder / "val" / "val_annotations.txt"
    if not (table.is_file() and (folder / "val" / "images").is_dir()):
        files, targets = _folders(root, folder / "val", numbers)
        return [f"val/{file}" for file in files], targets
    files, labels = _annotations(table)
    unknown = [label for label in labels if label not in numbers]
    if unknown:
        raise ContractError(f"{table} names {unknown[0]}, which wnids.txt does not; get both anew")
    return [f"val/images/{file}" for file in files], torch.tensor([numbers[la] for la in labels])


def _annotations(table: Path) -> tuple[list[str], list[str]]:
    """Files and WordNet ids: the first two of six columns, without a header."""
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines() if line]
    return [row[0] for row in rows], [row[1] for row in rows]
