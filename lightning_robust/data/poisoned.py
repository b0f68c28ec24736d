"""Poisoned datasets: any dataset with some examples replaced, and the published ones to read."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.contracts import (
    ContractError,
    Groups,
    IntegersLike,
    groups_of,
    targets_of,
)


class PoisonedDataset(Dataset[Any]):
    """Any dataset with the inputs, and if need be the labels, of some examples replaced.

    Args:
        dataset: Map-style, n examples; items are tuples, lists or dictionaries.
        poisons: The inputs that take the place of others, m of them: a tensor (m, ...), or a
            sequence of anything, such as images.
        indices: (m,) dataset indices, all different.
        labels: (m,) new labels; ``None`` keeps those of the dataset (clean-label poisons).
        transform: Applied to a poison when it is loaded, such as the augmentation that the dataset
            does to its own inputs.
        input_key: Where the input stands in an item: a place, or a key.
        label_key: Where the label stands, for ``labels``.

    Attributes:
        poisoned: (n,) bool, which examples are poisons.
        targets: (n,) int64, with the new labels.
        groups: (n,) int64, the dataset's; ``None`` where it has none.
        group_names: Their names.

    Raises:
        ContractError: If the dataset has no targets, or indices or labels do not fit.

    Example:
        >>> clean = torch.utils.data.TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        >>> dataset = PoisonedDataset(clean, torch.ones(1, 2), [2])
        >>> dataset.poisoned.tolist(), dataset[2]
        ([False, False, True], (tensor([1., 1.]), tensor(1)))
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        poisons: Tensor | Sequence[Any],
        indices: IntegersLike,
        *,
        labels: IntegersLike | None = None,
        transform: Callable[[Any], Any] | None = None,
        input_key: int | str = 0,
        label_key: int | str = 1,
    ) -> None:
        self.dataset = dataset
        self.poisons = poisons
        self.transform = transform
        self.input_key = input_key
        self.label_key = label_key
        self.targets = targets_of(dataset)
        n = len(self.targets)
        self.indices = _indices(indices, n, len(poisons))
        self.relabelled = labels is not None
        if labels is not None:
            self.targets[self.indices] = _labels(labels, len(self.indices))
        self.poisoned = torch.zeros(n, dtype=torch.bool)
        self.poisoned[self.indices] = True
        self.groups: Tensor | None
        self.group_names: tuple[str, ...] | None
        try:
            found = groups_of(dataset)
            self.groups, self.group_names = found.ids, found.names
        except ContractError:
            self.groups = self.group_names = None
        self._place = torch.full((n,), -1)
        self._place[self.indices] = torch.arange(len(self.indices))

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        """The dataset's item, or a copy of it with the poison in its place."""
        item = self.dataset[index]
        place = int(self._place[index])
        if place < 0:
            return item
        poison = self.poisons[place]
        changed: dict[int | str, Any] = {
            self.input_key: poison if self.transform is None else self.transform(poison)
        }
        if self.relabelled:
            label = self.targets[index]
            theirs = item[self.label_key]
            changed[self.label_key] = label.to(theirs) if isinstance(theirs, Tensor) else int(label)
        if isinstance(item, dict):
            return item | changed
        values = [changed.get(position, value) for position, value in enumerate(item)]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)


def _indices(indices: IntegersLike, n: int, m: int) -> Tensor:
    found = Groups.from_ids(indices, names=[str(i) for i in range(n)]).ids
    if len(found) != m or len(found.unique()) != m:
        raise ContractError(
            f"indices must be {m} different ones, one for each poison, got {len(found)}, of which "
            f"{len(found.unique())} different"
        )
    return found


def _labels(labels: IntegersLike, m: int) -> Tensor:
    found = Groups.from_ids(labels).ids
    if len(found) != m:
        raise ContractError(f"labels must be {m}, one for each poison, got {len(found)}")
    return found


# --- the benchmark of Schwarzschild et al. --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BenchmarkPoisons:
    """One published poisoned training set, without the training set.

    Attributes:
        images: m PIL images.
        labels: (m,) int64, theirs.
        indices: (m,) int64, of the training examples they take the place of.
        target: The PIL image that is to be misclassified.
        target_label: Its true label.
        patch: (3, h, w) float32 in [0, 1], the trigger that goes on the target; ``None`` without.
        corner: (x, y) of the patch's upper left corner.
    """

    images: list[Any]
    labels: Tensor
    indices: Tensor
    target: Any
    target_label: int
    patch: Tensor | None = None
    corner: tuple[int, int] | None = None

    def poison(
        self, dataset: Dataset[Any], transform: Callable[[Any], Any] | None = None
    ) -> PoisonedDataset:
        """Put the poisons into the benchmark's training set.

        Args:
            dataset: CIFAR-10's, or TinyImageNet's, training set, in its published order.
            transform: What the dataset does to its images.
        """
        return PoisonedDataset(
            dataset, self.images, self.indices, labels=self.labels, transform=transform
        )


