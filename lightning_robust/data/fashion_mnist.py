"""FashionMNIST, whole or with classes of unequal size."""

from __future__ import annotations

from pathlib import Path

from torchvision import datasets

from lightning_robust.data._class_images import ClassImages, ClassImagesDataModule
from lightning_robust.data._datamodule import Split
from lightning_robust.data._draws import Profile
from lightning_robust.data._sources import Source

SOURCE = Source(
    name="FashionMNIST",
    address="https://github.com/zalandoresearch/fashion-mnist",
    place="put the four files train-images-idx3-ubyte, train-labels-idx1-ubyte, "
    "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, unpacked, into FashionMNIST/raw there",
    licence="MIT",
    fetch=lambda root: datasets.FashionMNIST(root, download=True),
)

_NAMES: tuple[str, ...] = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle_boot",
)  # fmt: skip
_MOMENTS = ((0.2860,), (0.3530,))  # of the training images


class FashionMNIST(ClassImages):
    """Grey pictures of clothes, 28 by 28 pixels: 60,000 for training and 10,000 for testing.

    Xiao et al., 2017 (https://arxiv.org/abs/1708.07747). Ten classes of 6,000 training images each.
    With ``imbalance`` it is the label shift of importance tempering (Section 3.3, 1:10 and 1:100:
    classes 0 to 4 keep 6,000 images, classes 5 to 9 have 600 or 60).

    Licence: MIT. torchvision downloads the files and knows the archives' checksums.

    Args:
        root: Folder that holds ``FashionMNIST/raw``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        augment: Images moved by up to four pixels, and mirrored half of the time.
        imbalance: How many times larger the largest class of the training split is than the
            smallest; 1 leaves all.
        profile: ``"step"``: the first half of the classes stays, the second half shrinks.
            ``"exponential"``: sizes fall geometrically (Cui et al., CVPR 2019).
        held_out: Share of each training class that is the validation split; at 0 the validation
            split is the test split: choose nothing by it.
        data_seed: Draws who is held out and who remains.

    Attributes:
        images: (n, 1, 28, 28) uint8, before standardising and augmentation.
        targets: (n,) int64.
        groups: (n,) int64, the same as the targets.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Split = "train",
        *,
        augment: bool = False,
        imbalance: float = 1.0,
        profile: Profile = "step",
        held_out: float = 0.0,
        data_seed: int = 0,
    ) -> None:
        super().__init__(
            root,
            split,
            source=SOURCE,
            reader=datasets.FashionMNIST,
            names=_NAMES,
            moments=_MOMENTS,
            augment=augment,
            imbalance=imbalance,
            profile=profile,
            held_out_share=held_out,
            data_seed=data_seed,
        )


class FashionMNISTDataModule(ClassImagesDataModule):
    """The splits of :class:`FashionMNIST` as loaders."""

    source, dataset = SOURCE, FashionMNIST
