"""Datasets with known classes and groups, each with its LightningDataModule."""

from __future__ import annotations

from lightning_robust.data.coloured_digits import ColouredDigits, ColouredDigitsDataModule
from lightning_robust.data.digit_pool import DigitPool
from lightning_robust.data.synthetic import (
    MemorizableGaussians,
    NoisyCoreGaussians,
    SeparableClouds,
    SpuriousPatches,
)

__all__ = [
    "ColouredDigits",
    "ColouredDigitsDataModule",
    "DigitPool",
    "MemorizableGaussians",
    "NoisyCoreGaussians",
    "SeparableClouds",
    "SpuriousPatches",
]
