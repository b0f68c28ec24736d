from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from scipy.stats import chisquare
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from lightning_robust.contracts import ContractError
from lightning_robust.randomness import generator
from lightning_robust.sampling import (
    PlanSampler,
    RecordingBatchSampler,
    SamplingPlan,
    is_padding,
)


class Indices(Dataset):
    """Item i is i."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


class OnRank(PlanSampler):
    """The sampler as it is on one rank of several."""

    rank = 0
    num_replicas = 1


def on_every_rank(plan: SamplingPlan, world: int, **kwargs) -> list[PlanSampler]:
    samplers = []
    for rank in range(world):
        sampler = OnRank(plan.num_examples, **kwargs)
        sampler.rank, sampler.num_replicas = rank, world
        sampler.set_plan(plan)
        samplers.append(sampler)
    return samplers


def a_plan(kind: str, n: int) -> SamplingPlan:
    weights = {
        "everything": None,
        "some": (torch.arange(n) % 3 != 1).double(),
        "weighted": torch.linspace(0, 2, n + 1, dtype=torch.float64)[1:],
    }
    return SamplingPlan(n, weights[kind])


# --- the plan -------------------------------------------------------------------------------------


def test_votes_multiply():
    g = torch.Generator().manual_seed(0)
    votes = [torch.rand(7, generator=g), torch.tensor([0.0, 1, 1, 0, 1, 1, 1]), torch.full((7,), 3)]
    weights = SamplingPlan.of_votes(votes, 7).weights
    for i in range(7):
        expected = 1.0
        for vote in votes:
            expected *= vote[i].item()
        assert weights[i].item() == pytest.approx(expected, rel=1e-12)
    assert weights.dtype == torch.float64
    assert SamplingPlan.of_votes([], 7).weights is None


def test_no_vote_is_a_shuffled_pass_over_everything():
    order = SamplingPlan(50).order(generator(0, "test")).tolist()
    assert order != sorted(order)
    assert sorted(order) == list(range(50))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool, torch.float16])
def test_votes_of_0_and_1_leave_out_without_replacement(dtype):
    kept = torch.arange(60) % 3 != 0
    plan = SamplingPlan.of_votes([kept.to(dtype)], 60)
    assert not plan.with_replacement
    assert len(plan) == 40
    order = plan.order(generator(0, "test")).tolist()
    assert sorted(order) == [i for i in range(60) if i % 3]
    assert order != sorted(order)
    assert plan.order(generator(0, "test"), shuffle=False).tolist() == sorted(order)


def test_other_votes_draw_with_replacement_in_proportion():
    weights = torch.tensor([0.5, 3.0, 0.0, 1.0, 1.0, 2.25, 0.0, 1e-3, 4.0], dtype=torch.float64)
    plan = SamplingPlan(9, weights)
    assert plan.with_replacement
    assert len(plan) == 7  # as many as have a weight
    counts = Counter()
    for epoch in range(6000):
        counts.update(plan.order(generator(0, "chi-square", epoch)).tolist())
    assert counts[2] == counts[6] == 0
    present = weights.nonzero().squeeze(1).tolist()
    expected = weights[present] / weights.sum() * 6000 * 7
    assert chisquare([counts[i] for i in present], expected).pvalue > 0.01


def test_draws_of_one_epoch_are_independent():
    """The second draw has the same law whatever the first was: both form a product."""
    plan = SamplingPlan(3, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    pairs = Counter()
    for epoch in range(9000):
        first, second, _ = plan.order(generator(1, "pairs", epoch)).tolist()
        pairs[first, second] += 1
    cells = [(i, j) for i in range(3) for j in range(3)]
    expected = [9000 * (i + 1) * (j + 1) / 36 for i, j in cells]
    assert chisquare([pairs[cell] for cell in cells], expected).pvalue > 0.01


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_extreme_draws_fall_on_examples_with_a_weight(monkeypatch, draw):
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), draw, dtype=torch.float64))
    weights = torch.tensor([0.0, 0.1, 0.7, 1e-300, 0.0], dtype=torch.float64)
    drawn = SamplingPlan(5, weights).order(generator(0, "test"))
    assert set(drawn.tolist()) <= {1, 2, 3}


def test_float16_weights_lose_nothing_to_a_large_data_set():
    """A sum of 200,000 weights is beyond float16, and beyond float32's precision per example."""
    plan = SamplingPlan.of_votes([torch.full((200_000,), 0.5).half()], 200_000)
    drawn = plan.order(generator(0, "test"))
    assert len(drawn) == 200_000
    share = (drawn < 100_000).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.006)


