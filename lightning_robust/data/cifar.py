"""CIFAR-10 and CIFAR-100, whole or with classes of unequal size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torchvision import datasets

from lightning_robust.contracts import check_choice
from lightning_robust.data._class_images import ClassImages, ClassImagesDataModule
from lightning_robust.data._datamodule import Split
from lightning_robust.data._draws import Profile
from lightning_robust.data._sources import Source

SOURCES = {
    classes: Source(
        name=f"CIFAR-{classes}",
        address="https://www.cs.toronto.edu/~kriz/cifar.html",
        place=f"unpack cifar-{classes}-python.tar.gz in the root, so that there is {folder}",
        licence="none stated; cite Krizhevsky, 2009",
        fetch=lambda root, reader=reader: [reader(root, download=True)],  # type: ignore[misc]
    )
    for classes, folder, reader in (
        (10, "cifar-10-batches-py", datasets.CIFAR10),
        (100, "cifar-100-python", datasets.CIFAR100),
    )
}
READERS = {10: datasets.CIFAR10, 100: datasets.CIFAR100}
"""torchvision's readers; they check the files against known checksums."""

# Mean and standard deviation of each channel over the training images.
_MOMENTS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_CIFAR10: tuple[str, ...] = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class CIFAR(ClassImages):
    """Photographs of 32 by 32 pixels: 50,000 for training and 10,000 for testing.

    Krizhevsky, *Learning multiple layers of features from tiny images*, 2009. Classes are equally
    large, with 5,000 training images each of 10 classes, or 500 each of 100. Used for CREST
    (Tables 2.1 and 2.2 of the thesis) and EPIC. With ``imbalance`` it is the label shift of
    importance tempering (Section 3.3, 1:10 and 1:100 on CIFAR-10: classes 0 to 4 keep 5,000 images,
    classes 5 to 9 have 500 or 50), or, with ``profile="exponential"``, long-tailed CIFAR.

    No licence is stated. torchvision downloads the files and knows their checksums.

    Args:
        root: Folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        num_classes: 10 or 100.
        augment: Images moved by up to four pixels, and mirrored half of the time.
        imbalance: How many times larger the largest class of the training split is than the
            smallest; 1 leaves all.
        profile: ``"step"``: the first half of the classes stays, the second half shrinks.
            ``"exponential"``: sizes fall geometrically (Cui et al., CVPR 2019).
        held_out: Share of each training class that is the validation split; at 0 the validation
            split is the test split: choose nothing by it.
        data_seed: Draws who is held out and who remains.

    Attributes:
        images: (n, 3, 32, 32) uint8, before standardising and augmentation.
        targets: (n,) int64.
        groups: (n,) int64, the same as the targets.
        group_names: Of the classes; for CIFAR-100 ``"class_0"`` and so on.

    Raises:
        ContractError: If an argument is refused, or files are missing or damaged.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Split = "train",
        *,
        num_classes: Literal[10, 100] = 10,
        augment: bool = False,
        imbalance: float = 1.0,
        profile: Profile = "step",
        held_out: float = 0.0,
        data_seed: int = 0,
    ) -> None:
        check_choice("num_classes", num_classes, (10, 100))
        super().__init__(
            root,
            split,
            source=SOURCES[num_classes],
            reader=READERS[num_classes],
            names=_CIFAR10 if num_classes == 10 else tuple(f"class_{i}" for i in range(100)),
            moments=_MOMENTS[num_classes],
            augment=augment,
            imbalance=imbalance,
            profile=profile,
            held_out_share=held_out,
            data_seed=data_seed,
        )


class CIFARDataModule(ClassImagesDataModule):
    """The splits of :class:`CIFAR` as loaders.

    Args:
        root: Folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        num_classes: 10 or 100.
        settings: ``augment``, ``imbalance``, ``profile``, ``held_out`` and ``data_seed`` as for
            :class:`CIFAR`; ``download``, ``batch_size``, ``eval_batch_size``, ``num_workers`` and
            ``seed`` as for every data set.

    Raises:
        ContractError: If an argument is refused; in :meth:`setup`, if files are missing.
    """

    dataset = CIFAR

    def __init__(
        self, root: str | Path = "data", *, num_classes: Literal[10, 100] = 10, **settings: Any
    ) -> None:
        super().__init__(root, **settings)
        check_choice("num_classes", num_classes, (10, 100))
        self.num_classes = num_classes
        self.source = SOURCES[num_classes]

    def settings(self) -> dict[str, Any]:
        """Also the number of classes."""
        return {"num_classes": self.num_classes}
