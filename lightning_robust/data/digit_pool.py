"""Real digits in training sets that hold more than is needed: a long tail, or near-copies."""

from __future__ import annotations

import math
from typing import Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.contracts import (
    check_at_least,
    check_choice,
    check_in_range,
    check_integer,
)
from lightning_robust.randomness import generator

_TEST_IMAGES = 40  # of each class
_JITTER = 0.02  # standard deviation of a near-copy's noise, of the grey range


class DigitPool(Dataset[tuple[Tensor, int]]):
    """scikit-learn's 1,797 handwritten digits, turned, moved and scaled, some many times over.

    The test split is 40 digits of each class, once each. The training split is made of the other
    1,397: each image is one of them.

    Args:
        split: ``"train"`` or ``"test"``.
        size: Images in the training split, but for rounding.
        imbalance: How many times larger the largest class is than the smallest; sizes in between
            fall geometrically, and which digit is where is drawn.
        redundancy: Share of the training split that are near-copies, with a noise of standard
            deviation .02, of 10 images of each class.
        seed: Draws everything.

    Attributes:
        images: (n, 64) float32 in [0, 1].
        targets: (n,) int64, the digit.
        copies: (n,) bool, what is a near-copy.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> dataset = DigitPool(size=2907, imbalance=50)
        >>> counts = dataset.targets.bincount()
        >>> len(dataset), int(counts.max()), int(counts.min())
        (2906, 1038, 21)
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        size: int = 3000,
        imbalance: float = 1.0,
        redundancy: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_choice("split", split, ("train", "test"))
        check_integer("size", size, 200)
        check_at_least("imbalance", imbalance, 1)
        check_in_range("redundancy", redundancy, 0, 1)
        check_integer("seed", seed)
        bundle = load_digits()
        greys = torch.tensor(bundle.images / 16, dtype=torch.float32)
        digits = torch.tensor(bundle.target)
        draw = generator(seed, "digit pool: split")
        members = [(digits == label).nonzero().flatten() for label in range(10)]
        members = [m[torch.randperm(len(m), generator=draw)] for m in members]
        if split == "test":
            chosen = torch.cat([m[:_TEST_IMAGES] for m in members])
            moved = _moved(greys[chosen], generator(seed, "digit pool: test"))
            self.images, self.targets = moved.flatten(1), digits[chosen]
            self.copies = torch.zeros(len(chosen), dtype=torch.bool)
            return
        members = [m[_TEST_IMAGES:] for m in members]
        draw = generator(seed, "digit pool: train")
        shares = imbalance ** (-torch.arange(10) / 9)
        shares = shares[torch.randperm(10, generator=draw)]
        counts = (size * shares / shares.sum()).round().long()
        indices, copies = [], []
        for originals, count in zip(members, counts.tolist(), strict=True):
            num_copies = round(redundancy * count)
            first = torch.randint(10, (num_copies,), generator=draw)
            others = originals[10:] if redundancy else originals
            rest = others[torch.randint(len(others), (count - num_copies,), generator=draw)]
            indices.append(torch.cat([originals[first], rest]))
            copies.append(torch.arange(count) < num_copies)
        index, self.copies = torch.cat(indices), torch.cat(copies)
        moved = _moved(greys[index], draw)
        noisy = greys[index] + _JITTER * torch.randn(greys[index].shape, generator=draw)
        self.images = torch.where(self.copies[:, None, None], noisy, moved).clamp(0, 1).flatten(1)
        self.targets = digits[index]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image (64,) and its class."""
        return self.images[index], int(self.targets[index])


def _moved(images: Tensor, draw: torch.Generator) -> Tensor:
    """Turned by up to 30 degrees, moved by up to a pixel and a half, scaled by up to a fifth."""
    u = 2 * torch.rand(4, len(images), generator=draw) - 1
    angle, scale = math.radians(30) * u[0], 1 + 0.2 * u[1]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = u[2:] * 1.5 / 4  # a pixel is a quarter: the image is 2 wide
    maps = torch.stack(
        [torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1
    )
    grid = F.affine_grid(maps, [len(images), 1, 8, 8], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