def test_plans_do_not_touch_the_global_generator():
    before = torch.get_rng_state()
    for kind in ("everything", "some", "weighted"):
        sampler = PlanSampler(9, seed=3)
        sampler.set_plan(a_plan(kind, 9))
        list(sampler)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("votes", "words"),
    [
        ([torch.tensor([1.0, -0.5, 1.0])], ["vote is -0.5 for example 1", ">= 0"]),
        ([torch.tensor([1.0, 1.0, float("nan")])], ["vote is nan for example 2"]),
        ([torch.tensor([float("inf"), 1.0, 1.0])], ["vote is inf for example 0"]),
        ([torch.ones(4)], [r"\(4,\)", r"\(3,\)"]),
        ([torch.ones(3, 1)], [r"\(3, 1\)"]),
        ([torch.zeros(3)], ["every example", "keep at least one"]),
        ([torch.tensor([1, 0, 1]), torch.tensor([0, 1, 0])], ["exclude each other"]),
    ],
)
def test_refuses_votes_that_cannot_be_played(votes, words):
    with pytest.raises(ContractError) as refusal:
        SamplingPlan.of_votes(votes, 3)
    for word in words:
        refusal.match(word)


# --- the sampler ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    world=st.integers(1, 7),
    kind=st.sampled_from(["everything", "some", "weighted"]),
    epoch=st.integers(0, 3),
)
def test_ranks_share_an_epoch(n, world, kind, epoch):
    plan = a_plan(kind, n)
    alone = PlanSampler(n, seed=5)
    alone.set_plan(plan)
    alone.set_epoch(epoch)
    ranks = on_every_rank(plan, world, seed=5)
    for sampler in ranks:
        sampler.set_epoch(epoch)
    shards = [list(sampler) for sampler in ranks]

    assert len({len(shard) for shard in shards}) == 1
    assert all(len(sampler) == len(shard) for sampler, shard in zip(ranks, shards, strict=True))
    assert len(shards[0]) == -(-len(plan) // world)

    together = Counter(i for shard in shards for i in shard)
    whole = list(alone)
    padding = world * len(shards[0]) - len(whole)
    assert 0 <= padding < world
    assert together - Counter(whole) == Counter(
        whole[place % len(whole)] for place in range(padding)
    )
    assert not Counter(whole) - together
    # in the order in which one process plays them
    merged = [shards[place % world][place // world] for place in range(len(whole))]
    assert merged == whole


@pytest.mark.parametrize("kind", ["everything", "some", "weighted"])
def test_the_order_is_a_pure_function_of_plan_seed_and_epoch(kind):
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            sampler, again = PlanSampler(30, seed=seed), PlanSampler(30, seed=seed)
            for one in (sampler, again):
                one.set_plan(a_plan(kind, 30))
            again.set_epoch(17)
            list(again)
            sampler.set_epoch(epoch)
            again.set_epoch(epoch)
            torch.rand(1)
            assert list(sampler) == list(sampler) == list(again)
            orders.add(tuple(sampler))
    assert len(orders) == 9


def test_an_unshuffled_sampler_plays_in_dataset_order():
    sampler = PlanSampler(6, shuffle=False)
    assert list(sampler) == [0, 1, 2, 3, 4, 5]
    sampler.set_plan(a_plan("some", 6))
    assert list(sampler) == [0, 2, 3, 5]


class Countdown:
    """Supplies batches of four, and notes for which it was asked."""

    num_batches = 3

    def __init__(self):
        self.asked = []

    def batch(self, number):
        self.asked.append(number)
        return torch.arange(4 * number, 4 * number + 4).flip(0)


def test_a_supply_is_asked_for_each_batch_when_it_is_needed_and_ranks_share_it():
    supply = Countdown()
    plan = SamplingPlan(12, torch.ones(12), supply=supply)
    sampler = PlanSampler(12, batch_size=4)
    sampler.set_plan(plan)
    assert len(sampler) == 12
    batches = iter(torch.utils.data.BatchSampler(sampler, 4, drop_last=False))
    for number in range(3):
        assert supply.asked == list(range(number))
        assert next(batches) == sampler.indices_of_batch(number).tolist()
    assert list(batches) == []
    shards = [list(sampler) for sampler in on_every_rank(plan, 2, batch_size=2)]
    assert shards == [[3, 1, 7, 5, 11, 9], [2, 0, 6, 4, 10, 8]]
    assert not is_padding(sampler, torch.arange(12)).any()


def test_a_resumed_supply_is_not_asked_for_what_was_played():
    supply = Countdown()
    sampler = PlanSampler(12, batch_size=4)
    sampler.set_plan(SamplingPlan(12, supply=supply))
    sampler.resume(0, batches_played=2)
    assert list(sampler) == [11, 10, 9, 8]
    assert supply.asked == [2]


def test_refuses_supplied_batches_of_another_size_than_the_loader():
    sampler = PlanSampler(12, batch_size=3)
    sampler.set_plan(SamplingPlan(12, supply=Countdown()))
    with pytest.raises(ContractError, match=r"4 examples and 1 rank.* play 3 each"):
        list(sampler)


def test_the_rank_is_read_when_it_is_needed(monkeypatch):
    sampler = PlanSampler(10, seed=0)
    whole = list(sampler)
    assert (sampler.rank, sampler.num_replicas) == (0, 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    assert len(sampler) == 4
    assert list(sampler) == [whole[2], whole[5], whole[8], whole[1]]


def test_a_copy_in_another_process_plays_the_same():
    sampler = PlanSampler(9, batch_size=2, seed=4)
    sampler.set_plan(a_plan("weighted", 9))
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("kind", ["everything", "some", "weighted"])
def test_a_resume_plays_the_rest_of_its_epoch_and_the_whole_of_the_next(kind, world):
    plan = a_plan(kind, 31)
    for sampler, resumed in zip(
        on_every_rank(plan, world, batch_size=2, seed=1),
        on_every_rank(plan, world, batch_size=2, seed=1),
        strict=True,
    ):
        expected = []
        for epoch in (2, 3):
            sampler.set_epoch(epoch)
            expected.append(list(sampler))
        resumed.resume(epoch=2, batches_played=2)
        assert list(resumed) == expected[0][4:]
        assert list(resumed) == expected[0][4:]  # Lightning may make its iterator twice
        assert len(resumed) == len(expected[0])  # and counts whole epochs
        assert resumed.indices_of_batch(2).tolist() == expected[0][4:6]
        resumed.set_epoch(3)
        assert list(resumed) == expected[1]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_sampler_knows_what_every_batch_holds(workers, drop_last):
    sampler = PlanSampler(23, batch_size=4, seed=2)
    sampler.set_plan(a_plan("weighted", 23))
    loader = DataLoader(
        Indices(23), batch_size=4, sampler=sampler, num_workers=workers, drop_last=drop_last
    )
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == (5 if drop_last else 6)
        for number, batch in enumerate(batches):
            assert sampler.indices_of_batch(number).tolist() == batch.tolist()


def test_indices_of_a_batch_need_an_iteration():
    with pytest.raises(RuntimeError, match="iteration"):
        PlanSampler(4).indices_of_batch(0)


# --- recording ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_recording_tells_what_every_batch_holds(workers, persistent):
    loader = DataLoader(
        Indices(23),
        batch_size=4,
        sampler=RandomSampler(Indices(23), generator=generator(0, "test")),
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
    )
    theirs = loader.batch_sampler
    recording = RecordingBatchSampler.put_in(loader)
    assert RecordingBatchSampler.put_in(loader) is recording
    orders = []
    for _ in range(3):
        next(iter(loader))  # an iteration that is given up, as by a sanity check
        batches = [batch.tolist() for batch in loader]
        assert len(batches) == len(loader) == 6
        assert [recording.next_batch() for _ in batches] == batches
        orders.append(batches)
    assert orders[0] != orders[1] != orders[2]
    with pytest.raises(IndexError):
        recording.next_batch()
    RecordingBatchSampler.take_out(loader)
    assert loader.batch_sampler is theirs
    RecordingBatchSampler.take_out(loader)
    assert loader.batch_sampler is theirs


def test_recording_follows_a_sampler_that_is_exchanged_under_persistent_workers():
    loader = DataLoader(Indices(8), batch_size=4, num_workers=1, persistent_workers=True)
    recording = RecordingBatchSampler.put_in(loader)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    RecordingBatchSampler.take_out(loader)
    loader.batch_sampler.sampler = [7, 6, 5, 4, 3]
    assert RecordingBatchSampler.put_in(loader) is recording
    assert [batch.tolist() for batch in loader] == [[7, 6, 5, 4], [3]]
    assert recording.next_batch() == [7, 6, 5, 4]


def test_recording_passes_on_what_lightning_asks_of_a_batch_sampler():
    sampler = DistributedSampler(Indices(5), num_replicas=2, rank=1)
    recording = RecordingBatchSampler(BatchSampler(sampler, 2, drop_last=True))
    assert (recording.batch_size, recording.drop_last) == (2, True)
    assert recording.sampler is sampler
    assert len(recording) == 1
    assert list(pickle.loads(pickle.dumps(recording))) == list(recording)
    with pytest.raises(AttributeError):
        _ = recording.no_such_attribute


def test_recording_plays_any_batch_sampler():
    recording = RecordingBatchSampler([[3, 1], (2,)])
    assert list(recording) == [[3, 1], (2,)]
    assert recording.sampler is None
    assert [recording.next_batch(), recording.next_batch()] == [[3, 1], [2]]


# --- padding --------------------------------------------------------------------------------------


def places_already_played(samplers: list) -> list[list[bool]]:
    """Brute force: play the ranks in turns; a place is padding if its example was played before."""
    shards = [list(sampler) for sampler in samplers]
    seen: set[int] = set()
    padding = [[False] * len(shard) for shard in shards]
    for place in range(max(map(len, shards))):
        for rank, shard in enumerate(shards):
            if place < len(shard):
                padding[rank][place] = shard[place] in seen
                seen.add(shard[place])
    return padding


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 12])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", ["torch", "torch, drop_last", "unrepeated", "ours", "ours, some"])
def test_padding_is_what_was_played_before(n, world, shuffle, kind):
    if kind == "unrepeated" and n < world:
        pytest.skip("Lightning refuses fewer examples than ranks")
    if kind.startswith("ours"):
        plan = a_plan("some" if kind.endswith("some") else "everything", n)
        samplers = on_every_rank(plan, world, shuffle=shuffle)
    else:
        cls = UnrepeatedDistributedSampler if kind == "unrepeated" else DistributedSampler
        samplers = [
            cls(
                Indices(n),
                num_replicas=world,
                rank=rank,
                shuffle=shuffle,
                drop_last=kind.endswith("drop_last"),
            )
            for rank in range(world)
        ]
    for sampler, expected in zip(samplers, places_already_played(samplers), strict=True):
        assert is_padding(sampler, torch.arange(len(expected))).tolist() == expected


def test_draws_with_replacement_count_as_often_as_they_were_drawn():
    for rank, sampler in enumerate(on_every_rank(a_plan("weighted", 5), 3)):
        expected = [False, rank == 2]  # 5 draws for 6 places
        assert is_padding(sampler, torch.arange(2)).tolist() == expected


@pytest.mark.parametrize("sampler", [None, SequentialSampler(range(5)), [4, 4, 4]])
def test_samplers_of_one_process_have_no_padding(sampler):
    assert not is_padding(sampler, torch.arange(5)).any()


def test_batches_of_places_are_judged_like_the_whole():
    sampler = DistributedSampler(Indices(7), num_replicas=4, rank=3)
    whole = is_padding(sampler, torch.arange(2))
    parts = [is_padding(sampler, torch.arange(a, b)) for a, b in pairwise([0, 1, 2])]
    assert torch.equal(torch.cat(parts), whole)
