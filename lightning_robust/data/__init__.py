"""Datasets with known classes and groups, each with its LightningDataModule."""

from __future__ import annotations

from lightning_robust.data._datamodule import GroupDataModule, GroupedDataset
from lightning_robust.data.adapters import from_huggingface, from_wilds
from lightning_robust.data.celeba import CelebA, CelebADataModule
from lightning_robust.data.cifar import CIFAR, CIFARDataModule
from lightning_robust.data.civil_comments import CivilComments, CivilCommentsDataModule
from lightning_robust.data.cmnist import CMNIST, CMNISTDataModule
from lightning_robust.data.coloured_digits import (
    ColouredDigits,
    ColouredDigitsDataModule,
    DigitsBesidePatches,
)
from lightning_robust.data.digit_pool import DigitPool
from lightning_robust.data.fashion_mnist import FashionMNIST, FashionMNISTDataModule
from lightning_robust.data.image_folder import GroupedImageFolder, ImageFolderDataModule
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
from lightning_robust.data.poisoned_cifar import PoisonedCIFARDataModule
from lightning_robust.data.restricted_imagenet import (
    RestrictedImageNet,
    RestrictedImageNetDataModule,
)
from lightning_robust.data.snli import SNLI, SNLIDataModule
from lightning_robust.data.synthetic import (
    MemorizableGaussians,
    NoisyCoreGaussians,
    SeparableClouds,
    SpuriousPatches,
)
from lightning_robust.data.tiny_imagenet import TinyImageNet, TinyImageNetDataModule
from lightning_robust.data.two_cues import (
    MNISTCIFAR,
    CorruptedCIFAR10,
    DoubleMNIST,
    MoonStar,
    TenColourMNIST,
    TwoCuesDataModule,
)
from lightning_robust.data.waterbirds import Waterbirds, WaterbirdsDataModule

__all__ = [
    "CIFAR",
    "CMNIST",
    "MNISTCIFAR",
    "SNLI",
    "BenchmarkPoisons",
    "BenchmarkSetup",
    "CIFARDataModule",
    "CMNISTDataModule",
    "CelebA",
    "CelebADataModule",
    "CivilComments",
    "CivilCommentsDataModule",
    "ColouredDigits",
    "ColouredDigitsDataModule",
    "CorruptedCIFAR10",
    "DigitPool",
    "DigitsBesidePatches",
    "DoubleMNIST",
    "FashionMNIST",
    "FashionMNISTDataModule",
    "GroupDataModule",
    "GroupedDataset",
    "GroupedImageFolder",
    "ImageFolderDataModule",
    "Instructions",
    "InstructionsDataModule",
    "MemorizableGaussians",
    "MoonStar",
    "MultiNLI",
    "MultiNLIDataModule",
    "NoisyCoreGaussians",
    "PoisonedCIFARDataModule",
    "PoisonedDataset",
    "RestrictedImageNet",
    "RestrictedImageNetDataModule",
    "SNLIDataModule",
    "SeparableClouds",
    "SpuriousPatches",
    "TenColourMNIST",
    "TinyImageNet",
    "TinyImageNetDataModule",
    "TwoCuesDataModule",
    "Waterbirds",
    "WaterbirdsDataModule",
    "draw_examples",
    "from_huggingface",
    "from_wilds",
    "load_benchmark_poisons",
    "load_benchmark_setups",
]
