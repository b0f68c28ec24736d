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
from lightning_robust.data.two_cues import (
    MNISTCIFAR,
    CorruptedCIFAR10,
    DoubleMNIST,
    MoonStar,
    TenColourMNIST,
    TwoCuesDataModule,
)

__all__ = [
    "MNISTCIFAR",
    "BenchmarkPoisons",
    "BenchmarkSetup",
    "ColouredDigits",
    "ColouredDigitsDataModule",
    "CorruptedCIFAR10",
    "DigitPool",
    "DoubleMNIST",
    "MemorizableGaussians",
    "MoonStar",
    "NoisyCoreGaussians",
    "PoisonedDataset",
    "SeparableClouds",
    "SpuriousPatches",
    "TenColourMNIST",
    "TwoCuesDataModule",
    "draw_examples",
    "load_benchmark_poisons",
    "load_benchmark_setups",
]
