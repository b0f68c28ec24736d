"""Images of data sets, in files or in memory, and how they become tensors."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_robust.contracts import ContractError, check_bool, check_integer
from lightning_robust.data._datamodule import GroupDataModule, GroupedDataset, Split
from lightning_robust.data._sources import Source

Transform: TypeAlias = Callable[[Any], Tensor]
Images = TypeVar("Images", bound="_Images")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of most backbones


class Standardise:
    """From an image to float32 of mean 0 and standard deviation 1 in each channel, in one step.

    Args:
        mean: Of each of C channels, of pixels in [0, 1].
        std: Of each channel.

    Example:
        >>> image = torch.full((1, 2, 2), 255, dtype=torch.uint8)
        >>> Standardise([0.5], [0.25])(image).unique().round(decimals=4)
        tensor([2.])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.shift = -torch.tensor(mean)[:, None, None] / torch.tensor(std)[:, None, None]
        self.scale = 1 / (255 * torch.tensor(std)[:, None, None])

    def __call__(self, image: Tensor | Image.Image) -> Tensor:
        """The image, uint8 (C, H, W) or of PIL, standardised."""
        pixels = image if isinstance(image, Tensor) else pil_to_tensor(image)
        floats = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return torch.addcmul(self.shift, floats, self.scale)


@dataclass(frozen=True)
class ImageFormat:
    """The images a network expects.

    Args:
        size: Height and width in pixels.
        mean: Of each channel, subtracted.
        std: Of each channel, divided by.
        interpolation: How images are resized, a name of torchvision's.
        crop_share: Share of a resized image's side that the central crop keeps, where the data set
            leaves that to the network.

    Example:
        >>> ImageFormat.of(None, None).size
        224
    """

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_share: float = 0.875

    @classmethod
    def of(cls, image_size: int | None, timm_model: str | None, default: int = 224) -> ImageFormat:
        """The format of a model of timm's, or ImageNet's usual one.

        Args:
            image_size: Overrides the model's, or ``default``.
            timm_model: Its name, such as ``"vit_base_patch16_224.augreg_in21k"``; its data config
                is what ``timm.data.resolve_model_data_config`` gives for the model.
            default: Size without a model.

        Raises:
            ContractError: The size is refused, or timm does not know the model.
        """
        if image_size is not None:
            check_integer("image_size", image_size, minimum=8)
        if timm_model is None:
            return cls(image_size or default)
        timm: Any = importlib.import_module("timm")
        try:
            config = timm.get_pretrained_cfg(timm_model)
        except RuntimeError:
            config = None
        if config is None:
            raise ContractError(
                f"timm_model={timm_model!r} is no model of timm's; timm.list_models() names them"
            )
        found = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
        return cls(
            image_size or found["input_size"][-1],
            tuple(found["mean"]),
            tuple(found["std"]),
            found["interpolation"],
            found["crop_pct"],
        )

    @property
    def mode(self) -> v2.InterpolationMode:
        """The interpolation as torchvision takes it."""
        return v2.InterpolationMode(self.interpolation)

    def tensor(self, *geometry: Callable[[Any], Any]) -> Transform:
        """From an image, by way of some changes of its geometry, to a tensor (3, size, size)."""
        transform: Transform = v2.Compose([*geometry, Standardise(self.mean, self.std)])
        return transform

    def resized_crop(
        self, scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3)
    ) -> Transform:
        """A random part of the image at the size wanted, mirrored half of the time."""
        crop = v2.RandomResizedCrop(self.size, scale, ratio, self.mode)
        return self.tensor(crop, v2.RandomHorizontalFlip())

    def central(self) -> Transform:
        """The central square of the image, after its shorter side is resized."""
        resize = v2.Resize(round(self.size / self.crop_share), self.mode)
        return self.tensor(resize, v2.CenterCrop(self.size))


class _Images(GroupedDataset[tuple[Tensor, int]]):
    """Images with a transform that may augment, and one that does not."""

    def __init__(
        self,
        targets: Tensor,
        groups: Tensor,
        group_names: Sequence[str],
        transform: Transform,
        augmentation: Transform | None,
    ) -> None:
        self.targets, self.groups, self.group_names = targets, groups, tuple(group_names)
        self.transform = transform if augmentation is None else augmentation
        self._clean_transform = transform

    @property
    def clean(self: Images) -> Images:
        """The same images in the same order, without augmentation: for ``clean_dataset=``."""
        view = copy.copy(self)
        view.transform = self._clean_transform
        return view


