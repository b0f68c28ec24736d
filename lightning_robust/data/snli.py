"""SNLI: does a sentence entail, contradict or leave open another?

Bowman et al., EMNLP 2015 (https://arxiv.org/abs/1508.05326): 549,367 pairs for training, 9,842 for
validation and 9,824 for test that have a gold label. Licence: CC BY-SA 4.0. Source:
https://nlp.stanford.edu/projects/snli. Layout: the folder ``snli_1.0`` as it is unpacked, or its
files in the root.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_robust.contracts import Groups, check_choice, check_integer
from lightning_robust.data._datamodule import SPLITS, GroupDataModule, Split
from lightning_robust.data._sources import Source
from lightning_robust.data._text import TextDataset, load_tokenizer, read_json_lines

CLASSES = ("entailment", "neutral", "contradiction")
_FILES = {"train": "snli_1.0_train.jsonl", "val": "snli_1.0_dev.jsonl"}
_FILES["test"] = "snli_1.0_test.jsonl"
SOURCE = Source(
    name="SNLI",
    address="https://nlp.stanford.edu/projects/snli",
    place="unpack snli_1.0.zip there",
    licence="CC BY-SA 4.0",
    archive="https://nlp.stanford.edu/projects/snli/snli_1.0.zip",
)


class SNLI(TextDataset):
    """One split of SNLI, without the pairs that have no gold label; groups are the classes.

    Args:
        root: Folder of the files.
        split: ``"train"``, ``"val"`` or ``"test"``.
        tokenizer: Name of the model whose tokenizer it is, or a folder that holds one.
        max_length: Tokens kept of a pair.

    Raises:
        ContractError: If an argument is refused, or files are missing or broken.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Split = "train",
        *,
        tokenizer: str = "roberta-base",
        max_length: int = 128,
    ) -> None:
        check_choice("split", split, SPLITS)
        file = _FILES[split]
        path = SOURCE.find(Path(root).expanduser(), (f"snli_1.0/{file}", file))
        fields = ("gold_label", "sentence1", "sentence2")
        rows = [one for one in read_json_lines(path, fields) if one["gold_label"] in CLASSES]
        targets = torch.tensor([CLASSES.index(one["gold_label"]) for one in rows])
        super().__init__(
            [one["sentence1"] for one in rows],
            [one["sentence2"] for one in rows],
            targets,
            Groups.from_ids(targets, CLASSES),
            load_tokenizer(tokenizer),
            max_length,
        )


class SNLIDataModule(GroupDataModule):
    """The three splits of :class:`SNLI` as loaders; batches are dictionaries.

    Args:
        root: Folder of the files.
        tokenizer: Name of the model whose tokenizer it is, or a folder that holds one.
        max_length: Tokens kept of a pair.
        settings: As :class:`~lightning_robust.data.GroupDataModule`.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    train: SNLI
    source, layouts = SOURCE, ("snli_1.0/snli_1.0_test.jsonl", "snli_1.0_test.jsonl")

    def __init__(
        self,
        root: str | Path = "data",
        *,
        tokenizer: str = "roberta-base",
        max_length: int = 128,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        check_integer("max_length", max_length, minimum=1)
        self.tokenizer = tokenizer
        self.max_length = max_length

    def make(self, split: Split) -> SNLI:
        """One split."""
        return SNLI(self.root, split, tokenizer=self.tokenizer, max_length=self.max_length)

    def collate_fn(self) -> Callable[[list[Any]], Any]:
        """Pads to the longest."""
        return self.train.collate_fn
