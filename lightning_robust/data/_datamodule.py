"""What every data set of the field offers, and the loaders of its three splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_robust.contracts import check_bool, check_integer
from lightning_robust.data._sources import Source
from lightning_robust.randomness import generator, resolve_seed

Item = TypeVar("Item", covariant=True)
Split: TypeAlias = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class GroupedDataset(Dataset[Item]):
    """A map-style dataset that knows the class and the group of each of its n examples.

    Attributes:
        targets: Class of each example (n,), int64.
        groups: Group of each example (n,), int64; the ids mean the same in every split.
        group_names: One name a group, the same in every split.
    """

    targets: Tensor
    groups: Tensor
    group_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    @property
    def clean(self) -> GroupedDataset[Item]:
        """The same examples in the same order, without augmentation: for ``clean_dataset=``."""
        return self


class GroupDataModule(LightningDataModule):
    """Loaders of the training, the validation and the test split of a data set.

    A data set's own module makes its splits in :meth:`make`, names its ``source``, and may put
    items together in :meth:`collate_fn`. All ranks make the same splits; only one downloads.
    Training is shuffled by a private generator, a function of seed and epoch. Validation and test
    are in order.

    Args:
        root: Folder of the files.
        download: Fetch what is missing, where the data set can be fetched.
        batch_size: Examples a training batch.
        eval_batch_size: Examples a batch of validation and test; ``None`` takes four times
            ``batch_size``, as nothing is kept there for a backward pass.
        num_workers: Processes that load; 0 loads in the main one.
        seed: Of the order of training; ``None`` takes the one given to ``seed_everything``, else 0.

    Attributes:
        train: The training split, once :meth:`setup` has run.
        val: The validation split.
        test: The test split.

    Raises:
        ContractError: If an argument is refused; in :meth:`setup`, if files are missing.
    """

    source: Source
    """Where the files come from."""
    layouts: ClassVar[Sequence[str]] = ()
    """Files below the root, any of which says that nothing needs to be downloaded."""

    train: GroupedDataset[Any]
    val: GroupedDataset[Any]
    test: GroupedDataset[Any]

    def __init__(
        self,
        root: str | Path = "data",
        *,
        download: bool = False,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_bool("download", download)
        check_integer("batch_size", batch_size, minimum=1)
        if eval_batch_size is not None:
            check_integer("eval_batch_size", eval_batch_size, minimum=1)
        check_integer("num_workers", num_workers)
        if seed is not None:
            check_integer("seed", seed)
        self.root = Path(root).expanduser()
        self.download = download
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed

    # ---- what a data set says ------------------------------------------------------------------

    def make(self, split: Split) -> GroupedDataset[Any]:
        """One split, augmented if it is for training and augmentation is wanted."""
        raise NotImplementedError

    def collate_fn(self) -> Callable[[list[Any]], Any] | None:
        """What makes a batch of items; ``None`` is torch's own. Must pickle, for workers."""
        return None

    # ---- Lightning's hooks ---------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download, if asked to; Lightning calls this in one process."""
        if self.download:
            self.source.download(self.root, unless=self.layouts)

    def setup(self, stage: str) -> None:
        """Make the three splits, once, whatever the stage."""
        if not hasattr(self, "test"):
            self.train, self.val, self.test = (self.make(split) for split in SPLITS)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training split."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        order = generator(resolve_seed(self.seed), "data: order", epoch)
        return self._loader(self.train, self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation split, in order."""
        return self._loader(self.val, self.eval_batch_size or 4 * self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test split, in order."""
        return self._loader(self.test, self.eval_batch_size or 4 * self.batch_size)

    def _loader(self, dataset: Dataset[Any], size: int, **settings: Any) -> DataLoader[Any]:
        settings.setdefault("generator", torch.Generator())  # iter() draws a seed: not globally
        return DataLoader(
            dataset,
            size,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn(),
            pin_memory=torch.cuda.is_available(),
            **settings,
        )
