"""Coloured digits: real handwritten digits whose colour gives the class away in training only.

Built from the 1,797 8x8 digits bundled with scikit-learn (Alpaydin and Kaynak, 1998); nothing is
downloaded. The construction follows the coloured MNIST of SPARE and PDE at a fraction of the cost.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, TypeAlias

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_robust.contracts import check_choice, check_in_range, check_integer
from lightning_robust.data._draws import correlated_hues
from lightning_robust.randomness import generator

CLASS_NAMES = ("01", "23", "45", "67", "89")  #: The two digits of each class.
HUES = {"red": "ff0000", "lime": "85ff00", "cyan": "00fff3", "violet": "6e00ff", "pink": "ff00c8"}
SPLIT_SIZES = {"train": 1200, "val": 200, "test": 397}  #: Digits in each split.

Split: TypeAlias = Literal["train", "val", "test"]

_NUM_HUES = len(HUES)
_EVALUATION_BATCH_SIZE = 512  # without gradients, larger batches only save time


class ColouredDigits(Dataset[tuple[Tensor, int]]):
    """Handwritten digits in colour, with class and group of every example.

    A class is a pair of digits, class *c* being the digits 2c and 2c + 1, and its own colour is hue
    *c*. In the training split a share ``correlation`` of every class wears the class's own colour
    and the others are spread evenly over the four other colours, as exactly as whole numbers allow;
    which digits they are is drawn from ``seed``, and so is the split. The validation and the test
    split show every digit once in every colour, so that colour says nothing there.

    Args:
        split: ``"train"`` (1,200 images), ``"val"`` (200 digits, 1,000 images) or ``"test"``
            (397 digits, 1,985 images).
        correlation: Share of a class that wears its own colour in training, in [0, 1]. At .95 the
            smallest group has two or three training examples, at .98 one; closer to 1, groups are
            left without.
        seed: Draws the split and who wears which colour.

    Attributes:
        images: Images (n, 3, 8, 8), float32 in [0, 1]: grey value times hue.
        targets: Class of each example (n,), int64 in [0, 5).
        groups: Group of each example (n,), int64: ``class * 5 + hue``.
        group_names: Names of the 25 groups, such as ``"01_red"``.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> dataset = ColouredDigits("train", correlation=0.95)
        >>> len(dataset), tuple(dataset.images.shape)
        (1200, (1200, 3, 8, 8))
        >>> image, target = dataset[0]
        >>> dataset.group_names[dataset.groups[dataset.targets == 0].mode().values]
        '01_red'
    """

    group_names: tuple[str, ...] = tuple(f"{pair}_{hue}" for pair in CLASS_NAMES for hue in HUES)

    def __init__(self, split: Split = "train", correlation: float = 0.95, seed: int = 0) -> None:
        check_choice("split", split, tuple(SPLIT_SIZES))
        check_in_range("correlation", correlation, 0, 1)
        check_integer("seed", seed)
        greys, digits = _digits_of(split, seed)
        classes = digits // 2
        if split == "train":
            hues = correlated_hues(classes, correlation, generator(seed, "coloured digits: hues"))
        else:
            hues = torch.arange(_NUM_HUES).repeat(len(classes))
            greys = greys.repeat_interleave(_NUM_HUES, dim=0)
            classes = classes.repeat_interleave(_NUM_HUES)
        self.images = greys[:, None] * _hue_table()[hues][:, :, None, None]
        self.targets = classes
        self.groups = classes * _NUM_HUES + hues

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image (3, 8, 8) and its class."""
        return self.images[index], int(self.targets[index])


