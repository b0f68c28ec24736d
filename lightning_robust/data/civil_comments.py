"""CivilComments: is a comment toxic? Who is mentioned in it must not decide.

Online comments that crowd workers labelled for toxicity and for the people they mention (Borkan et
al., WWW 2019, https://arxiv.org/abs/1903.04561), with the splits of WILDS (Koh et al., ICML 2021):
269,038 for training, 45,180 for validation, 133,782 for test. Licence: CC0 1.0. Source:
https://wilds.stanford.edu/datasets/#civilcomments. Layouts: WILDS' folder ``civilcomments_v1.0``,
SubpopBench's ``civilcomments``, or the file itself in the root.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_robust.contracts import ContractError, Groups, check_choice, check_integer
from lightning_robust.data._datamodule import SPLITS, GroupDataModule, Split
from lightning_robust.data._sources import Source, read_columns
from lightning_robust.data._text import TextDataset, load_tokenizer

TAGS = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
CLASSES = ("nontoxic", "toxic")
NumGroups: TypeAlias = Literal[512, 16, 4]

_FILE = "all_data_with_identities.csv"
_FILES = tuple(f"{folder}{_FILE}" for folder in ("civilcomments_v1.0/", "civilcomments/", ""))
SOURCE = Source(
    name="CivilComments",
    address="https://wilds.stanford.edu/datasets/#civilcomments",
    place=f"put {_FILE} into civilcomments_v1.0",
    licence="CC0 1.0",
)


class CivilComments(TextDataset):
    """One split of CivilComments.

    Eight tags say who is mentioned; a comment has any number of them. With ``groups=512`` each
    combination of tags and class is a group (PDE's), with 4 whether there is any tag, and the class
    (JTT's). With 16, a group is a tag and a class (those of WILDS' worst-group accuracy): a comment
    is in the data set as often as it has tags, and not at all without.

    Args:
        root: Folder of the files.
        split: ``"train"``, ``"val"`` or ``"test"``.
        groups: 512, 16 or 4.
        tokenizer: Name of the model whose tokenizer it is, or a folder that holds one.
        max_length: Tokens kept of a comment.

    Attributes:
        targets: (n,) int64, 1 for a toxicity of at least one half.
        tags: (n, 8) bool, tags of at least one half.
        groups: (n,) int64.
        group_names: Such as ``"toxic: male, black"``, ``"toxic: male"`` or ``"toxic: any tag"``.

    Raises:
        ContractError: If an argument is refused, or files are missing or broken.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Split = "train",
        *,
        groups: NumGroups = 512,
        tokenizer: str = "distilbert-base-uncased",
        max_length: int = 300,
    ) -> None:
        check_choice("split", split, SPLITS)
        check_choice("groups", groups, (512, 16, 4))
        path = SOURCE.find(Path(root).expanduser(), _FILES)
        table = read_columns(path, ("comment_text", "split", "toxicity", *TAGS))
        scores = _scores(path, [table[name] for name in ("toxicity", *TAGS)]) >= 0.5
        here = torch.tensor([name == split for name in table["split"]])
        rows, targets, self.tags = here.nonzero().flatten(), *_parts(scores[here])
        ids = 2 * targets + self.tags.any(1)
        names = [f"{word}: {part}" for word in CLASSES for part in ("no tag", "any tag")]
        if groups == 512:
            ids = 256 * targets + self.tags.long() @ (2 ** torch.arange(8))
            names = [f"{word}: {_spelled(number)}" for word in CLASSES for number in range(256)]
        elif groups == 16:
            comments, tag = self.tags.nonzero(as_tuple=True)
            rows, targets, self.tags = rows[comments], targets[comments], self.tags[comments]
            ids = 8 * targets + tag
            names = [f"{word}: {name}" for word in CLASSES for name in TAGS]
        texts = [table["comment_text"][row] for row in rows.tolist()]
        annotated = Groups.from_ids(ids, names)
        super().__init__(texts, None, targets, annotated, load_tokenizer(tokenizer), max_length)


class CivilCommentsDataModule(GroupDataModule):
    """The three splits of :class:`CivilComments` as loaders; batches are dictionaries.

    Args:
        root: Folder of the files.
        groups: Of the training split.
        eval_groups: Of validation and test; with 16, as in WILDS, ``val/acc`` and ``test/acc`` are
            of comments with a tag, counted once a tag.
        tokenizer: Name of the model whose tokenizer it is, or a folder that holds one.
        max_length: Tokens kept of a comment.
        settings: As :class:`~lightning_robust.data.GroupDataModule`.

    Raises:
        ContractError: If an argument is refused, or files are missing.
    """

    train: CivilComments
    source, layouts = SOURCE, _FILES

    def __init__(
        self,
        root: str | Path = "data",
        *,
        groups: NumGroups = 512,
        eval_groups: NumGroups = 16,
        tokenizer: str = "distilbert-base-uncased",
        max_length: int = 300,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        check_choice("groups", groups, (512, 16, 4))
        check_choice("eval_groups", eval_groups, (512, 16, 4))
        check_integer("max_length", max_length, minimum=1)
        self.groups = groups
        self.eval_groups = eval_groups
        self.tokenizer = tokenizer
        self.max_length = max_length

    def make(self, split: Split) -> CivilComments:
        """One split."""
        return CivilComments(
            self.root,
            split,
            groups=self.groups if split == "train" else self.eval_groups,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
        )

    def collate_fn(self) -> Callable[[list[Any]], Any]:
        """Pads to the longest."""
        return self.train.collate_fn


def _scores(path: Path, columns: list[list[str]]) -> Tensor:
    try:
        return torch.from_numpy(np.array(columns, dtype=np.float64).T.copy())
    except ValueError as error:
        raise ContractError(
            f"{path}: toxicity and tags must be numbers ({error}); get the file anew"
        ) from error


def _parts(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Class (n,) and tags (n, 8)."""
    return flags[:, 0].long(), flags[:, 1:]


def _spelled(number: int) -> str:
    """The tags whose bits a number has."""
    return ", ".join(tag for bit, tag in enumerate(TAGS) if number >> bit & 1) or "no tag"
