"""PoisonedDataset keeps its books; the benchmark's files are read, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from lightning_robust import AnnotatedDataset, ContractError
from lightning_robust.contracts import groups_of, targets_of
from lightning_robust.data import (
    PoisonedDataset,
    draw_examples,
    load_benchmark_poisons,
    load_benchmark_setups,
)

CLEAN = TensorDataset(torch.arange(12.0).view(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))
POISONS = -torch.ones(2, 2)


def test_replaces_inputs_and_nothing_else():
    dataset = PoisonedDataset(CLEAN, POISONS, [4, 1])
    assert dataset.poisoned.tolist() == [False, True, False, False, True, False]
    assert targets_of(dataset).tolist() == [0, 1, 2, 0, 1, 2]
    for index in range(6):
        x, y = dataset[index]
        expected = CLEAN[index] if index not in (1, 4) else (POISONS[0], CLEAN[index][1])
        assert torch.equal(x, expected[0])
        assert torch.equal(y, expected[1])
    assert torch.equal(CLEAN[4][0], torch.tensor([8.0, 9.0]))


def test_new_labels():
    dataset = PoisonedDataset(CLEAN, POISONS, [4, 1], labels=[2, 0])
    assert targets_of(dataset).tolist() == [0, 0, 2, 0, 2, 2]
    assert [int(dataset[i][1]) for i in range(6)] == [0, 0, 2, 0, 2, 2]
    assert targets_of(CLEAN).tolist() == [0, 1, 2, 0, 1, 2]


def test_poisons_are_told_apart():
    dataset = PoisonedDataset(CLEAN, [torch.tensor([7.0, 7.0]), torch.zeros(2)], [4, 1])
    assert dataset[4][0].tolist() == [7, 7]
    assert dataset[1][0].tolist() == [0, 0]


def test_keeps_groups_and_follows_subsets():
    groups = [0, 0, 1, 1, 2, 2]
    annotated = AnnotatedDataset(CLEAN, groups=groups, group_names=["a", "b", "c"])
    dataset = PoisonedDataset(annotated, POISONS, [4, 1])
    assert groups_of(dataset).ids.tolist() == groups
    assert groups_of(Subset(dataset, [5, 0])).names == ("a", "b", "c")
    with pytest.raises(ContractError, match="groups"):
        groups_of(PoisonedDataset(CLEAN, POISONS, [4, 1]))


class Pair(NamedTuple):
    image: int
    label: int


@pytest.mark.parametrize(
    ("item", "keys", "expected"),
    [
        ({"image": 1, "label": 0, "id": 5}, ("image", "label"), {"image": 9, "label": 1, "id": 5}),
        ([5, 1, 0], (1, 2), [5, 9, 1]),
        (Pair(1, 0), (0, 1), Pair(9, 1)),
    ],
)
def test_any_form_of_item(item, keys, expected):
    dataset = PoisonedDataset(
        AnnotatedDataset([item, item], targets=[0, 0]),
        [8],
        [1],
        labels=[1],
        transform=lambda poison: poison + 1,
        input_key=keys[0],
        label_key=keys[1],
    )
    assert dataset[0] == item
    assert dataset[1] == expected
    assert type(dataset[1]) is type(item)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"indices": [1]}, "indices must be 2 different"),
        ({"indices": [1, 1]}, "indices must be 2 different"),
        ({"indices": [1, 6]}, "6 at index 1"),
        ({"indices": [1, 2], "labels": [0]}, "labels must be 2"),
    ],
)
def test_refuses(settings, words):
    with pytest.raises(ContractError, match=words):
        PoisonedDataset(CLEAN, POISONS, **settings)


# --- the benchmark's files ------------------------------------------------------------------------


def image(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8))


def dump(folder, **contents):
    for name, content in contents.items():
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("patch", [torch.ones(3, 2, 2), np.ones((3, 2, 2)), None])
def test_reads_published_poisons(tmp_path, patch):
    trigger = () if patch is None else (patch, [1, 2])
    dump(
        tmp_path,
        poisons=[(image(10), 1), (image(20), np.int64(1))],
        base_indices=np.array([3, 0]),
        target=(image(30), 2, *trigger),
    )
    found = load_benchmark_poisons(tmp_path)
    assert found.labels.tolist() == [1, 1]
    assert found.indices.tolist() == [3, 0]
    assert found.target_label == 2
    assert found.target.getpixel((0, 0)) == (30, 30, 30)
    if patch is not None:
        assert torch.equal(found.patch, torch.ones(3, 2, 2))
        assert found.corner == (1, 2)
    clean = AnnotatedDataset([(image(0), 1)] * 4, targets=[1] * 4)
    dataset = found.poison(clean, lambda picture: picture.getpixel((0, 0))[0])
    assert [dataset[0][0], dataset[3][0]] == [20, 10]


def test_reads_setups(tmp_path):
    setup = {"target class": 1, "target index": 7, "base class": 2, "base indices": np.arange(3)}
    dump(tmp_path, setups=[setup] * 100)
    found = load_benchmark_setups(tmp_path / "setups.pickle")
    assert len(found) == 100
    assert (found[0].target_class, found[0].target_index, found[0].base_class) == (1, 7, 2)
    assert found[0].base_indices.tolist() == [0, 1, 2]
    dump(tmp_path, other=[{"target class": 1}])
    with pytest.raises(ContractError, match="target index"):
        load_benchmark_setups(tmp_path / "other.pickle")


class Calls:
    """Pickles as a call that unpickling would make."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_runs_nothing(tmp_path):
    """Neither in the pickle nor in a tensor inside it, which torch unpickles by itself."""
    bomb = Calls(os.mkdir, str(tmp_path / "ran"))
    inside = Calls(torch.storage._load_from_bytes, pickle.dumps(bomb, protocol=2))
    for content, word in ((bomb, "mkdir"), (inside, "cannot be read")):
        dump(tmp_path, setups=[content])
        with pytest.raises(ContractError, match=word):
            load_benchmark_setups(tmp_path / "setups.pickle")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(bomb, protocol=2))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("missing", ["poisons", "base_indices", "target"])
