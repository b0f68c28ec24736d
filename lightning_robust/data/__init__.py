"""Datasets with known classes and groups, each with its LightningDataModule."""

from __future__ import annotations

from lightning_robust.data.coloured_digits import ColouredDigits, ColouredDigitsDataModule
from lightning_robust.data.synthetic import MemorizableGaussians, SpuriousPatches

__all__ = ["ColouredDigits", "ColouredDigitsDataModule", "MemorizableGaussians", "SpuriousPatches"]
