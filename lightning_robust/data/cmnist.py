"""CMNIST: handwritten digits, two a class, whose colour gives the class away in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets

from lightning_robust.contracts import (
    ContractError,
    check_choice,
    check_in_range,
    check_integer,
)
from lightning_robust.data._class_images import read_images
from lightning_robust.data._datamodule import SPLITS, GroupDataModule, Split
from lightning_robust.data._draws import correlated_hues
from lightning_robust.data._images import ImageTensors
from lightning_robust.data._sources import Source
from lightning_robust.randomness import generator

SOURCE = Source(
    name="MNIST",
    address="https://ossci-datasets.s3.amazonaws.com/mnist/",
    place="put the four files train-images-idx3-ubyte, train-labels-idx1-ubyte, "
    "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, unpacked, into MNIST/raw there",
    licence="CC BY-SA 3.0",
    fetch=lambda root: datasets.MNIST(root, download=True),
)

HUES = ("ff0000", "85ff00", "00fff3", "6e00ff", "ff0018")  #: Red, green, blue; hexadecimal.
CLASS_NAMES = ("01", "23", "45", "67", "89")  #: The two digits of each class.

_VALIDATION_SHARE = 1 / 6  # 10,000 of 60,000


class CMNIST(ImageTensors):
    """MNIST in five classes of two digits, coloured: 50,000, 10,000 and 10,000 images, 25 groups.

    As in SPARE (Appendix 9.4.4.1 of the thesis), after Correct-n-Contrast (Zhang et al., ICML
    2022): 50,000 of the training digits, drawn by seed, are the training split and 10,000 the
    validation split. In training a share ``correlation`` of every class wears the class's own
    colour and the others one of the other four; at .995 a class of 10,000 has four minority groups
    of 12 or 13. In validation and testing each digit wears a colour at random. MNIST is LeCun et
    al., 1998.

    Departures: which is which is drawn, but the proportions are exact, and the four minority groups
    of a class equally large but for one; the paper draws them independently. The image is the grey
    value times the colour, where the paper colours "the foreground". The paper does not say how the
    validation split is coloured. Its last colour is nearly its first: read off its appendix, and
    the two ends of the colour circle.

    Licence: CC BY-SA 3.0. torchvision downloads MNIST and knows the archives' checksums.

    Args:
        root: Folder that holds ``MNIST/raw``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        correlation: Share of a class that wears its own colour in training, in [0, 1].
        hues: Five colours, as hexadecimal digits.
        data_seed: Draws the split and who wears which colour.

    Attributes:
        images: (n, 3, 28, 28) uint8.
        targets: (n,) int64 in [0, 5), half of the digit.
        groups: (n,) int64, ``5 * target + hue``.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Split = "train",
        *,
        correlation: float = 0.995,
        hues: tuple[str, str, str, str, str] = HUES,
        data_seed: int = 0,
    ) -> None:
        check_choice("split", split, SPLITS)
        colours = _checked(correlation, hues, data_seed)
        greys, digits = read_images(SOURCE, datasets.MNIST, root, train=split != "test")
        if split != "test":
            order = torch.randperm(len(digits), generator=generator(data_seed, "CMNIST: split"))
            held = round(_VALIDATION_SHARE * len(digits))
            chosen = (order[:held] if split == "val" else order[held:]).sort().values
            greys, digits = greys[chosen], digits[chosen]
        targets = digits // 2
        draw = generator(data_seed, f"CMNIST: {split} hues")
        if split == "train":
            worn = correlated_hues(targets, correlation, draw)
        else:
            worn = torch.randint(5, (len(targets),), generator=draw)
        super().__init__(
            _painted(greys, colours[worn]),
            targets,
            5 * targets + worn,
            [f"{pair}_{hue}" for pair in CLASS_NAMES for hue in hues],
            _to_unit,
        )


class CMNISTDataModule(GroupDataModule):
    """The three splits of :class:`CMNIST` as loaders.

    Args:
        root: Folder that holds ``MNIST/raw``.
        correlation: Share of a class that wears its own colour in training, in [0, 1].
        hues: Five colours, as hexadecimal digits.
        data_seed: Draws the split and who wears which colour.
        settings: ``download``, ``batch_size``, ``eval_batch_size``, ``num_workers`` and ``seed``,
            as for every data set.

    Raises:
        ContractError: If an argument is refused; in :meth:`setup`, if files are missing.
    """

    source = SOURCE

    def __init__(
        self,
        root: str | Path = "data",
        *,
        correlation: float = 0.995,
        hues: tuple[str, str, str, str, str] = HUES,
        data_seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        _checked(correlation, hues, data_seed)
        self.correlation = correlation
        self.hues = hues
        self.data_seed = data_seed

    def make(self, split: Split) -> CMNIST:
        """One split."""
        return CMNIST(
            self.root,
            split,
            correlation=self.correlation,
            hues=self.hues,
            data_seed=self.data_seed,
        )


def _checked(correlation: float, hues: tuple[str, ...], data_seed: int) -> Tensor:
    """Red, green and blue of each hue (5, 3), uint8."""
    check_in_range("correlation", correlation, 0, 1)
    check_integer("data_seed", data_seed)
    try:
        colours = torch.tensor([list(bytes.fromhex(hue)) for hue in hues], dtype=torch.uint8)
    except (TypeError, ValueError) as error:
        raise ContractError(f"hues must be six hexadecimal digits each, got {hues!r}") from error
    if colours.shape != (5, 3) or len({*hues}) < 5:
        raise ContractError(f"hues must be five different colours, got {hues!r}")
    return colours


def _painted(greys: Tensor, colours: Tensor) -> Tensor:
    """Grey value times colour: (n, 1, H, W) and (n, 3), uint8, to (n, 3, H, W) uint8."""
    painted = torch.empty(len(greys), 3, *greys.shape[2:], dtype=torch.uint8)
    for part in torch.arange(len(greys)).split(4096):  # not all of it in float at once
        product = greys[part].float() * colours[part][:, :, None, None] / 255
        painted[part] = product.round().to(torch.uint8)
    return painted


def _to_unit(image: Tensor) -> Tensor:
    """From uint8 to float32 in [0, 1]."""
    return image.float() / 255
