"""CIFAR-10 with the poisons of the benchmark of Schwarzschild et al. (ICML 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import pil_to_tensor

from lightning_robust.contracts import ContractError
from lightning_robust.data._class_images import ClassImages
from lightning_robust.data._datamodule import Split
from lightning_robust.data.cifar import CIFARDataModule
from lightning_robust.data.poisoned import load_benchmark_poisons


class PoisonedCIFARDataModule(CIFARDataModule):
    """CIFAR whose training images are replaced by an attack's, where it has them.

    Args:
        root: Folder that holds ``cifar-10-batches-py``.
        poisons: Folder of one attack, with ``poisons.pickle``, ``base_indices.pickle`` and
            ``target.pickle``: see :func:`~lightning_robust.data.load_benchmark_poisons`. ``None``
            leaves the training split clean.
        settings: As :class:`~lightning_robust.data.CIFARDataModule`.

    Raises:
        ContractError: If an argument is refused; in :meth:`setup`, if files are missing, or the
            poisons are not of this training split.
    """

    def __init__(
        self, root: str | Path = "data", *, poisons: str | None = None, **settings: Any
    ) -> None:
        super().__init__(root, **settings)
        self.poisons = poisons

    def make(self, split: Split) -> ClassImages:
        """One split, that for training with its poisons."""
        dataset = super().make(split)
        if split == "train" and self.poisons is not None:
            found = load_benchmark_poisons(Path(self.poisons).expanduser())
            if int(found.indices.max()) >= len(dataset):
                raise ContractError(
                    f"poisons={self.poisons!r} replace image {int(found.indices.max())}, and the "
                    f"training split has {len(dataset)}; leave imbalance and held_out as they are"
                )
            dataset.images = dataset.images.clone()
            dataset.images[found.indices] = torch.stack([pil_to_tensor(p) for p in found.images])
            dataset.targets = dataset.targets.clone()
            dataset.targets[found.indices] = found.labels
        return dataset
