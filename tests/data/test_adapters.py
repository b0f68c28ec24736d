"""Datasets of Hugging Face and wilds, by what they look like; the real ones where installed."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Subset

from lightning_robust import ContractError
from lightning_robust.contracts import groups_of, targets_of
from lightning_robust.data import from_huggingface, from_wilds

ROWS = {
    "text": ["a", "b", "c", "d", "e"],
    "label": [1, 0, 1, 1, 0],
    "word": ["no", "yes", "yes", "no", "no"],
    "place": ["sea", "land", "land", "sea", "sea"],
}


class Table:
    """What this package uses of ``datasets.Dataset``."""

    column_names = list(ROWS)  # noqa: RUF012

    def __len__(self) -> int:
        return len(ROWS["text"])

    def __getitem__(self, key):
        if isinstance(key, str):
            return ROWS[key]
        return {name: values[key] for name, values in ROWS.items()}


def tables() -> list:
    found = [pytest.param(Table, id="like it")]
    try:
        import datasets
    except ModuleNotFoundError:
        return found
    return [*found, pytest.param(lambda: datasets.Dataset.from_dict(ROWS), id="the real one")]


@pytest.mark.parametrize("make", tables())
def test_columns_become_targets_and_groups(make):
    dataset = from_huggingface(make(), groups=["place", "label"])
    assert targets_of(dataset).tolist() == ROWS["label"]
    names = [f"place={p},label={y}" for p, y in zip(ROWS["place"], ROWS["label"], strict=True)]
    groups = groups_of(dataset)
    assert [groups.names[group] for group in groups.ids] == names
    assert groups.num_groups == len({*names})
    assert dataset[2] == {name: values[2] for name, values in ROWS.items()}
    assert targets_of(from_huggingface(make(), target="word")).tolist() == [0, 1, 1, 0, 0]
    assert from_huggingface(make()).groups is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"target": "class"}, "'class'"), ({"groups": ["label", "site"]}, "'site'")],
)
def test_refuses_columns_that_are_not_there(arguments, named):
    with pytest.raises(ContractError, match=named):
        from_huggingface(Table(), **arguments)
    with pytest.raises(ContractError, match="columns"):
        from_huggingface([1, 2])


class Whole:
    """What this package uses of a dataset of wilds: 8 examples, two of them for testing."""

    metadata_fields = ("background", "y", "from_source_domain")
    metadata_map = {"background": ["land", "water"], "y": ["landbird", "waterbird"]}  # noqa: RUF012
    metadata_array = torch.tensor([[0, 0, 1]] * 3 + [[1, 1, 1]] * 2 + [[0, 1, 1], [1, 0, 1]] * 1)
    y_array = metadata_array[:, 1]

    def __len__(self) -> int:
        return len(self.y_array)

    def __getitem__(self, index: int):
        return f"image {index}", self.y_array[index], self.metadata_array[index]


class Part(Subset):
    """A split, as ``get_subset`` makes it."""

    def __init__(self, dataset, indices) -> None:
        super().__init__(dataset, indices)
        self.metadata_fields, self.metadata_map = dataset.metadata_fields, dataset.metadata_map
        self.metadata_array = dataset.metadata_array[indices]
        self.y_array = dataset.y_array[indices]


def test_metadata_of_wilds_become_groups_that_mean_the_same_in_every_split():
    train = from_wilds(Part(Whole(), [0, 3, 5]), groups=["background", "y"])
    test = from_wilds(Part(Whole(), [6]), groups=["background", "y"])
    assert groups_of(train).names == groups_of(test).names
    assert groups_of(train).names[1] == "background=land,y=waterbird"
    assert [groups_of(train).ids.tolist(), groups_of(test).ids.tolist()] == [[0, 3, 1], [2]]
    assert targets_of(train).tolist() == [0, 1, 1]
    assert train[1] == ("image 3", torch.tensor(1))
    assert len(from_wilds(Whole(), groups=["y"], pairs=False)[0]) == 3


def test_refuses_what_is_not_of_wilds():
    with pytest.raises(ContractError, match="place"):
        from_wilds(Whole(), groups=["place"])
    with pytest.raises(ContractError, match="at least one"):
        from_wilds(Whole(), groups=[])
    with pytest.raises(ContractError, match="without y_array"):
        from_wilds([1], groups=["y"])
