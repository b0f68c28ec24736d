"""Small images in memory, labelled by class alone, which a label shift may make unequal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_robust.contracts import (
    check_at_least,
    check_bool,
    check_choice,
    check_in_range,
    check_integer,
)
from lightning_robust.data._datamodule import SPLITS, GroupDataModule, Split
from lightning_robust.data._draws import Profile, held_out, imbalanced
from lightning_robust.data._images import ImageTensors, Standardise
from lightning_robust.data._sources import Source


def read_images(
    source: Source, reader: Callable[..., Any], root: str | Path, train: bool
) -> tuple[Tensor, Tensor]:
    """What one of torchvision's data sets of small images reads.

    Args:
        source: Of the data set, for the error.
        reader: torchvision's class, such as ``torchvision.datasets.MNIST``.
        root: Folder of the files.
        train: The training images, else the test images.

    Returns:
        Images (n, C, H, W), uint8, and classes (n,), int64.

    Raises:
        ContractError: Files are missing, or their checksums are wrong.
    """
    try:
        found = reader(str(Path(root).expanduser()), train=train)
    except RuntimeError as error:
        raise source.missing(root, [f"its files (torchvision: {error})"]) from error
    images = torch.as_tensor(found.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(found.targets)


class ClassImages(ImageTensors):
    """Base of data sets whose groups are their classes.

    Args:
        root: Folder of the files.
        split: ``"train"``, ``"val"`` or ``"test"``.
        source: Where the files come from.
        reader: torchvision's class that reads them.
        names: Of the classes.
        moments: Mean and standard deviation of each channel, of pixels in [0, 1].
        augment: Images moved by up to four pixels, and mirrored half of the time.
        imbalance: How many times larger the largest class of the training split is than the
            smallest; 1 leaves all.
        profile: See :func:`~lightning_robust.data._draws.imbalanced`.
        held_out_share: Share of each training class that is the validation split; at 0 the
            validation split is the test split.
        data_seed: Draws who is held out and who remains.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        *,
        source: Source,
        reader: Callable[..., Any],
        names: tuple[str, ...],
        moments: tuple[tuple[float, ...], tuple[float, ...]],
        augment: bool,
        imbalance: float,
        profile: Profile,
        held_out_share: float,
        data_seed: int,
    ) -> None:
        check_choice("split", split, SPLITS)
        check_bool("augment", augment)
        _check_label_shift(imbalance, profile, held_out_share, data_seed)
        train = split == "train" or (split == "val" and held_out_share > 0)
        images, targets = read_images(source, reader, root, train)
        if train and held_out_share > 0:
            held = held_out(targets, held_out_share, data_seed)
            chosen = held if split == "val" else ~held
            images, targets = images[chosen], targets[chosen]
        if split == "train" and imbalance > 1:
            chosen = imbalanced(targets, imbalance, profile, data_seed)
            images, targets = images[chosen], targets[chosen]
        clean = Standardise(*moments)
        random = v2.Compose([v2.RandomCrop(images.shape[-1], 4), v2.RandomHorizontalFlip(), clean])
        super().__init__(
            images, targets, targets.clone(), names, clean, random if augment else None
        )


class ClassImagesDataModule(GroupDataModule):
    """Loaders of small images in memory.

    Args:
        root: Folder of the files.
        augment: Train on images moved by up to four pixels, and mirrored half of the time.
        imbalance: How many times larger the largest class of the training split is than the
            smallest; 1 leaves all.
        profile: ``"step"``: the first half of the classes stays, the second half shrinks (as in
            importance tempering). ``"exponential"``: sizes fall geometrically (long-tailed).
        held_out: Share of each training class that is the validation split; at 0 the validation
            split is the test split, as in papers that report the last epoch: choose nothing by it.
        data_seed: Draws who is held out and who remains.
        settings: ``download``, ``batch_size``, ``eval_batch_size``, ``num_workers`` and ``seed``,
            as for :class:`~lightning_robust.data.GroupDataModule`.

    Raises:
        ContractError: If an argument is refused; in :meth:`setup`, if files are missing.
    """

    dataset: ClassVar[Callable[..., ClassImages]]

    def __init__(
        self,
        root: str | Path = "data",
        *,
        augment: bool = True,
        imbalance: float = 1.0,
        profile: Profile = "step",
        held_out: float = 0.0,
        data_seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        check_bool("augment", augment)
        _check_label_shift(imbalance, profile, held_out, data_seed)
        self.augment = augment
        self.imbalance = imbalance
        self.profile = profile
        self.held_out = held_out
        self.data_seed = data_seed

    def settings(self) -> dict[str, Any]:
        """What else the data set is to be called with."""
        return {}

    def make(self, split: Split) -> ClassImages:
        """One split, augmented and imbalanced if it is for training."""
        return type(self).dataset(
            self.root,
            split,
            augment=self.augment and split == "train",
            imbalance=self.imbalance,
            profile=self.profile,
            held_out=self.held_out,
            data_seed=self.data_seed,
            **self.settings(),
        )


def _check_label_shift(imbalance: float, profile: str, held_out: float, data_seed: int) -> None:
    """Refuse bad settings of what remains of the training examples."""
    check_at_least("imbalance", imbalance, 1)
    check_choice("profile", profile, ("step", "exponential"))
    check_in_range("held_out", held_out, 0, 0.9)
    check_integer("data_seed", data_seed)
