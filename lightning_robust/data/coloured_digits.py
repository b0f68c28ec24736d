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
        greys, digits = _digits()
        order = torch.randperm(len(digits), generator=generator(seed, "coloured digits: split"))
        chosen = order.split(list(SPLIT_SIZES.values()))[list(SPLIT_SIZES).index(split)]
        greys, classes = greys[chosen], digits[chosen] // 2
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


def _hue_table() -> Tensor:
    """Red, green and blue of each hue (5, 3), float32 in [0, 1]."""
    return torch.tensor([list(bytes.fromhex(hue)) for hue in HUES.values()]) / 255
