"""Waterbirds: birds cut out and put before land or water, which mostly fits the bird."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.transforms import v2

from lightning_robust.contracts import check_bool, check_choice
from lightning_robust.data._datamodule import SPLITS, Split
from lightning_robust.data._images import ImageFiles, ImageFilesDataModule, ImageFormat
from lightning_robust.data._sources import Source, read_columns, whole_numbers

_FOLDER = "waterbird_complete95_forest2water2"

SOURCE = Source(
    name="Waterbirds",
    address="https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz",
    place=f"unpack it in the root, so that there is {_FOLDER}/metadata.csv",
    licence="non-commercial research and education only (CUB-200-2011 and Places)",
    archive="https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz",
)

LAYOUTS = (
    "waterbirds_v1.0/metadata.csv",  # WILDS
    f"{_FOLDER}/metadata.csv",  # the archive, unpacked
    f"cub/data/{_FOLDER}/metadata.csv",  # group_DRO, from its root
    f"data/{_FOLDER}/metadata.csv",  # group_DRO, from its folder cub
    "waterbirds/metadata_waterbirds.csv",  # SubpopBench
    "metadata_waterbirds.csv",
    f"waterbirds/{_FOLDER}/metadata.csv",
    "metadata.csv",  # the root is the folder itself
)
"""The file that tells each layout, below the root, in the order in which they are tried."""


class Waterbirds(ImageFiles):
    """Landbirds and waterbirds before land or water: 11,788 photographs, 4 groups.

    Birds of CUB-200-2011 (Wah et al., 2011) on backgrounds of Places (Zhou et al., 2017), made by
    Sagawa et al. (ICLR 2020, https://arxiv.org/abs/1911.08731). The folders of WILDS, group_DRO and
    SubpopBench are found by themselves, and so is the unpacked archive. Images of each group:

    ====== ============== =============== =============== ================
    split  landbird, land landbird, water waterbird, land waterbird, water
    ====== ============== =============== =============== ================
    train           3,498             184              56            1,057
    val               467             466             133              133
    test            2,255           2,255             642              642
    ====== ============== =============== =============== ================

    Licence: non-commercial research and education. No checksum of the archive is published.

    Args:
        root: Folder that holds one of the layouts of ``LAYOUTS``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        augment: Random parts of .7 to 1 of the image, mirrored half of the time, as in group_DRO;
            else the image is resized to a square and cropped to its central 87.5 %.
        image_size: Height and width in pixels; ``None`` takes the model's, or 224.
        timm_model: Name of the timm model whose data config is wanted.

    Attributes:
        targets: (n,) int64, 1 for waterbirds.
        groups: (n,) int64, ``2 * target + (the background is water)``.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    group_names = ("landbird_land", "landbird_water", "waterbird_land", "waterbird_water")

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
        if table.name == "metadata.csv":
            folder, names = table.parent, ("img_filename", "split", "y", "place")
        else:
            folder, names = table.parent / _FOLDER, ("filename", "split", "y", "a")
        files, splits, y, place = read_columns(table, names).values()
        own = whole_numbers(splits, f"{names[1]} of {table}", (0, 1, 2)) == SPLITS.index(split)
        targets = whole_numbers(y, f"{names[2]} of {table}", (0, 1))[own]
        water = whole_numbers(place, f"{names[3]} of {table}", (0, 1))[own]
        side = round(expects.size / 0.875)
        super().__init__(
            folder,
            [files[i] for i in torch.nonzero(own).flatten().tolist()],
            targets,
            2 * targets + water,
            self.group_names,
            expects.tensor(v2.Resize((side, side), expects.mode), v2.CenterCrop(expects.size)),
            expects.resized_crop((0.7, 1.0)) if augment else None,
        )
        self.check_files(SOURCE, root)


class WaterbirdsDataModule(ImageFilesDataModule):
    """The three splits of :class:`Waterbirds` as loaders."""

    source, layouts, dataset = SOURCE, LAYOUTS, Waterbirds
