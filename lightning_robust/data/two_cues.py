"""Images with a core cue and an easier spurious one, after the large-learning-rate paper.

Section 4.1 of Barsbey et al. (ICCV 2025): moons and stars at telling places, Colored MNIST,
Corrupted CIFAR-10, MNIST-CIFAR dominoes and Double MNIST. Where MNIST and CIFAR-10 are on disk they
are built from these, with ``source="torchvision"``; with ``source="digits"``, the default, from the
1,797 8x8 digits bundled with scikit-learn, so that nothing is ever downloaded. There, CIFAR-10's
objects are stood in for by **digits over patches of scikit-learn's two photographs**: no objects,
but a cue that takes longer to learn than a clean digit.

The paper's supplement, which has sizes, strengths and colours, was not at hand: what is not in
Section 4.1 is ours, and said where it is.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust.contracts import (
    ContractError,
    check_choice,
    check_in_range,
    check_integer,
)
from lightning_robust.data.corruptions import CORRUPTIONS
from lightning_robust.randomness import generator

Split: TypeAlias = Literal["train", "val", "test"]
Source: TypeAlias = Literal["digits", "torchvision"]

DIGITS = tuple(map(str, range(10)))
COLOURS = (
    "red",
    "orange",
    "yellow",
    "lime",
    "green",
    "cyan",
    "azure",
    "blue",
    "violet",
    "pink",
)  #: Hue *i*, of ten around the circle, goes with digit *i*.
CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)  #: CIFAR-10's classes in its own order.
SPLIT_SIZES = {"train": 1200, "val": 200, "test": 397}  #: Bundled digits in each split.

_VAL_OF_TORCHVISION = 5000  # of the training images of MNIST and CIFAR-10
_CONTRAST = 0.6  # of a digit over a photograph: it is that much digit
_EVALUATION_BATCH_SIZE = 512

_WHERE = {
    "MNIST": (
        "the four files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte "
        "and t10k-labels-idx1-ubyte in MNIST/raw, unpacked from "
        "https://ossci-datasets.s3.amazonaws.com/mnist/"
    ),
    "CIFAR10": (
        "the folder cifar-10-batches-py, unpacked from "
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    ),
}


class TwoCues(Dataset[tuple[Tensor, int]]):
    """What the data sets of this file have in common.

    Every example shows its class y by the core cue and a bias label b by the spurious one. In
    training a share ``conflicting`` of each class has b != y, spread over the other labels as
    evenly and exactly as whole numbers allow. In the validation and the test split every bias label
    is equally frequent in every class, so that accuracy there is the unbiased one.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``. Of the digits 1,200, 200 and 397; of
            torchvision's data sets the test images, and 5,000 of the training images for ``"val"``.
        source: ``"digits"`` or ``"torchvision"``.
        root: Folder of torchvision's data sets, where they have been unpacked.
        conflicting: Rho, the share of conflicting examples of a class in training, in [0, 1];
            ``None`` is the paper's.
        seed: Draws splits, bias labels, and how cues are rendered.

    Attributes:
        images: (n, 3, h, w) or (n, 1, h, w) float32 in [0, 1].
        targets: (n,) int64, y.
        biases: (n,) int64, b.
        groups: (n,) int64, ``y * C + b``.
        group_names: Such as ``"3_with_7"``.
        core: (h, w) bool, where the core cue is, or ``None`` where both are at the same place.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    rho: ClassVar[float]  #: The paper's share of conflicting examples.
    class_names: tuple[str, ...] = DIGITS
    bias_names: tuple[str, ...] = DIGITS

    images: Tensor
    targets: Tensor
    biases: Tensor
    groups: Tensor
    core: Tensor | None = None

    def __init__(
        self,
        split: Split = "train",
        *,
        source: Source = "digits",
        root: str | Path | None = None,
        conflicting: float | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("source", source, ("digits", "torchvision"))
        if source == "torchvision" and root is None:
            raise ContractError(
                "root must name the folder of torchvision's data sets for source='torchvision', "
                "got None; source='digits' needs no files"
            )
        draw = self._draws(split, conflicting, seed)
        self._place = (split, source, root, seed)
        images, self.targets = self._core_images(draw)
        self._label(split, conflicting, draw)
        self.images = self._shown(images, draw)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Class and bias label of every group."""
        return tuple(f"{y}_with_{b}" for y in self.class_names for b in self.bias_names)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image and its class."""
        return self.images[index], int(self.targets[index])

    def _draws(self, split: Split, conflicting: float | None, seed: int) -> torch.Generator:
        check_choice("split", split, tuple(SPLIT_SIZES))
        check_in_range("conflicting", self.rho if conflicting is None else conflicting, 0, 1)
        check_integer("seed", seed)
        return generator(seed, f"two cues: {type(self).__name__}, {split}")

    def _label(self, split: Split, conflicting: float | None, draw: torch.Generator) -> None:
        """Draw the bias labels, and number the groups."""
        num_classes = len(self.class_names)
        rho = self.rho if conflicting is None else conflicting
        share = rho if split == "train" else 1 - 1 / num_classes
        self.biases = torch.empty_like(self.targets)
        for y in range(num_classes):
            members = (self.targets == y).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=draw)]
            conflicts = round(share * len(members))
            others = 1 + torch.randperm(num_classes - 1, generator=draw)
            chosen = others[torch.arange(conflicts) % len(others)]
            self.biases[members[:conflicts]] = (y + chosen) % num_classes
            self.biases[members[conflicts:]] = y
        self.groups = self.targets * num_classes + self.biases

    def _core_images(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images that show the classes alone, and the classes."""
        return _digit_images(*self._place)

    def _shown(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """The images with the spurious cue of ``biases``."""
        raise NotImplementedError

    def _of_biases(self, draw: torch.Generator) -> Tensor:
        """For each example a digit of the split that shows its bias label, (n, h, w)."""
        greys, digits = _digit_images(*self._place)
        found = torch.empty(len(self.biases), dtype=torch.int64)
        for b in range(10):
            wanted = (self.biases == b).nonzero().flatten()
            pool = (digits == b).nonzero().flatten()
            found[wanted] = pool[torch.randint(len(pool), (len(wanted),), generator=draw)]
        return greys[found]


class TenColourMNIST(TwoCues):
    """The paper's Colored MNIST: digits, ten colours. Core: the shape; spurious: the colour.

    The colours are ten hues at equal distances on the circle, each moved a little from example to
    example, by a standard deviation of .02 of a turn; the paper names none.

    Example:
        >>> dataset = TenColourMNIST()
        >>> tuple(dataset.images.shape), int((dataset.biases != dataset.targets).sum())
        ((1200, 3, 8, 8), 30)
    """

    rho = 0.025
    bias_names = COLOURS

    def _shown(self, images: Tensor, draw: torch.Generator) -> Tensor:
        hue = self.biases / 10 + 0.02 * torch.randn(len(self), generator=draw)
        # Red, green and blue fall off linearly from a third of the circle each, as in HSV.
        distance = (hue[:, None] - torch.tensor([0, 1 / 3, 2 / 3]) + 0.5) % 1 - 0.5
        colours = (2 - 6 * distance.abs()).clamp(0, 1)
        return images[:, None] * colours[:, :, None, None]


class DoubleMNIST(TwoCues):
    """Two digits side by side. Core: the left one; spurious: the right one, which is brighter.

    The left one has .4 of the brightness, a number of ours.

    Example:
        >>> dataset = DoubleMNIST("test")
        >>> image, target = dataset[0]
        >>> tuple(image.shape), bool(image[..., 8:].max() > image[..., :8].max())
        ((1, 8, 16), True)
    """

    rho = 0.025

    def _shown(self, images: Tensor, draw: torch.Generator) -> Tensor:
        shown = torch.cat([0.4 * images, self._of_biases(draw)], 2)[:, None]
        self.core = torch.zeros(shown.shape[2:], dtype=torch.bool)
        self.core[:, : images.shape[2]] = True
        return shown


class _Objects(TwoCues):
    """CIFAR-10, or what stands in for it."""

    rho = 0.1

    def _core_images(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        split, source, root, seed = self._place
        if source == "digits":
            greys, digits = _digit_images(*self._place)
            return _over_photographs(greys, draw), digits
        self.class_names = CIFAR10
        assert root is not None
        return _of_torchvision("CIFAR10", split, root, seed)


class MNISTCIFAR(_Objects):
    """Dominoes. Core: the object of CIFAR-10, below; spurious: the digit above it.

    With ``source="digits"`` the object is another digit, over a patch of a photograph.

    Example:
        >>> dataset = MNISTCIFAR()
        >>> tuple(dataset.images.shape), int((dataset.biases != dataset.targets).sum())
        ((1200, 3, 32, 16), 120)
    """

    def _shown(self, images: Tensor, draw: torch.Generator) -> Tensor:
        height, width = images.shape[2:]
        digits = self._of_biases(draw)[:, None]
        if digits.shape[-1] < 28:
            digits = F.interpolate(digits, (height, width), mode="nearest")
        else:
            digits = F.pad(digits, (2, 2, 2, 2))  # MNIST's 28 pixels to CIFAR-10's 32
        self.core = torch.arange(2 * height)[:, None].expand(-1, width) >= height
        return torch.cat([digits.expand(-1, 3, -1, -1), images], 2)


class CorruptedCIFAR10(_Objects):
    """Corrupted CIFAR-10. Core: the object; spurious: one of :mod:`~.corruptions` of the image.

    With ``source="digits"`` the object is a digit over a patch of a photograph.

    Example:
        >>> dataset = CorruptedCIFAR10()
        >>> tuple(dataset.images.shape), dataset.group_names[11]
        ((1200, 3, 16, 16), '1_with_shot-noise')
    """

    bias_names = tuple(CORRUPTIONS)

    def _shown(self, images: Tensor, draw: torch.Generator) -> Tensor:
        shown = images.clone()
        for number, corrupt in enumerate(CORRUPTIONS.values()):
            here = self.biases == number
            shown[here] = corrupt(images[here], draw)
        return shown


class MoonStar(TwoCues):
    """Moons and stars. Core: the shape; spurious: the quadrant it is in.

    As Geirhos et al. (Nature Machine Intelligence, 2020) have it, stars tend to be at the top right
    or bottom left and moons at the top left or bottom right. Shapes are white on black, turned by
    any angle, with a radius of .26 to .40 of half the image, up to .1 of it away from the middle of
    their quadrant: numbers of ours.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        num_examples: n, half of them moons.
        size: Height and width in pixels.
        conflicting: As in :class:`TwoCues`.
        seed: Draws everything.

    Example:
        >>> dataset = MoonStar(num_examples=100)
        >>> image, target = dataset[0]
        >>> tuple(image.shape), dataset.groups.bincount().tolist()
        ((1, 24, 24), [45, 5, 5, 45])
    """

    rho = 0.1
    class_names = ("moon", "star")
    bias_names = ("moon-quadrant", "star-quadrant")

    def __init__(
        self,
        split: Split = "train",
        *,
        num_examples: int = 2000,
        size: int = 24,
        conflicting: float | None = None,
        seed: int = 0,
    ) -> None:
        check_integer("num_examples", num_examples, minimum=2)
        check_integer("size", size, minimum=8)
        draw = self._draws(split, conflicting, seed)
        order = torch.randperm(num_examples, generator=draw)
        self.targets = order % 2
        self._label(split, conflicting, draw)
        self.images = _moons_and_stars(self.targets, self.biases, size, draw)


TWO_CUES: dict[str, type[TwoCues]] = {
    "colored-mnist": TenColourMNIST,
    "corrupted-cifar10": CorruptedCIFAR10,
    "double-mnist": DoubleMNIST,
    "mnist-cifar": MNISTCIFAR,
    "moon-star": MoonStar,
}
"""Name in a command to the data set."""


class TwoCuesDataModule(LightningDataModule):
    """The three splits of a data set of this file as loaders.

    Args:
        dataset: A key of ``TWO_CUES``.
        source: As in :class:`TwoCues`; ``"moon-star"`` is drawn, and needs none.
        root: As in :class:`TwoCues`.
        conflicting: As in :class:`TwoCues`.
        seed: Draws the data and the order of training.
        batch_size: Images a training batch, the paper's 100 by default.

    Raises:
        ContractError: If an argument is refused; when data is set up: if files are missing.

    Example:
        >>> datamodule = TwoCuesDataModule("double-mnist", batch_size=32)
        >>> datamodule.setup("fit")
        >>> images, targets = next(iter(datamodule.train_dataloader()))
        >>> tuple(images.shape)
        (32, 1, 8, 16)
    """

    def __init__(
        self,
        dataset: str = "double-mnist",
        *,
        source: Source = "digits",
        root: str | Path | None = None,
        conflicting: float | None = None,
        seed: int = 0,
        batch_size: int = 100,
    ) -> None:
        super().__init__()
        check_choice("dataset", dataset, tuple(TWO_CUES))
        check_integer("batch_size", batch_size, minimum=1)
        self.dataset = dataset
        self.source, self.root = source, root
        self.conflicting = conflicting
        self.seed = seed
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Make the three splits, whatever the stage."""
        self.train, self.val, self.test = map(self.split, get_args(Split))

    def split(self, split: Split) -> TwoCues:
        """One of the three data sets, made anew."""
        settings: dict[str, Any] = {"conflicting": self.conflicting, "seed": self.seed}
        if self.dataset != "moon-star":
            settings |= {"source": self.source, "root": self.root}
        return TWO_CUES[self.dataset](split, **settings)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Shuffled batches of the training split."""
        order = generator(self.seed, "two cues: order")
        return DataLoader(self.train, self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The validation split, in order."""
        return DataLoader(self.val, _EVALUATION_BATCH_SIZE)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test split, in order."""
        return DataLoader(self.test, _EVALUATION_BATCH_SIZE)


# --- the parts ------------------------------------------------------------------------------------


def _digit_images(
    split: str, source: str, root: str | Path | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Grey digits (n, h, w) in [0, 1] of a split, and which they are (n,)."""
    if source == "torchvision":
        assert root is not None
        images, labels = _of_torchvision("MNIST", split, root, seed)
        return images[:, 0], labels
    greys, digits = _bundled()
    order = torch.randperm(len(digits), generator=generator(seed, "two cues: split"))
    chosen = order.split(list(SPLIT_SIZES.values()))[list(SPLIT_SIZES).index(split)]
    return greys[chosen], digits[chosen]


@cache
def _bundled() -> tuple[Tensor, Tensor]:
    bundle = load_digits()
    return torch.tensor(bundle.images / 16, dtype=torch.float32), torch.tensor(bundle.target).long()


def _of_torchvision(name: str, split: str, root: str | Path, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) in [0, 1] of a split of MNIST or CIFAR-10, and their classes (n,)."""
    from torchvision import datasets

    try:
        whole = getattr(datasets, name)(str(root), train=split != "test", download=False)
    except RuntimeError as error:
        raise ContractError(
            f"root={str(root)!r} does not hold {name} ({error}); put there {_WHERE[name]}; or use "
            "source='digits', which needs no files"
        ) from error
    images, labels = torch.as_tensor(whole.data), torch.as_tensor(whole.targets).long()
    if split != "test":
        draw = generator(seed, f"two cues: {name}")
        order = torch.randperm(len(labels), generator=draw)
        held_out, rest = order[:_VAL_OF_TORCHVISION], order[_VAL_OF_TORCHVISION:]
        chosen = held_out if split == "val" else rest
        images, labels = images[chosen], labels[chosen]
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.float() / 255, labels


def _over_photographs(greys: Tensor, draw: torch.Generator) -> Tensor:
    """Digits at twice their size over patches of two photographs, (n, 3, 2h, 2w)."""
    digits = F.interpolate(greys[:, None], scale_factor=2, mode="bilinear")
    size = digits.shape[-1]
    photographs = torch.tensor(_photographs()).permute(0, 3, 1, 2).float() / 255
    photographs = F.avg_pool2d(photographs, 3)
    which = torch.randint(len(photographs), (len(greys),), generator=draw)
    rows, columns = (
        torch.randint(extent - size + 1, (len(greys), 1), generator=draw) + torch.arange(size)
        for extent in photographs.shape[2:]
    )
    channels = torch.arange(3)[:, None, None]
    patches = photographs[
        which[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]
    ]
    opaque = _CONTRAST * digits
    return opaque + (1 - opaque) * patches * (1 - _CONTRAST)


@cache
def _photographs() -> Any:
    """The two bundled photographs, uint8 (2, 427, 640, 3)."""
    import numpy

    return numpy.stack(load_sample_images().images)


def _moons_and_stars(targets: Tensor, biases: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """Images (n, 1, size, size), drawn four times as large and averaged."""
    n, fine = len(targets), 4
    side = torch.where(torch.rand(n, generator=draw) < 0.5, -1.0, 1.0)
    # x and y, downwards, have the same sign in the quadrants of the moons.
    centre = 0.5 * torch.stack([side, torch.where(biases == 0, side, -side)])
    centre += 0.1 * (2 * torch.rand(2, n, generator=draw) - 1)
    radius = 0.26 + 0.14 * torch.rand(n, generator=draw)
    turn = 2 * math.pi * torch.rand(n, generator=draw)
    line = (torch.arange(fine * size) + 0.5) / (fine * size) * 2 - 1
    images = torch.empty(n, 1, size, size)
    for rows in torch.arange(n).split(500):
        at, r = centre[:, rows, None, None], radius[rows, None, None]
        x, y = (line - at[0]) / r, (line[:, None] - at[1]) / r
        distance = (x.square() + y.square()).sqrt()
        angle = torch.atan2(*torch.broadcast_tensors(y, x)) + turn[rows, None, None]
        # A moon is a disc less another; a star has ten straight edges, all alike when folded.
        from_other = (distance * angle.cos() - 0.5).square() + (distance * angle.sin()).square()
        moon = (distance <= 1) & (from_other > 0.85**2)
        tenth = math.pi / 5
        folded = ((angle % (2 * tenth)) - tenth).abs()  # from a dent, 0, to a tip
        dent = 0.45 * torch.tensor([math.cos(tenth), math.sin(tenth)])
        along, across = distance * (tenth - folded).cos(), distance * (tenth - folded).sin()
        star = dent[1] * (1 - along) - (1 - dent[0]) * across >= 0
        shape = torch.where(targets[rows, None, None] == 0, moon, star)
        images[rows] = F.avg_pool2d(shape[:, None].float(), fine)
    return images
