"""Nine corruptions of images, and none: the biases of Corrupted CIFAR-10.

The names are those of Hendrycks and Dietterich (ICLR 2019), and the choice of ten is the second
set of Nam et al. (NeurIPS 2020), the one that needs no photographs of frost. The formulas and the
strengths are ours, one strength each, for images of 16 to 32 pixels: benchmarks of robustness to
these corruptions need the published files.

Each takes images (n, c, h, w) in [0, 1] and a generator, from which all its draws come, and returns
images of the same shape in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Corruption: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


def original(images: Tensor, draw: torch.Generator) -> Tensor:
    """The images as they are."""
    return images


def gaussian_noise(images: Tensor, draw: torch.Generator) -> Tensor:
    """Noise of standard deviation .15 on every value."""
    return (images + 0.15 * _normal(images, draw)).clamp(0, 1)


def shot_noise(images: Tensor, draw: torch.Generator) -> Tensor:
    """Photons counted: a Poisson number with a mean of 12 for white."""
    return (torch.poisson(12 * images, generator=draw) / 12).clamp(0, 1)


def impulse_noise(images: Tensor, draw: torch.Generator) -> Tensor:
    """A tenth of the values is 0 or 1."""
    chance = torch.rand(images.shape, generator=draw)
    return torch.where(chance < 0.1, (chance < 0.05).to(images.dtype), images)


def speckle_noise(images: Tensor, draw: torch.Generator) -> Tensor:
    """Noise in proportion to the value, of standard deviation .4."""
    return (images * (1 + 0.4 * _normal(images, draw))).clamp(0, 1)


def gaussian_blur(images: Tensor, draw: torch.Generator) -> Tensor:
    """A Gaussian of standard deviation 1 pixel."""
    return _filtered(images, _gaussian(1.0))


def defocus_blur(images: Tensor, draw: torch.Generator) -> Tensor:
    """A disc of radius 2 pixels."""
    squares = torch.arange(-2.0, 3.0).square()
    return _filtered(images, (squares[:, None] + squares <= 4.5).float())


def glass_blur(images: Tensor, draw: torch.Generator) -> Tensor:
    """Each pixel is that of a place at most 1 away, and a light Gaussian."""
    n, c, h, w = images.shape
    moves = torch.randint(-1, 2, (2, n, h, w), generator=draw)
    rows = (torch.arange(h)[:, None] + moves[0]).clamp(0, h - 1)
    columns = (torch.arange(w) + moves[1]).clamp(0, w - 1)
    places = (rows * w + columns).flatten(1)[:, None].expand(n, c, h * w)
    return _filtered(images.flatten(2).gather(2, places).view_as(images), _gaussian(0.5))


def motion_blur(images: Tensor, draw: torch.Generator) -> Tensor:
    """The mean of 7 pixels along a diagonal."""
    return _filtered(images, torch.eye(7))


def zoom_blur(images: Tensor, draw: torch.Generator) -> Tensor:
    """The mean over zooms from 1 to 1.5 into the centre."""
    zooms = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    size = [len(images), *images.shape[1:]]
    zoomed = [
        F.grid_sample(
            images,
            F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3) / zoom, size, False),
            padding_mode="border",
            align_corners=False,
        )
        for zoom in zooms
    ]
    return torch.stack(zoomed).mean(0)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": gaussian_noise,
    "shot-noise": shot_noise,
    "impulse-noise": impulse_noise,
    "speckle-noise": speckle_noise,
    "gaussian-blur": gaussian_blur,
    "defocus-blur": defocus_blur,
    "glass-blur": glass_blur,
    "motion-blur": motion_blur,
    "zoom-blur": zoom_blur,
    "original": original,
}
"""Corruption *i* goes with class *i*."""


def _normal(images: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=draw)


def _gaussian(std: float) -> Tensor:
    """A square kernel that reaches to 3 standard deviations."""
    reach = math.ceil(3 * std)
    line = torch.exp(-(torch.arange(-reach, reach + 1.0).square()) / (2 * std**2))
    return line[:, None] * line


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Each channel filtered by a square kernel (k, k), k odd, normalised; edges are repeated."""
    reach, channels = len(kernel) // 2, images.shape[1]
    weight = (kernel / kernel.sum()).expand(channels, 1, *kernel.shape)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(padded, weight, groups=channels).clamp(0, 1)
