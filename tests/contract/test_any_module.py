"""Any module: the same method runs on all of the zoo, whose members do not know it."""

from __future__ import annotations

import functools
import math

import pytest
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader

from .harness import Idle, Run, loader
from .modules import ZOO, Examples, InlineLoss, data_for


@functools.cache
def plain_run(name: str) -> Run:
    return Run([Idle()], ZOO[name], loader(data_for(name)))


@pytest.mark.parametrize("name", ZOO)
def test_runs_and_acts(case, name):
    run = Run([case.active()], ZOO[name], loader(data_for(name)))
    assert all(w.isfinite().all() for w in run.weights.values())
    assert run.differs_from(plain_run(name)), "the method made no difference"


@pytest.mark.parametrize("accumulated", [1, 3])
def test_gradient_accumulation_by_the_trainer(case, accumulated):
    """Steps are fewer, the examples are the same ones: the accumulation is not disturbed."""
    steps = math.ceil(math.ceil(60 / 16) / accumulated) * 3
    run = Run([case.active()], InlineLoss, accumulate_grad_batches=accumulated)
    assert run.trainer.global_step == steps
    assert [len(run.trace.epoch(epoch)) for epoch in range(3)] == [60, 60, 60]


class Project(LightningDataModule):
    def train_dataloader(self):
        return loader()


class WithLoaders(InlineLoss):
    def train_dataloader(self):
        return loader()


class OfADict(InlineLoss):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["only"], batch_idx)


class OfAList(InlineLoss):
    def training_step(self, batch, batch_idx):
        [pair] = batch
        return super().training_step(pair, batch_idx)


SOURCES = {
    "datamodule": (InlineLoss, Project),
    "module": (WithLoaders, lambda: None),
    "dict": (OfADict, lambda: {"only": loader()}),
    "list": (OfAList, lambda: [loader()]),
    "CombinedLoader": (OfADict, lambda: CombinedLoader({"only": loader()}, "max_size_cycle")),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_loader_may_come_from_anywhere(case, source):
    make_module, train = SOURCES[source]
    run = Run([case.active()], make_module, train())
    usual = Run([case.active()], InlineLoss)
    assert run.trace.batches == usual.trace.batches
    assert not run.differs_from(usual)


def test_example_order_does_not_depend_on_the_module(case):
    """Where nothing is observed; a sampling method sees the data, not the model."""
    if case.active().observes:
        pytest.skip("what is observed depends on the module")
    names = [name for name in ZOO if name != "one binary output"]
    orders = [Run([case.active()], ZOO[n], loader(data_for(n))).trace.batches for n in names]
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(case, precision):
    data = Examples()
    run = Run([case.active()], InlineLoss, loader(data), precision=precision)
    assert all(w.isfinite().all() for w in run.weights.values())
    assert run.differs_from(Run([Idle()], InlineLoss, loader(data), precision=precision))
