"""Restricted ImageNet: nine superclasses of ImageNet."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from lightning_robust.contracts import check_bool, check_choice, check_in_range, check_integer
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
    name="ImageNet (ILSVRC 2012)",
    address="https://image-net.org/download-images.php (registration)",
    place="sort the images into train/<WordNet id> and val/<WordNet id> there",
    licence="non-commercial research and education only",
)

RANGES = {
    "dog": (151, 268),
    "cat": (281, 285),
    "frog": (30, 32),
    "turtle": (33, 37),
    "bird": (80, 100),
    "primate": (365, 382),
    "fish": (389, 397),
    "crab": (118, 121),
    "insect": (300, 319),
}
"""First and last ImageNet class of each superclass (Table 9.8 of the thesis)."""


class RestrictedImageNet(ImageFiles):
    """Dogs, cats, frogs, turtles, birds, primates, fish, crabs and insects of ImageNet.

    Tsipras et al. (ICLR 2019, https://arxiv.org/abs/1805.12152), with the superclasses of Table 9.8
    of the thesis: 203 of ImageNet's 1,000 classes, of which 118 are dogs. Groups are not known;
    there SPARE finds insects and frogs on green leaves. ImageNet's validation images, 50 a class,
    are the test split. Only the folders of the 203 classes need to be there.

    Licence: ImageNet's, non-commercial research and education, after registration. Nothing is
    downloaded.

    Args:
        root: Folder that holds ``train`` and ``val``, with a folder for each WordNet id.
        split: ``"train"``, ``"val"`` or ``"test"``.
        augment: Random parts of .08 to 1 of the image, mirrored half of the time; else the central
            square, 256 pixels resized to 224.
        image_size: Height and width in pixels; ``None`` takes the model's, or 224.
        timm_model: Name of the timm model whose data config is wanted.
        held_out: Share of each training superclass that is the validation split; at 0 the
            validation split is the test split: choose nothing by it.
        data_seed: Draws who is held out.

    Attributes:
        targets: (n,) int64, the superclass, in the order of ``RANGES``.
        groups: (n,) int64, the same as the targets.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    group_names = tuple(RANGES)

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
        expects = ImageFormat.of(image_size, timm_model)
        train = split == "train" or (split == "val" and held_out > 0)
        folder = Path(root).expanduser() / ("train" if train else "val")
        try:
            files, targets = image_folder(folder, superclasses())
        except FileNotFoundError as error:
            raise SOURCE.missing(root, [f"{folder.name}/<WordNet id> ({error})"]) from error
        if train:
            held = hold_out(targets, held_out, data_seed)
            chosen = (held if split == "val" else ~held).nonzero().flatten()
            files, targets = [files[i] for i in chosen.tolist()], targets[chosen]
        super().__init__(
            folder,
            files,
            targets,
            targets.clone(),
            self.group_names,
            expects.central(),
            expects.resized_crop((0.08, 1.0)) if augment else None,
        )


class RestrictedImageNetDataModule(ImageFilesDataModule):
    """The splits of :class:`RestrictedImageNet` as loaders.

    Args:
        root: Folder that holds ``train`` and ``val``, with a folder for each WordNet id.
        held_out: Share of each training superclass that is the validation split; at 0 the
            validation split is the test split: choose nothing by it.
        data_seed: Draws who is held out.
        settings: ``augment``, ``image_size``, ``timm_model``, ``batch_size``, ``eval_batch_size``,
            ``num_workers`` and ``seed``, as for every data set of image files.

    Raises:
        ContractError: If an argument is refused; in :meth:`setup`, if files are missing.
    """

    source, dataset = SOURCE, RestrictedImageNet

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


@cache
def superclasses() -> dict[str, int]:
    """The superclass, 0 to 8, of each of the 203 WordNet ids.

    Example:
        >>> len(superclasses()), superclasses()["n02123045"]  # a tabby cat
        (203, 1)
    """
    data: Any = importlib.import_module("timm.data")
    name_of = data.ImageNetInfo().index_to_label_name
    return {
        name_of(index): number
        for number, (first, last) in enumerate(RANGES.values())
        for index in range(first, last + 1)
    }
