"""Instructions and their answers, to fine-tune a language model on, such as MathInstruct.

MathInstruct (Yue et al., ICLR 2024, https://arxiv.org/abs/2309.05653) has 262,039 examples of 14
sources. Licence: MIT, with parts under others. Source:
https://huggingface.co/datasets/TIGER-Lab/MathInstruct. Layout: any file of JSON objects, one a line
or in one list, with ``instruction``, ``output`` and, if there are several sources, ``source``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_robust.contracts import ContractError, Groups, check_integer
from lightning_robust.data._datamodule import SPLITS, GroupDataModule, GroupedDataset, Split
from lightning_robust.data._sources import Source
from lightning_robust.data._text import (
    IGNORED,
    Padding,
    Tokens,
    load_tokenizer,
    padding_of,
    read_json_lines,
)
from lightning_robust.randomness import generator

PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n"

SOURCE = Source(
    name="MathInstruct",
    address="https://huggingface.co/datasets/TIGER-Lab/MathInstruct",
    place="put MathInstruct.json there, or name another file with file=",
    licence="MIT, with parts under others",
)


class Instructions(GroupedDataset[Tokens]):
    """Prompts with answers, tokenized when they are loaded; only the answers have labels.

    Items are dictionaries of ``input_ids``, ``attention_mask`` and ``labels``, all (T,).

    Args:
        rows: n objects with ``instruction``, ``output``, and maybe ``source``.
        tokenizer: Of Hugging Face; its end of text ends an answer.
        max_length: Tokens kept of an example.
        prompt: Text before an answer, with ``{instruction}`` in it.
        source_names: All sources, in the order of their ids; ``None`` takes those of ``rows``.

    Attributes:
        groups: (n,) int64, the source of each example: ``S2L(sources="dataset")`` reads it.
        targets: The same.
        group_names: The sources.
        collate_fn: Makes a batch of items.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        tokenizer: Any,
        *,
        max_length: int = 512,
        prompt: str = PROMPT,
        source_names: Sequence[str] | None = None,
    ) -> None:
        check_integer("max_length", max_length, minimum=1)
        if "{instruction}" not in prompt:
            raise ContractError(f"prompt must have {{instruction}} in it, got {prompt!r}")
        sources = [str(row.get("source", "all")) for row in rows]
        names = sorted(set(sources)) if source_names is None else list(source_names)
        number = {name: i for i, name in enumerate(names)}
        found = Groups.from_ids([number[source] for source in sources], names)
        self.rows = rows
        self.targets = self.groups = found.ids
        self.group_names = found.names
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.prompt = prompt
        self.collate_fn = Padding({**padding_of(tokenizer).values, "labels": IGNORED})

    def __getitem__(self, index: int) -> Tokens:
        """One example."""
        row = self.rows[index]
        prompt = self.prompt.replace("{instruction}", str(row["instruction"]))
        asked = self.tokenizer(prompt)["input_ids"]
        answer = self.tokenizer(str(row["output"]), add_special_tokens=False)["input_ids"]
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        ids = [*asked, *answer, *end][: self.max_length]
        labels = [*[IGNORED] * len(asked), *answer, *end][: self.max_length]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


class InstructionsDataModule(GroupDataModule):
    """Loaders of a file of instructions; batches are dictionaries of (B, T).

    Args:
        root: Folder of the file.
        file: Its name.
        tokenizer: Name of the model whose tokenizer it is, or a folder that holds one.
        max_length: Tokens kept of an example.
        prompt: Text before an answer, with ``{instruction}`` in it.
        num_held_out: Examples that are drawn for validation, and as many for test; the papers hold
            none out.
        split_seed: Draws them.
        settings: As :class:`~lightning_robust.data.GroupDataModule`.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    train: Instructions
    source = SOURCE

    def __init__(
        self,
        root: str | Path = "data",
        *,
        file: str = "MathInstruct.json",
        tokenizer: str = "EleutherAI/pythia-70m-deduped",
        max_length: int = 512,
        prompt: str = PROMPT,
        num_held_out: int = 500,
        split_seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        check_integer("max_length", max_length, minimum=1)
        check_integer("num_held_out", num_held_out, minimum=1)
        check_integer("split_seed", split_seed)
        self.file = file
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.prompt = prompt
        self.num_held_out = num_held_out
        self.split_seed = split_seed

    def make(self, split: Split) -> Instructions:
        """One split."""
        path = SOURCE.find(self.root, (self.file, f"MathInstruct/{self.file}"))
        rows = list(read_json_lines(path, ("instruction", "output")))
        n, held = len(rows), self.num_held_out
        if n <= 2 * held:
            raise ContractError(
                f"num_held_out={held} twice leaves nothing of {n} examples; take a smaller number"
            )
        order = torch.randperm(n, generator=generator(self.split_seed, "instructions: split"))
        parts = order.split([n - 2 * held, held, held])
        chosen = parts[SPLITS.index(split)].sort().values.tolist()
        return Instructions(
            [rows[index] for index in chosen],
            load_tokenizer(self.tokenizer),
            max_length=self.max_length,
            prompt=self.prompt,
            source_names=sorted({str(row.get("source", "all")) for row in rows}),
        )

    def collate_fn(self) -> Callable[[list[Any]], Any]:
        """Pads to the longest."""
        return self.train.collate_fn
