"""Texts as datasets: tokenized when they are loaded, padded when they are put together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_robust.contracts import ContractError, Groups, check_integer
from lightning_robust.data._datamodule import GroupedDataset

Tokens: TypeAlias = dict[str, Any]

IGNORED = -100  #: The label of a token that does not count.


class Padding:
    """Puts tokenized examples together: tokens are padded to the longest, labels stacked.

    Args:
        values: What each list of tokens is padded with, by name; other entries are single numbers.

    Example:
        >>> batch = Padding({"input_ids": 9})(
        ...     [{"input_ids": [1], "labels": 0}, {"input_ids": [2, 3], "labels": 1}]
        ... )
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[1, 9], [2, 3]], [0, 1])
    """

    def __init__(self, values: Mapping[str, int]) -> None:
        self.values = dict(values)

    def __call__(self, items: Sequence[Tokens]) -> dict[str, Tensor]:
        """A batch: (n, longest) for tokens, (n,) for numbers."""
        batch = {}
        for key in items[0]:
            column = [item[key] for item in items]
            if key in self.values:
                rows = [torch.as_tensor(row, dtype=torch.int64) for row in column]
                batch[key] = pad_sequence(rows, True, self.values[key])
            else:
                batch[key] = torch.tensor(column)
        return batch


def load_tokenizer(name: str | Path) -> Any:
    """A tokenizer of Hugging Face; one without padding pads with its end of text.

    Args:
        name: Of the model it belongs to, or a folder that holds it; a folder needs no network.

    Raises:
        ContractError: There is none of that name.
        ModuleNotFoundError: transformers is missing.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "text needs transformers, which is not installed; install the extra 'text': "
            "pip install 'lightning-robust[text]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(Path(name).expanduser()))
    except (OSError, ValueError) as error:
        raise ContractError(
            f"tokenizer={str(name)!r} cannot be had ({str(error).splitlines()[0]}); give the name "
            "of a model, or a folder that a tokenizer was saved to"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class TextDataset(GroupedDataset[Tokens]):
    """Texts, or pairs of texts, with class and group.

    Items are dictionaries of ``input_ids``, ``attention_mask``, where the tokenizer gives them
    ``token_type_ids``, and the class as ``labels``. Batches are made by :attr:`collate_fn`.

    Args:
        texts: n texts.
        pairs: n second texts, or ``None``.
        targets: Class of each example (n,).
        groups: Group of each example.
        tokenizer: Of Hugging Face.
        max_length: Tokens kept of an example.

    Attributes:
        collate_fn: Makes a batch of items.
    """

    def __init__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        targets: Tensor,
        groups: Groups,
        tokenizer: Any,
        max_length: int,
    ) -> None:
        check_integer("max_length", max_length, minimum=1)
        self.texts = texts
        self.pairs = pairs
        self.targets = targets
        self.groups = groups.ids
        self.group_names = groups.names
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.collate_fn = padding_of(tokenizer)

    def __getitem__(self, index: int) -> Tokens:
        """One example."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Tokens]:
        """Several examples, tokenized at once, which is faster."""
        texts = [self.texts[index] for index in indices]
        pairs = None if self.pairs is None else [self.pairs[index] for index in indices]
        found = self.tokenizer(texts, pairs, truncation=True, max_length=self.max_length)
        columns = {**found, "labels": self.targets[indices].tolist()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def padding_of(tokenizer: Any) -> Padding:
    """What a tokenizer pads with; labels of tokens are padded with ones that do not count."""
    return Padding(
        {
            "input_ids": tokenizer.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": tokenizer.pad_token_type_id,
        }
    )


def read_json_lines(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line, or of a file that is one list of them.

    Args:
        path: The file.
        fields: What each object must have.

    Raises:
        ContractError: The file is something else, or an object lacks a field.
    """
    with path.open(encoding="utf-8") as file:
        whole = file.read(1) == "["
        file.seek(0)
        try:
            objects = json.load(file) if whole else map(json.loads, filter(str.strip, file))
            for number, one in enumerate(objects, start=1):
                if not isinstance(one, dict) or any(field not in one for field in fields):
                    raise ContractError(
                        f"{path}: object {number} must have {', '.join(fields)}; correct the file"
                    )
                yield one
        except (ValueError, UnicodeDecodeError) as error:
            if isinstance(error, ContractError):
                raise
            raise ContractError(f"{path} cannot be read ({error}); get the file anew") from error