class DigitsBesidePatches(Dataset[tuple[Tensor, int]]):
    """White digits, and in the other half of the image a patch whose colour goes with the class.

    Object and spurious cue are apart in space, so that it can be seen which of them a model looks
    at. Two classes, digits below 5 and the others, and two colours, red and cyan, make four groups,
    as in Waterbirds. The images are 12 pixels high and 20 wide: one half, drawn for each of them,
    holds the digit and the other a square of 4 pixels, each at a place that is drawn. Splits,
    correlation and who wears which colour are as in :class:`ColouredDigits`.

    Args:
        split: ``"train"`` (1,200 images), ``"val"`` (200 digits, 400 images) or ``"test"``
            (397 digits, 794 images).
        correlation: Share of a class beside its own colour in training, in [0, 1].
        seed: Draws the split, who wears which colour, and places.

    Attributes:
        images: Images (n, 3, 12, 20), float32 in [0, 1].
        boxes: (n, 12, 20) bool, the 8x8 pixels that hold the digit.
        targets: Class of each example (n,), int64 in [0, 2).
        groups: Group of each example (n,), int64: ``class * 2 + hue``.
        group_names: Names of the 4 groups, such as ``"0-4_red"``.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> dataset = DigitsBesidePatches("train")
        >>> tuple(dataset.images.shape), dataset.boxes[0].sum()
        ((1200, 3, 12, 20), tensor(64))
    """

    group_names: tuple[str, ...] = ("0-4_red", "0-4_cyan", "5-9_red", "5-9_cyan")

    def __init__(self, split: Split = "train", correlation: float = 0.95, seed: int = 0) -> None:
        check_choice("split", split, tuple(SPLIT_SIZES))
        check_in_range("correlation", correlation, 0, 1)
        check_integer("seed", seed)
        greys, digits = _digits_of(split, seed)
        self.targets = digits // 5
        if split == "train":
            draw = generator(seed, "digits beside patches: hues")
            hues = correlated_hues(self.targets, correlation, draw, num_hues=2)
        else:
            hues = torch.arange(2).repeat(len(digits))
            greys = greys.repeat_interleave(2, dim=0)
            self.targets = self.targets.repeat_interleave(2)
        self.groups = 2 * self.targets + hues
        n, draw = len(greys), generator(seed, f"digits beside patches: {split}")
        right = torch.randint(2, (n,), generator=draw)
        digit_here, patch_here = _window(8, right, draw), _window(4, 1 - right, draw)
        white, self.boxes = torch.zeros(n, 12, 20), torch.zeros(n, 12, 20, dtype=torch.bool)
        white[digit_here] = greys
        self.boxes[digit_here] = True
        patches = torch.zeros(n, 12, 20)
        patches[patch_here] = 1
        colours = _hue_table()[[list(HUES).index("red"), list(HUES).index("cyan")]][hues]
        self.images = white[:, None] + patches[:, None] * colours[:, :, None, None]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image (3, 12, 20) and its class."""
        return self.images[index], int(self.targets[index])


class ColouredDigitsDataModule(LightningDataModule):
    """The three splits of :class:`ColouredDigits` as loaders.

    Training batches are shuffled by a private generator: the same ``seed`` gives the same batches,
    whatever was drawn from torch's global one.

    Args:
        correlation: Share of a class that wears its own colour in training, in [0, 1].
        seed: Draws the split, who wears which colour, and the order of training.
        batch_size: Images a training batch; evaluation uses larger ones.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> datamodule = ColouredDigitsDataModule(batch_size=32)
        >>> datamodule.setup("fit")
        >>> images, targets = next(iter(datamodule.train_dataloader()))
        >>> tuple(images.shape)
        (32, 3, 8, 8)
    """

    def __init__(self, correlation: float = 0.95, *, seed: int = 0, batch_size: int = 64) -> None:
        super().__init__()
        check_in_range("correlation", correlation, 0, 1)
        check_integer("seed", seed)
        check_integer("batch_size", batch_size, minimum=1)
        self.correlation = correlation
        self.seed = seed
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Render the three splits, a matter of milliseconds, whatever the stage."""
        self.train, self.val, self.test = (
            ColouredDigits(split, self.correlation, self.seed) for split in ("train", "val", "test")
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Shuffled batches of the training split."""
        order = generator(self.seed, "coloured digits: order")
        return DataLoader(self.train, self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The validation split, in order."""
        return DataLoader(self.val, _EVALUATION_BATCH_SIZE)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test split, in order."""
        return DataLoader(self.test, _EVALUATION_BATCH_SIZE)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Grey images (1797, 8, 8), float32 in [0, 1], and the digits they show (1797,), int64."""
    bundle = load_digits()
    return torch.tensor(bundle.images / 16, dtype=torch.float32), torch.tensor(bundle.target).long()


def _digits_of(split: Split, seed: int) -> tuple[Tensor, Tensor]:
    """Grey images (n, 8, 8) of a split, and the digits they show (n,)."""
    greys, digits = _digits()
    order = torch.randperm(len(digits), generator=generator(seed, "coloured digits: split"))
    chosen = order.split(list(SPLIT_SIZES.values()))[list(SPLIT_SIZES).index(split)]
    return greys[chosen], digits[chosen]


def _window(size: int, right: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of a square (n, size, size) at any place in a half (n,) of n images of 12 by 20."""
    n, pixels = len(right), torch.arange(size)
    top = torch.randint(12 - size + 1, (n, 1, 1), generator=draw)
    left = torch.randint(10 - size + 1, (n, 1, 1), generator=draw) + 10 * right[:, None, None]
    return torch.arange(n)[:, None, None], top + pixels[:, None], left + pixels


def _hue_table() -> Tensor:
    """Red, green and blue of each hue (5, 3), float32 in [0, 1]."""
    return torch.tensor([list(bytes.fromhex(hue)) for hue in HUES.values()]) / 255
