"""Datasets with known classes and groups, each with its LightningDataModule."""

from __future__ import annotations

from lightning_robust.data.adapters import from_huggingface, from_wilds
from lightning_robust.data.civil_comments import CivilComments, CivilCommentsDataModule
from lightning_robust.data.coloured_digits import ColouredDigits, ColouredDigitsDataModule
from lightning_robust.data.digit_pool import DigitPool
from lightning_robust.data.instructions import Instructions, InstructionsDataModule
from lightning_robust.data.multi_nli import MultiNLI, MultiNLIDataModule
from lightning_robust.data.pictures import draw_examples
from lightning_robust.data.poisoned import (
    BenchmarkPoisons,
    BenchmarkSetup,
    PoisonedDataset,
    load_benchmark_poisons,
    load_benchmark_setups,
)
from lightning_robust.data.snli import SNLI, SNLIDataModule
from lightning_robust.data.synthetic import (
    MemorizableGaussians,
    NoisyCoreGaussians,
    SeparableClouds,
    SpuriousPatches,
)

__all__ = [
    "SNLI",
    "BenchmarkPoisons",
    "BenchmarkSetup",
    "CivilComments",
    "CivilCommentsDataModule",
    "ColouredDigits",
    "ColouredDigitsDataModule",
    "DigitPool",
    "Instructions",
    "InstructionsDataModule",
    "MemorizableGaussians",
    "MultiNLI",
    "MultiNLIDataModule",
    "NoisyCoreGaussians",
    "PoisonedDataset",
    "SNLIDataModule",
    "SeparableClouds",
    "SpuriousPatches",
    "draw_examples",
    "from_huggingface",
    "from_wilds",
    "load_benchmark_poisons",
    "load_benchmark_setups",
]
