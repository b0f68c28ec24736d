"""Small files in the layouts of the real text data sets, and a tokenizer of a few words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from imitations import write_csv
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TAGS = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "rude", "kind", "man", "is", "not", "two", "+")
FEATURES = ("train_bert-base-uncased_128_mnli", "dev_bert-base-uncased_128_mnli")
FEATURES += ("dev_bert-base-uncased_128_mnli-mm",)


def tokenizer(folder: Path) -> str:
    """The folder, in which there is a tokenizer of a word a token now."""
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)
    return str(folder)


def civil_comments(root: Path, layout: str = "WILDS", n: int = 60) -> list[dict[str, Any]]:
    """Also returns what was written; scores are on both sides of one half, and on it."""
    rows = [
        {
            "id": i,
            "comment_text": f'a {"rude" if i % 3 == 0 else "kind"} man,\n"not" two'
            + " a" * (i % 4),
            "split": ("train", "train", "train", "val", "test")[i % 5],
            "toxicity": (0.5, 0.1, 0.49)[i % 3],
            **{tag: 0.5 if (i // 5) % (j + 2) == 0 else 0.2 for j, tag in enumerate(TAGS)},
        }
        for i in range(n)
    ]
    for row in rows[:20]:
        row |= dict.fromkeys(TAGS, 0.0)
    folder = root / {"WILDS": "civilcomments_v1.0", "SubpopBench": "civilcomments"}[layout]
    header = ["", *rows[0], "identity_any"]
    lines = [[i, *row.values(), 1.0] for i, row in enumerate(rows)]
    write_csv(folder / "all_data_with_identities.csv", header, lines)
    return rows


@contextmanager
def _utils_glue() -> Iterator[type]:
    """The class of the script that wrote the published files."""
    module = ModuleType("utils_glue")
    module.InputFeatures = type("InputFeatures", (), {"__module__": "utils_glue"})
    sys.modules["utils_glue"] = module
    try:
        yield module.InputFeatures
    finally:
        del sys.modules["utils_glue"]


def multi_nli(root: Path, layout: str = "group_DRO", n: int = 60) -> list[tuple[int, int, int]]:
    """Also returns class, negation and split of each pair, in order."""
    written = [(i % 3, (i // 3) % 2, (0, 0, 0, 1, 2)[i % 5]) for i in range(n)]
    folder = root / {"group_DRO": "", "SubpopBench": "multinli"}[layout]
    if layout == "group_DRO":
        header = ["", "gold_label", "sentence2_has_negation", "split"]
        lines = [(i + 7, *row) for i, row in enumerate(written)]
        write_csv(folder / "data" / "metadata_random.csv", header, lines)
    else:
        header = ["id", "filename", "split", "y", "a"]
        lines = [(i, i, split, y, a) for i, (y, a, split) in enumerate(written)]
        write_csv(folder / "metadata_multinli.csv", header, lines)
    glue = folder / "glue_data" / "MNLI"
    glue.mkdir(parents=True)
    with _utils_glue() as kind:
        features = []
        for i, (y, _, _) in enumerate(written):
            one = kind()
            used = 4 + i % 5
            one.input_ids = [2, 4 + y, *[6] * (used - 2), *[0] * (10 - used)]
            one.input_mask = [1] * used + [0] * (10 - used)
            one.segment_ids = [0] * 2 + [1] * (used - 2) + [0] * (10 - used)
            one.label_id = y
            features.append(one)
        parts = (features[: n // 2], features[n // 2 : n - 5], features[n - 5 :])
        for name, part in zip(FEATURES, parts, strict=True):
            torch.save(part, glue / f"cached_{name}")
    return written


def snli(root: Path) -> None:
    folder = root / "snli_1.0"
    folder.mkdir(parents=True)
    labels = ("entailment", "neutral", "contradiction", "-")
    for part, n in (("train", 40), ("dev", 12), ("test", 8)):
        rows = [
            {
                "gold_label": labels[i % 4],
                "sentence1": "a man is rude",
                "sentence2": "a man" * (i % 3),
            }
            for i in range(n)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"snli_1.0_{part}.jsonl").write_text(lines)


def math_instruct(root: Path, file: str = "MathInstruct.json", n: int = 40) -> list[dict[str, str]]:
    """Also returns what was written; a name that ends in ``l`` gets one object a line."""
    rows = [
        {
            "source": f"data/CoT/{'ab'[i % 2]}.json",
            "instruction": f"is two + a{' two' * (i % 3)}",
            "output": "two + two",
        }
        for i in range(n)
    ]
    root.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(map(json.dumps, rows)) + "\n"
    (root / file).write_text(lines if file.endswith("l") else json.dumps(rows))
    return rows