class ImageFiles(_Images):
    """Images in files, read when they are asked for.

    Args:
        folder: What the names of the files are relative to.
        files: Name of each example's file (n,).
        targets: Class of each example (n,), int64.
        groups: Group of each example (n,), int64.
        group_names: One name a group.
        transform: From a PIL image (RGB) to a tensor, the same each time.
        augmentation: The same at random, for training; ``None`` is without.

    Attributes:
        folder: What the names of the files are relative to.
        transform: What an image goes through: the augmentation, where there is one.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        targets: Tensor,
        groups: Tensor,
        group_names: Sequence[str],
        transform: Transform,
        augmentation: Transform | None = None,
    ) -> None:
        super().__init__(targets, groups, group_names, transform, augmentation)
        self.folder, self._prefix = folder, str(folder)
        # One array of bytes, not a million strings, whose reference counts each worker would copy.
        self._files = np.array([os.fsencode(file) for file in files])

    def path(self, index: int) -> Path:
        """The file of an example."""
        return Path(self._path(index))

    def _path(self, index: int) -> str:
        return os.path.join(self._prefix, os.fsdecode(self._files[index]))

    def check_files(self, source: Source, root: str | Path) -> None:
        """Refuse a split without images, or whose first or last image is not there."""
        if not len(self):
            raise ContractError(
                f"root={str(root)!r} has no image of this split of {source.name}; {source.place}"
            )
        for index in (0, -1):
            if not self.path(index).is_file():
                raise source.missing(root, [str(self.path(index))])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image (3, H, W), float32, and its class."""
        with Image.open(self._path(index)) as image:
            pixels = image.convert("RGB")
        return self.transform(pixels), int(self.targets[index])


class ImageTensors(_Images):
    """Images in memory.

    Args:
        images: (n, C, H, W) uint8.
        targets: Class of each example (n,), int64.
        groups: Group of each example (n,), int64.
        group_names: One name a group.
        transform: From an image (C, H, W) uint8 to float32, the same each time.
        augmentation: The same at random, for training; ``None`` is without.

    Attributes:
        images: (n, C, H, W) uint8, before the transform.
        transform: What an image goes through: the augmentation, where there is one.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        groups: Tensor,
        group_names: Sequence[str],
        transform: Transform,
        augmentation: Transform | None = None,
    ) -> None:
        super().__init__(targets, groups, group_names, transform, augmentation)
        self.images = images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image (C, H, W), float32, and its class."""
        return self.transform(self.images[index]), int(self.targets[index])


class ImageFilesDataModule(GroupDataModule):
    """Loaders of a data set of image files.

    Args:
        root: Folder of the files.
        augment: Train on random crops, mirrored half of the time, as the papers do.
        image_size: Height and width of what the network gets, in pixels; ``None`` takes the
            model's, or the data set's usual one.
        timm_model: Name of the timm model whose size, mean, standard deviation and interpolation
            are wanted; ``None`` takes ImageNet's usual ones.
        download: Fetch what is missing, where the data set can be fetched.
        batch_size: Images a training batch.
        eval_batch_size: Images a batch of validation and test; ``None`` takes four times as many.
        num_workers: Processes that read and decode; 0 leaves it to the main one.
        seed: Of the order of training; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: If an argument is refused; in :meth:`setup`, if files are missing.
    """

    dataset: ClassVar[Callable[..., GroupedDataset[Any]]]
    """The data set, called with root, split, ``augment``, ``image_size`` and ``timm_model``."""

    def __init__(
        self,
        root: str | Path = "data",
        *,
        augment: bool = True,
        image_size: int | None = None,
        timm_model: str | None = None,
        download: bool = False,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 4,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            root,
            download=download,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        check_bool("augment", augment)
        ImageFormat.of(image_size, timm_model)
        self.augment = augment
        self.image_size = image_size
        self.timm_model = timm_model

    def settings(self) -> dict[str, Any]:
        """What else the data set is to be called with."""
        return {}

    def make(self, split: Split) -> GroupedDataset[Any]:
        """One split, augmented if it is for training and augmentation is wanted."""
        return type(self).dataset(
            self.root,
            split,
            augment=self.augment and split == "train",
            image_size=self.image_size,
            timm_model=self.timm_model,
            **self.settings(),
        )


def image_folder(folder: Path, numbers: dict[str, int]) -> tuple[list[str], Tensor]:
    """The images below the folders of classes, in sorted order.

    Args:
        folder: Holds a folder for each class.
        numbers: Class number of each folder's name; several may share one.

    Returns:
        Names of the files, relative to ``folder``, and their classes (n,).

    Raises:
        FileNotFoundError: A folder of a class is missing, or empty.
    """
    found = make_dataset(str(folder), numbers, IMG_EXTENSIONS)
    prefix = len(str(folder)) + 1
    return [path[prefix:] for path, _ in found], torch.tensor([number for _, number in found])
