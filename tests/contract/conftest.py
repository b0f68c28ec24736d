"""Fixtures of the contract: each runs over every method of the menu."""

from __future__ import annotations

import logging

import pytest
import torch

from .cases import CASES, METHODS, Case, case_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lightning's advice about these small runs is no error; everything else is one."""
    for item in items:
        if __package__ in item.nodeid.replace("/", "."):
            for advice in (
                r"ignore:.*does not have many workers",
                r"ignore:The number of training batches .* is smaller than the logging interval",
                r"ignore:You defined a `validation_step` but have no `val_dataloader`",
                r"ignore:Be aware that when using `ckpt_path`",
                r"ignore:You're resuming from a checkpoint that ended before the epoch ended",
                r"ignore:.*multi-threaded, use of fork:DeprecationWarning",
            ):
                item.add_marker(pytest.mark.filterwarnings(advice))


@pytest.fixture(autouse=True)
def _quiet_and_on_one_thread(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for package in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(package).setLevel(logging.ERROR)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def method(request):
    """Each method of the menu."""
    return request.param


@pytest.fixture
def case(method) -> Case:
    """Its settings entry."""
    return case_of(method)


@pytest.fixture(
    params=[
        pytest.param(factory, id=f"{method.__name__}-{number}")
        for method, case in CASES.items()
        for number, factory in enumerate((case.active, *case.variants))
    ]
)
def active(request):
    """A factory for each active setting of each method."""
    return request.param
