from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_robust.randomness import (
    generator,
    global_state,
    isolated,
    resolve_seed,
    set_global_state,
)


def draws_of_all() -> list[float]:
    """One uniform and one Gaussian draw of each global generator."""
    return [
        torch.rand(()).item(),
        torch.randn(()).item(),
        np.random.rand(),
        np.random.randn(),
        random.random(),
        random.gauss(0, 1),
    ]


# --- private generators ---------------------------------------------------------------------------


@given(st.integers(-(2**70), 2**70), st.text(max_size=8), st.integers(0, 10**6))
def test_generator_is_a_pure_function_of_its_arguments(seed, purpose, epoch):
    first = torch.rand(4, generator=generator(seed, purpose, epoch))
    assert torch.equal(first, torch.rand(4, generator=generator(seed, purpose, epoch)))


def test_every_seed_purpose_and_epoch_has_a_stream_of_its_own():
    streams = {
        tuple(torch.rand(2, generator=generator(seed, purpose, epoch)).tolist())
        for seed in range(10)
        for purpose in ("a", "b", "1", "1/1")
        for epoch in range(12)
    }
    assert len(streams) == 10 * 4 * 12


def test_streams_of_neighbouring_epochs_are_uncorrelated():
    rows = torch.stack([torch.rand(2000, generator=generator(0, "x", e)) for e in range(8)])
    correlation = torch.corrcoef(rows) - torch.eye(8)
    assert correlation.abs().max() < 0.1
    assert (rows.mean(1) - 0.5).abs().max() < 0.03


def test_a_generator_leaves_the_global_ones_alone():
    set_global_state(before := global_state())
    expected = draws_of_all()
    set_global_state(before)
    torch.rand(3, generator=generator(1, "x"))
    assert draws_of_all() == expected


def test_seed_is_the_one_of_seed_everything_unless_given(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert resolve_seed(None) == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert resolve_seed(None) == 17
    assert resolve_seed(0) == 0


# --- global state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True], ids=["fresh", "a Gaussian is cached"])
def test_global_state_brings_back_every_draw_after_a_trip_through_a_checkpoint(cached):
    with isolated():
        if cached:  # numpy and python draw Gaussians in pairs and keep the second
            np.random.randn()
            random.gauss(0, 1)
        buffer = io.BytesIO()
        torch.save(global_state(), buffer)
        expected = [draws_of_all() for _ in range(3)]
        buffer.seek(0)
        set_global_state(torch.load(buffer, weights_only=True))
        assert [draws_of_all() for _ in range(3)] == expected


def test_isolated_restores_every_generator_also_when_the_block_raises():
    set_global_state(before := global_state())
    expected = draws_of_all()
    set_global_state(before)
    with isolated():
        draws_of_all()
        torch.manual_seed(9)

    @isolated()
    def fails() -> None:
        random.seed(9)
        np.random.seed(9)
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert draws_of_all() == expected
