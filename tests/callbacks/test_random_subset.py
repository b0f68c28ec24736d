from __future__ import annotations

import pytest

from lightning_robust import ContractError, RandomSubset


@pytest.mark.parametrize(("fraction", "size"), [(0.25, 15), (0.001, 1), (1.0, 60), (0.375, 22)])
def test_one_subset_stays(train, fraction, size):
    record = train(RandomSubset(fraction))
    assert len(record.examples(0)) == size
    assert record.examples(1) == record.examples(2) == record.examples(0)
    assert record.trainer.callback_metrics["random_subset/num_examples"] == size


def test_redrawn_each_epoch(train):
    record = train(RandomSubset(0.25, redraw=True), 40)
    subsets = [record.examples(epoch) for epoch in range(40)]
    assert len(set(map(frozenset, subsets))) == 40
    counts = [sum(i in subset for subset in subsets) for i in range(60)]
    assert sum(counts) == 40 * 15
    assert min(counts) > 0  # on average 10, with a standard deviation of 2.7
    assert max(counts) <= 20


def test_the_seed_decides(train):
    subsets = [train(RandomSubset(0.5, seed=seed), 1).examples(0) for seed in (0, 0, 1)]
    assert subsets[0] == subsets[1] != subsets[2]


@pytest.mark.parametrize(
    ("name", "value"), [("fraction", 0), ("fraction", 1.1), ("fraction", "all"), ("redraw", 1)]
)
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        RandomSubset(**{name: value})
