"""MultiNLI: does a sentence entail, contradict or leave open another? Negations give it away.

Williams et al., NAACL 2018 (https://arxiv.org/abs/1704.05426), with the random split of Sagawa et
al., ICLR 2020: 206,175 pairs for training, 82,462 for validation, 123,712 for test, tokenized by
BERT. Licence: OANC for the most part. Source: https://github.com/kohpangwei/group_DRO#multinli.
Layouts: group_DRO's, ``data/metadata_random.csv``, and SubpopBench's, ``metadata_multinli.csv``,
both beside ``glue_data/MNLI/cached_...``, in the root or in its folder ``multinli``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_robust.contracts import ContractError, check_choice
from lightning_robust.data._datamodule import SPLITS, GroupDataModule, GroupedDataset, Split
from lightning_robust.data._sources import Source, read_columns, whole_numbers
from lightning_robust.data._text import Padding, Tokens

CLASSES = ("contradiction", "entailment", "neutral")
_COLUMNS = {
    "data/metadata_random.csv": ("gold_label", "sentence2_has_negation"),
    "metadata_multinli.csv": ("y", "a"),
}
_FILES = tuple(f"{folder}{file}" for folder in ("", "multinli/") for file in _COLUMNS)
_FEATURES = tuple(
    f"glue_data/MNLI/cached_{part}"
    for part in (
        "train_bert-base-uncased_128_mnli",
        "dev_bert-base-uncased_128_mnli",
        "dev_bert-base-uncased_128_mnli-mm",
    )
)
SOURCE = Source(
    name="MultiNLI",
    address="https://github.com/kohpangwei/group_DRO#multinli",
    place="put metadata_random.csv into data, and the three files of "
    "https://nlp.stanford.edu/data/dro/multinli_bert_features.tar.gz into glue_data/MNLI",
    licence="OANC and others, see the corpus",
)


class InputFeatures:
    """A tokenized pair as the published files hold it; reading them makes no other objects."""

    input_ids: list[int]
    input_mask: list[int]
    segment_ids: list[int]
    label_id: int


class MultiNLI(GroupedDataset[Tokens]):
    """One split of MultiNLI: three classes, each with and without a negation.

    Items are dictionaries of ``input_ids``, ``attention_mask`` and ``token_type_ids`` of
    bert-base-uncased, without padding, and the class as ``labels``.

    Args:
        root: Folder of the files.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Attributes:
        targets: (n,) int64: contradiction, entailment, neutral.
        groups: (n,) int64: ``2 * class + negation``.
        group_names: Such as ``"neutral, negation"``.
        collate_fn: Makes a batch of items.

    Raises:
        ContractError: If files are missing or broken.
    """

    group_names = tuple(f"{word}, {n}" for word in CLASSES for n in ("no negation", "negation"))
    collate_fn = Padding({"input_ids": 0, "attention_mask": 0, "token_type_ids": 0})

    def __init__(self, root: str | Path = "data", split: Split = "train") -> None:
        check_choice("split", split, SPLITS)
        root = Path(root).expanduser()
        path = SOURCE.find(root, _FILES)
        file = next(name for name in _COLUMNS if str(path).endswith(name))
        folder = path.parents[len(Path(file).parts) - 1]
        label, negation = _COLUMNS[file]
        table = read_columns(path, (label, negation, "split"))
        targets = whole_numbers(table[label], f"{path}: {label}", (0, 1, 2))
        negated = whole_numbers(table[negation], f"{path}: {negation}", (0, 1))
        splits = whole_numbers(table["split"], f"{path}: split", (0, 1, 2))
        features = _features(root, folder)
        if [one.label_id for one in features] != targets.tolist():
            raise ContractError(
                f"{path} does not fit the files beside it: {len(targets)} rows and {len(features)} "
                "pairs, or other classes; get all of them anew"
            )
        rows = (splits == SPLITS.index(split)).nonzero().flatten()
        kept = [features[row] for row in rows.tolist()]
        self.targets = targets[rows]
        self.groups = 2 * self.targets + negated[rows]
        self.tokens = torch.tensor([f.input_ids for f in kept], dtype=torch.int32)
        self.segments = torch.tensor([f.segment_ids for f in kept], dtype=torch.int8)
        self.lengths = torch.tensor([sum(f.input_mask) for f in kept])

    def __getitem__(self, index: int) -> Tokens:
        """One pair."""
        length = int(self.lengths[index])
        return {
            "input_ids": self.tokens[index, :length],
            "attention_mask": torch.ones(length, dtype=torch.int64),
            "token_type_ids": self.segments[index, :length],
            "labels": int(self.targets[index]),
        }


class MultiNLIDataModule(GroupDataModule):
    """The three splits of :class:`MultiNLI` as loaders; batches are dictionaries.

    Args:
        root: Folder of the files.
        settings: As :class:`~lightning_robust.data.GroupDataModule`.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    source, layouts = SOURCE, _FILES

    def __init__(self, root: str | Path = "data", **settings: Any) -> None:
        super().__init__(root, **settings)

    def make(self, split: Split) -> MultiNLI:
        """One split."""
        return MultiNLI(self.root, split)

    def collate_fn(self) -> Callable[[list[Any]], Any]:
        """Pads to the longest."""
        return MultiNLI.collate_fn


def _features(root: Path, folder: Path) -> list[InputFeatures]:
    """All pairs, in the order of the metadata."""
    found: list[InputFeatures] = []
    for name in _FEATURES:
        if not (folder / name).is_file():
            raise SOURCE.missing(root, _FEATURES)
        try:
            # The files name a class of a script that is not here; this one takes its place.
            with torch.serialization.safe_globals([(InputFeatures, "utils_glue.InputFeatures")]):
                found += torch.load(folder / name, weights_only=True)
        except Exception as error:
            raise ContractError(
                f"{folder / name} cannot be read ({error}); get the file anew"
            ) from error
    return found