def test_names_what_is_missing_or_broken(tmp_path, missing):
    files = {"poisons": [(image(1), 1)], "base_indices": [0], "target": (image(1), 1)}
    dump(tmp_path, **files)
    path = tmp_path / f"{missing}.pickle"
    path.write_bytes(pickle.dumps(files[missing])[:-5])
    with pytest.raises(ContractError, match=f"{missing}.*cannot be read"):
        load_benchmark_poisons(tmp_path)
    path.unlink()
    with pytest.raises(ContractError, match=f"{missing}.*is missing"):
        load_benchmark_poisons(tmp_path)
    dump(tmp_path, **{missing: 5})
    with pytest.raises(ContractError, match="does not hold"):
        load_benchmark_poisons(tmp_path)


# --- pictures -------------------------------------------------------------------------------------


def test_draws_what_was_dropped(tmp_path):
    pytest.importorskip("matplotlib")
    pictures = AnnotatedDataset([(image(i), 0) for i in range(3)], targets=[0] * 3)
    figure = draw_examples(pictures, torch.tensor([2, 0]), marked=torch.tensor([1, 0, 0]))
    assert [axis.get_title() for axis in figure.axes] == ["2", "0"]
    figure.savefig(tmp_path / "dropped.png")
    tensors = TensorDataset(torch.rand(3, 1, 4, 4), torch.zeros(3))
    assert len(draw_examples(tensors, range(3), columns=2).axes) == 3
    with pytest.raises(ContractError, match="example 1 is no image"):
        draw_examples(CLEAN, [1])
    with pytest.raises(ContractError, match="got none"):
        draw_examples(tensors, [])