def load_benchmark_poisons(folder: str | Path) -> BenchmarkPoisons:
    """Read ``poisons.pickle``, ``base_indices.pickle`` and ``target.pickle`` of one attack.

    Only images, arrays, tensors and plain values are read: a pickle that names anything else is
    refused before it could run.

    Args:
        folder: Where the three files are.

    Raises:
        ContractError: If a file is missing, broken, or holds something else.

    References:
        Schwarzschild et al., Just how toxic is data poisoning?, ICML 2021 (arXiv:2006.12557), and
        the file format of github.com/aks2203/poisoning-benchmark.
    """
    names = ("poisons.pickle", "base_indices.pickle", "target.pickle")
    poisons, indices, target = (read_plain_pickle(Path(folder) / name) for name in names)
    try:
        images = [image for image, _ in poisons]
        labels = torch.tensor([int(label) for _, label in poisons])
        positions = torch.tensor([int(index) for index in indices])
        image, target_label, *trigger = target
        patch = corner = None
        if trigger:
            patch = torch.as_tensor(trigger[0]).float()
            corner = (int(trigger[1][0]), int(trigger[1][1]))
        if len(positions) != len(images):
            raise ValueError(f"{len(images)} poisons and {len(positions)} base indices")
        return BenchmarkPoisons(images, labels, positions, image, int(target_label), patch, corner)
    except (TypeError, ValueError, IndexError) as error:
        raise ContractError(
            f"{str(folder)!r} does not hold what the poisoning benchmark describes ({error}): "
            "poisons.pickle, a list of (image, label); base_indices.pickle, a list of integers; "
            "target.pickle, (image, label) or (image, label, patch, (x, y))"
        ) from error


@dataclass(frozen=True, eq=False)
class BenchmarkSetup:
    """One of the benchmark's 100 setups: what to poison, and what for.

    Attributes:
        target_class: True label of the target.
        target_index: Of the target in the test set.
        base_class: What it is to be taken for; the poisons' label.
        base_indices: (m,) int64, training examples that may be changed.
    """

    target_class: int
    target_index: int
    base_class: int
    base_indices: Tensor


def load_benchmark_setups(path: str | Path) -> list[BenchmarkSetup]:
    """Read a file of setups, such as ``poison_setups/cifar10_from_scratch.pickle``.

    Args:
        path: The file; see :func:`load_benchmark_poisons` for what is read of it.

    Raises:
        ContractError: If the file is missing, broken, or holds something else.
    """
    found = read_plain_pickle(path)
    try:
        return [
            BenchmarkSetup(
                int(one["target class"]),
                int(one["target index"]),
                int(one["base class"]),
                torch.tensor([int(index) for index in one["base indices"]]),
            )
            for one in found
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(
            f"{str(path)!r} does not hold setups of the poisoning benchmark ({error!r}): a list of "
            "dictionaries with 'target class', 'target index', 'base class' and 'base indices'"
        ) from error


def read_plain_pickle(path: str | Path) -> Any:
    """Read a pickle of PIL images, numpy arrays, tensors and plain values, and nothing else.

    Args:
        path: The file.

    Raises:
        ContractError: If it is missing, broken, or names a function or class of another kind.
    """
    if not Path(path).is_file():
        raise ContractError(
            f"{str(path)!r} is missing; the poisoning benchmark's files are linked from "
            "github.com/aks2203/poisoning-benchmark"
        )
    try:
        with Path(path).open("rb") as file:
            return _PlainUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError) as error:
        raise ContractError(f"{str(path)!r} cannot be read: {error}") from error


def _tensor_storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


class _PlainUnpickler(pickle.Unpickler):
    """Knows by name what rebuilds images, arrays and tensors."""

    _known = frozenset(
        {
            ("PIL.Image", "Image"),
            ("PIL.PngImagePlugin", "PngImageFile"),
            ("PIL.JpegImagePlugin", "JpegImageFile"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name, if it is one of the known."""
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _tensor_storage  # the original would load anything
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, and only images, arrays and plain values are read"
            )
        return super().find_class(module, name)
