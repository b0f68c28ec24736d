from __future__ import annotations

import hashlib
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from lightning_robust.contracts import ContractError
from lightning_robust.data._datamodule import GroupDataModule, GroupedDataset
from lightning_robust.data._sources import Source, read_columns, whole_numbers

PLACE, PAGE = "unpack it there", "https://toys.example"


class Numbers(GroupedDataset[int]):
    group_names = ("even", "odd")

    def __init__(self, n: int) -> None:
        self.targets = torch.arange(n)
        self.groups = self.targets % 2

    def __getitem__(self, index: int) -> int:
        return index


class NumbersDataModule(GroupDataModule):
    def make(self, split):
        return Numbers({"train": 100, "val": 7, "test": 9}[split])


def order(loader) -> list[int]:
    return torch.cat(list(loader)).tolist()


def test_training_is_shuffled_by_seed_alone_and_evaluation_is_in_order():
    def epoch(seed: int | None) -> list[int]:
        datamodule = NumbersDataModule(seed=seed, batch_size=3)
        datamodule.setup("fit")
        return order(datamodule.train_dataloader())

    before = torch.get_rng_state()
    first = epoch(1)
    assert sorted(first) == list(range(100)) != first
    assert epoch(1) == first != epoch(2)
    datamodule = NumbersDataModule(batch_size=2)
    datamodule.setup("validate")
    assert order(datamodule.val_dataloader()) == list(range(7))
    assert order(datamodule.test_dataloader()) == list(range(9))
    assert datamodule.val_dataloader().batch_size == 8
    assert torch.equal(torch.get_rng_state(), before)


def test_splits_are_made_once():
    datamodule = NumbersDataModule()
    datamodule.setup("fit")
    train = datamodule.train
    datamodule.setup("test")
    assert datamodule.train is train


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("download", "yes"),
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("num_workers", -1),
        ("seed", 0.5),
    ],
)
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        NumbersDataModule(**{name: value})


def test_a_source_finds_the_first_layout_or_says_what_is_missing(tmp_path):
    source = Source("Toys", PAGE, PLACE, "CC0")
    with pytest.raises(ContractError) as error:
        source.find(tmp_path, ["a/toys.csv", "b/toys.csv"])
    for part in (str(tmp_path), "Toys", "a/toys.csv", "b/toys.csv", PAGE, PLACE, "CC0"):
        assert part in str(error.value)
    assert "download=True" not in str(error.value)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "toys.csv").touch()
    assert source.find(tmp_path, ["a/toys.csv", "b/toys.csv"]) == tmp_path / "b" / "toys.csv"


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def served(tmp_path):
    """A folder, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder)))
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_source_downloads_checks_and_unpacks(tmp_path, served):
    folder, address = served
    with zipfile.ZipFile(folder / "toys.zip", "w") as file:
        file.writestr("toys/toys.csv", "y\n1\n")
    md5 = hashlib.md5((folder / "toys.zip").read_bytes()).hexdigest()

    def source(file: str | None, md5: str | None) -> Source:
        return Source("Toys", PAGE, PLACE, "CC0", None if file is None else address + file, md5)

    source("/toys.zip", md5).download(tmp_path / "root")
    assert read_columns(tmp_path / "root" / "toys" / "toys.csv", ["y"]) == {"y": ["1"]}
    for file, checksum in (("/toys.zip", "0" * 32), ("/none.zip", md5)):
        with pytest.raises(ContractError, match=r"cannot be fetched .* by hand and unpack it"):
            source(file, checksum).download(tmp_path / "other")
    with pytest.raises(ContractError, match=r"Toys cannot be fetched \(division by zero\)"):
        Source("Toys", PAGE, PLACE, "CC0", fetch=lambda _: 1 / 0).download(tmp_path)
    source("/none.zip", md5).download(tmp_path, unless=["a", "root/toys/toys.csv"])
    with pytest.raises(ContractError, match="no address that a program may fetch"):
        source(None, None).download(tmp_path / "root")


def test_columns_are_read_by_name_with_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text('id, y,text\n7,1,"a, b\nc"\n8,0,d\n', encoding="utf-8")
    assert read_columns(path, ["text", "y"]) == {"text": ["a, b\nc", "d"], "y": ["1", "0"]}
    with pytest.raises(ContractError, match="no column 'a'"):
        read_columns(path, ["y", "a"])
    path.write_text("id,y\n7\n", encoding="utf-8")
    with pytest.raises(ContractError, match="a row without"):
        read_columns(path, ["y"])


def test_numbers_of_a_column_are_checked_with_their_row():
    with pytest.raises(ContractError, match=r"column y must be one of \(0, 1\), got '2' at row 2"):
        whole_numbers(["0", "2"], "column y", (0, 1))
    with pytest.raises(ContractError, match="column y must be numbers"):
        whole_numbers(["0", "bird"], "column y", (0, 1))
