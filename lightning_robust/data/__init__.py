"""Datasets with known classes and groups, each with its LightningDataModule."""

from __future__ import annotations

from lightning_robust.data.coloured_digits import ColouredDigits, ColouredDigitsDataModule
from lightning_robust.data.digit_pool import DigitPool
from lightning_robust.data.pictures import draw_examples
from lightning_robust.data.poisoned import (
    BenchmarkPoisons,
    BenchmarkSetup,
    PoisonedDataset,
    load_benchmark_poisons,
    load_benchmark_setups,
)
from lightning_robust.data.synthetic import (
    MemorizableGaussians,
    NoisyCoreGaussians,
    SeparableClouds,
    SpuriousPatches,
)

__all__ = [
    "BenchmarkPoisons",
    "BenchmarkSetup",
    "ColouredDigits",
    "ColouredDigitsDataModule",
    "DigitPool",
    "MemorizableGaussians",
    "NoisyCoreGaussians",
    "PoisonedDataset",
    "SeparableClouds",
    "SpuriousPatches",
    "draw_examples",
    "load_benchmark_poisons",
    "load_benchmark_setups",
]
