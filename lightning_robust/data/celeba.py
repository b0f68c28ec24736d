"""CelebA: is the hair blond? In training it mostly is of women."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from lightning_robust.contracts import ContractError, check_bool, check_choice
from lightning_robust.data._datamodule import SPLITS, Split
from lightning_robust.data._images import ImageFiles, ImageFilesDataModule, ImageFormat
from lightning_robust.data._sources import Source, read_columns, whole_numbers

SOURCE = Source(
    name="CelebA",
    address="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (or Kaggle's "
    "jessicali9530/celeba-dataset)",
    place="put img_align_celeba, list_attr_celeba and list_eval_partition (.txt, or Kaggle's .csv) "
    "into a folder celeba there",
    licence="non-commercial research only",
    fetch=lambda root: datasets.CelebA(root, download=True),  # with checksums; needs gdown
)

_TABLES = ("metadata_celeba.csv", "list_attr_celeba.csv", "list_attr_celeba.txt")
LAYOUTS = tuple(
    f"{folder}{table}"
    for folder in ("celebA_v1.0/", "celebA/data/", "data/", "celeba/", "celebA/", "")
    for table in _TABLES
)
"""The file that tells each layout, below the root, in the order in which they are tried."""


class CelebA(ImageFiles):
    """Faces of celebrities, blond or not, women or men: 202,599 photographs, 4 groups.

    Liu et al. (ICCV 2015), with the class and the attribute of Sagawa et al. (ICLR 2020,
    https://arxiv.org/abs/1911.08731). The folders of WILDS (``celebA_v1.0``), group_DRO
    (``celebA/data``), SubpopBench and torchvision (``celeba``) are found by themselves. Images of
    each group:

    ===== ================= =============== ============= ===========
    split not blond, female not blond, male blond, female blond, male
    ===== ================= =============== ============= ===========
    train            71,629          66,874        22,880       1,387
    val               8,535           8,276         2,874         182
    test              9,767           7,535         2,480         180
    ===== ================= =============== ============= ===========

    Licence: non-commercial research. ``download=True`` uses torchvision, which checks the files and
    needs the package gdown.

    Args:
        root: Folder that holds one of the layouts of ``LAYOUTS``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        augment: Random parts of .7 to 1 of the image, mirrored half of the time, as in group_DRO;
            else the central square, resized.
        image_size: Height and width in pixels; ``None`` takes the model's, or 224.
        timm_model: Name of the timm model whose data config is wanted.

    Attributes:
        targets: (n,) int64, 1 for blond hair.
        groups: (n,) int64, ``2 * target + (annotated as male)``.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    group_names = ("not_blond_female", "not_blond_male", "blond_female", "blond_male")

    def __init__(
        self,
        root: str | Path = "data",
        split: Split = "train",
        *,
        augment: bool = False,
        image_size: int | None = None,
        timm_model: str | None = None,
    ) -> None:
        check_choice("split", split, SPLITS)
        check_bool("augment", augment)
        expects = ImageFormat.of(image_size, timm_model)
        table = SOURCE.find(Path(root).expanduser(), LAYOUTS)
        files, splits, blond, male = _columns(table)
        own = splits == SPLITS.index(split)
        folder = table.parent / "img_align_celeba"
        if (folder / "img_align_celeba").is_dir():  # Kaggle's archive has it twice
            folder = folder / "img_align_celeba"
        super().__init__(
            folder,
            [files[i] for i in torch.nonzero(own).flatten().tolist()],
            blond[own],
            2 * blond[own] + male[own],
            self.group_names,
            expects.tensor(v2.CenterCrop(178), v2.Resize(expects.size, expects.mode)),
            expects.resized_crop((0.7, 1.0), (1.0, 4 / 3)) if augment else None,
        )
        self.check_files(SOURCE, root)


class CelebADataModule(ImageFilesDataModule):
    """The three splits of :class:`CelebA` as loaders."""

    source, layouts, dataset = SOURCE, LAYOUTS, CelebA


def _columns(table: Path) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Names of all files, and the split (0 to 2), blond hair and male of each (n,)."""
    if table.name == "metadata_celeba.csv":
        files, *numbers = read_columns(table, ("filename", "split", "y", "a")).values()
        values = dict(zip(("split", "y", "a"), numbers, strict=True))
        split, blond, male = (
            whole_numbers(column, f"{name} of {table}", (0, 1, 2) if name == "split" else (0, 1))
            for name, column in values.items()
        )
        return files, split, blond, male
    splits = table.with_name(f"list_eval_partition{table.suffix}")
    if not splits.is_file():
        raise SOURCE.missing(table.parent, [splits.name])
    if table.suffix == ".csv":
        files, blonds, males = read_columns(table, ("image_id", "Blond_Hair", "Male")).values()
        named, parts = read_columns(splits, ("image_id", "partition")).values()
    else:
        _, header, *lines = table.read_text(encoding="utf-8").splitlines()
        places = [header.split().index(name) + 1 for name in ("Blond_Hair", "Male")]
        rows = [line.split() for line in lines if line.strip()]
        files, (blonds, males) = [r[0] for r in rows], ([r[p] for r in rows] for p in places)
        pairs = [line.split() for line in splits.read_text(encoding="utf-8").splitlines() if line]
        named, parts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if named != files:
        raise ContractError(f"{splits} does not name the files of {table}; get both anew")
    return (
        files,
        whole_numbers(parts, f"partition of {splits}", (0, 1, 2)),
        whole_numbers(blonds, f"Blond_Hair of {table}", (-1, 0, 1)).clamp(min=0),
        whole_numbers(males, f"Male of {table}", (-1, 0, 1)).clamp(min=0),
    )
