"""Composes: any two methods together; what cannot go together is refused by name."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_robust import ContractError, GroupBalance, GroupDRO, GroupMetrics, RNGState
from lightning_robust.callbacks._base import Method

from .cases import CASES
from .harness import Idle, Run, checkpoints, loader
from .modules import Examples, InlineLoss

PAIRS = list(itertools.combinations(CASES, 2))
IDS = ["-".join(method.__name__ for method in pair) for pair in PAIRS]


@pytest.mark.parametrize("pair", PAIRS, ids=IDS)
def test_any_two_methods_in_any_order(pair):
    """Votes multiply and hooks add up: the order of the callbacks does not matter."""
    runs = [Run([CASES[m].active() for m in order], InlineLoss) for order in (pair, reversed(pair))]
    assert runs[0].trace.batches == runs[1].trace.batches
    for name, weights in runs[0].weights.items():
        torch.testing.assert_close(weights, runs[1].weights[name])
    for method in pair:
        alone = Run([CASES[method].active()], InlineLoss)
        keys = set(alone.trainer.callback_metrics)
        assert keys <= set(runs[0].trainer.callback_metrics)


@pytest.mark.parametrize("pair", PAIRS, ids=IDS)
def test_votes_multiply(pair):
    methods = [CASES[m].active() for m in pair]
    run = Run([*methods, spy := VoteSpy(methods)], InlineLoss)
    assert run.trainer.current_epoch == 3
    assert spy.checked == 2


class VoteSpy(Method):
    """Multiplies the votes of the others by itself, at the end of each epoch."""

    def __init__(self, others):
        super().__init__()
        self.others, self.checked = others, 0

    def on_train_epoch_end(self, trainer, pl_module):
        super().on_train_epoch_end(trainer, pl_module)
        product = torch.ones(self.num_examples, dtype=torch.float64)
        for method in self.others:
            vote = method.vote()
            product = product if vote is None else product * vote
        sampler = self.conductor.sampler
        played = sampler.plan.weights
        played = torch.ones(self.num_examples, dtype=torch.float64) if played is None else played
        if trainer.current_epoch < 2:  # for the last epoch nothing more is decided
            torch.testing.assert_close(played, product)
            self.checked += 1


@pytest.mark.parametrize("pair", PAIRS, ids=IDS)
def test_two_resume_together(pair, tmp_path):
    def methods():
        return [CASES[m].active() for m in pair]

    whole = Run([*methods(), *checkpoints(tmp_path)], InlineLoss)
    for checkpoint in sorted(tmp_path.glob("*.ckpt"))[::4]:
        resumed = Run(methods(), InlineLoss, ckpt_path=checkpoint)
        assert not resumed.differs_from(whole), checkpoint.name


def test_all_at_once_with_metrics_and_rng_state(case):
    everything = [other.active() for other in CASES.values()]
    val = loader(Examples(24, seed=1), shuffle=False)
    run = Run([*everything, GroupMetrics(), RNGState()], InlineLoss, val=val)
    assert all(w.isfinite().all() for w in run.weights.values())
    assert {"val/worst_group_acc", "train/worst_group_acc"} <= set(run.trainer.callback_metrics)


def test_metrics_do_not_change_training(case):
    val = loader(Examples(24, seed=1), shuffle=False)
    runs = [Run([case.active(), *more], InlineLoss, val=val) for more in ([], [GroupMetrics()])]
    assert runs[0].trace.batches == runs[1].trace.batches
    assert not runs[0].differs_from(runs[1])


class ObservesBetween(Method):
    """Observes after each step, before the metrics have counted it."""

    observes = True

    def on_train_batch_end(self, *arguments):
        super().on_train_batch_end(*arguments)
        self.observe("logits")


def test_metrics_count_no_observation():
    logged = [
        Run([method, GroupMetrics()], InlineLoss).trainer.callback_metrics
        for method in (ObservesBetween(), Idle())
    ]
    assert logged[0].keys() == logged[1].keys()
    torch.testing.assert_close(*map(dict, logged), rtol=0, atol=0, equal_nan=True)


def test_two_of_one_class_are_refused_by_name():
    """Lightning does: a checkpoint could not tell them apart."""
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `GroupDRO`"):
        Run([GroupDRO(step_size=0.1), GroupDRO(step_size=0.2)], InlineLoss)


class NamesOneHead(Idle):
    """Any method may name the head."""


class NamesAnotherHead(Idle):
    """And so may this."""


def test_different_heads_are_refused_by_name():
    with pytest.raises(ContractError, match=r"different heads, \['net.0', 'net.2'\]"):
        Run([NamesOneHead(head="net.0"), NamesAnotherHead(head="net.2")], InlineLoss)


class NobodyFirst(Method):
    """Leaves out the second half."""

    def vote(self):
        return (torch.arange(self.num_examples) < self.num_examples // 2).float()


class NobodySecond(Method):
    """Leaves out the first half."""

    def vote(self):
        return (torch.arange(self.num_examples) >= self.num_examples // 2).float()


def test_votes_that_exclude_each_other_are_refused():
    Run([NobodyFirst()], InlineLoss)
    with pytest.raises(ContractError, match="leave out every example"):
        Run([NobodyFirst(), NobodySecond()], InlineLoss)


class Supplies(Method):
    """Supplies one batch of the loader's size."""

    num_batches = 1

    def supply(self, plan):
        self.plan = plan
        return self

    def batch(self, number):
        return self.plan.order(torch.Generator())[:16]


class AlsoSupplies(Supplies):
    """And so does this."""


def test_two_that_supply_whole_batches_are_refused_by_name():
    with pytest.raises(ContractError, match="Supplies and AlsoSupplies each supply whole batches"):
        Run([Supplies(), AlsoSupplies()], InlineLoss)


def test_a_supply_draws_from_what_the_votes_make():
    run = Run([Supplies(), NobodyFirst()], InlineLoss)
    for epoch in range(3):
        assert len(run.trace.epoch(epoch)) == 16
        assert max(run.trace.epoch(epoch)) < 30


def test_a_vote_multiplies_before_balancing():
    """Half the examples, balanced by group over all: the draws stay within the half."""
    run = Run([NobodyFirst(), GroupBalance()], InlineLoss)
    assert max(run.trace.epoch(0)) < 30
