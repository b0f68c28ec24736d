"""Files of data sets: where they come from, and what is said when they are missing."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_robust.contracts import ContractError


@dataclass(frozen=True)
class Source:
    """Where the files of a data set are to be had, and under which licence.

    Args:
        name: Of the data set.
        address: Where to get it.
        place: What to put where, below the root, in words.
        licence: In words.
        archive: Address of a tar or zip file that :meth:`download` unpacks in the root.
        md5: Checksum of the archive, where it is publicly known.
        fetch: Fetches the files into a root, where something else than an archive is to be had.

    Example:
        >>> source = Source("Toys", "https://toys.org", "unpack toys.zip there", "CC0")
        >>> for sentence in str(source.missing("/data", ["toys/a.csv"])).split(". "):
        ...     print(sentence)
        root='/data' does not hold Toys: looked for toys/a.csv
        Get it from https://toys.org and unpack toys.zip there
        Licence: CC0
    """

    name: str
    address: str
    place: str
    licence: str
    archive: str | None = None
    md5: str | None = None
    fetch: Callable[[str], object] | None = None

    def missing(self, root: str | Path, files: Sequence[str]) -> ContractError:
        """The error to raise where files of this data set are missing.

        Args:
            root: The folder that was given.
            files: What was looked for, below the root.
        """
        automatic = self.archive is not None or self.fetch is not None
        return ContractError(
            f"root={str(root)!r} does not hold {self.name}: looked for {', '.join(files)}. "
            f"Get it from {self.address} and {self.place}"
            f"{', or pass download=True' if automatic else ''}. Licence: {self.licence}"
        )

    def find(self, root: Path, files: Sequence[str]) -> Path:
        """The first of some files that exists.

        Args:
            root: The folder that was given.
            files: The file that tells each known layout, below the root.

        Raises:
            ContractError: None is there.
        """
        for file in files:
            if (root / file).is_file():
                return root / file
        raise self.missing(root, files)

    def download(self, root: Path, unless: Sequence[str] = ()) -> None:
        """Fetch the files, check them, and unpack them in the root.

        Args:
            root: The folder that was given; made if need be.
            unless: Files below the root, any of which says that nothing needs to be fetched.

        Raises:
            ContractError: There is nothing to fetch, the address does not answer, or the checksum
                is another.
        """
        from torchvision.datasets.utils import download_and_extract_archive

        if any((root / file).is_file() for file in unless):
            return
        if self.archive is None and self.fetch is None:
            raise ContractError(
                f"download=True: {self.name} has no address that a program may fetch; get it from "
                f"{self.address} and {self.place}. Licence: {self.licence}"
            )
        try:
            if self.fetch is not None:
                self.fetch(str(root))
            else:
                download_and_extract_archive(self.archive, str(root), md5=self.md5)
        except Exception as error:  # whatever torchvision, gdown or an archive raises
            raise ContractError(
                f"download=True: {self.name} cannot be fetched ({error}); get it from "
                f"{self.address} by hand and {self.place}. Licence: {self.licence}"
            ) from error


def read_columns(path: Path, names: Sequence[str], delimiter: str = ",") -> dict[str, list[str]]:
    """Some columns of a CSV file with a header, as strings, in the order of the file.

    Args:
        path: The file; cells may be quoted and hold line breaks.
        names: The columns wanted.
        delimiter: What separates cells.

    Raises:
        ContractError: The file cannot be read, lacks a column, or has a row that is too short.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(lines, [])]
            lacking = [name for name in names if name not in header]
            if lacking:
                raise ContractError(
                    f"{path} has no column {lacking[0]!r}, only {header[:50]}; get the file anew"
                )
            places = [header.index(name) for name in names]
            rows = [[line[place] for place in places] for line in lines if line]
    except IndexError as error:
        raise ContractError(f"{path} has a row without {names}; get the file anew") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ContractError(f"{path} cannot be read ({error}); get the file anew") from error
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def whole_numbers(values: Sequence[str], name: str, allowed: Sequence[int]) -> Tensor:
    """A column of strings as integers (n,), int64; ``1.0`` is 1.

    Args:
        values: The strings.
        name: What they are, for the error.
        allowed: The values that may occur.

    Raises:
        ContractError: A value is not allowed.

    Example:
        >>> whole_numbers(["0", "1.0"], "column y", (0, 1)).tolist()
        [0, 1]
    """
    try:
        numbers: npt.NDArray[np.float64] = np.array(values, dtype=np.float64)
    except ValueError as error:
        raise ContractError(f"{name} must be numbers ({error}); correct the file") from error
    wrong = ~np.isin(numbers, allowed)
    if wrong.any():
        first = int(wrong.argmax())
        raise ContractError(
            f"{name} must be one of {tuple(allowed)}, got {values[first]!r} at row {first + 1}; "
            "correct the file"
        )
    return torch.from_numpy(numbers.astype(np.int64))
