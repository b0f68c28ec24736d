"""Private randomness: every draw has its own generator, the global ones are never touched."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

_GLOBAL_SEED_VARIABLE = "PL_GLOBAL_SEED"  # where Lightning's `seed_everything` leaves its seed


def generator(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator that is a pure function of its arguments.

    Two purposes, two epochs or two seeds give unrelated streams; the same three give the same
    stream on every rank, in every process and after every resume.

    Args:
        seed: Any integer.
        purpose: What the draws are for, such as ``"sampling"``.
        epoch: The epoch they belong to.

    Example:
        >>> from lightning_robust.randomness import generator
        >>> a = torch.randperm(5, generator=generator(0, "sampling", epoch=3))
        >>> b = torch.randperm(5, generator=generator(0, "sampling", epoch=3))
        >>> bool((a == b).all())
        True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def resolve_seed(seed: int | None) -> int:
    """``seed`` itself, or for ``None`` what Lightning's ``seed_everything`` was given, else 0.

    Example:
        >>> resolve_seed(3)
        3
    """
    return int(os.environ.get(_GLOBAL_SEED_VARIABLE, 0)) if seed is None else seed


def global_state() -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """The state of every global random number generator of this process, as tensors.

    Returns:
        ``torch`` (uint8), ``cuda`` (one uint8 tensor a device; empty before CUDA is used),
        ``numpy`` (the 624 words, position, and cached Gaussian, as float64) and ``python``
        (the 625 words and cached Gaussian, as float64). float64 holds 32-bit words exactly, and
        tensors load under ``weights_only=True``.
    """
    _, words, position, has_gauss, gauss = cast(Any, np.random.get_state(legacy=True))
    _, python_words, python_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else [],
        "numpy": torch.tensor([*words.tolist(), position, has_gauss, gauss], dtype=torch.float64),
        "python": torch.tensor(
            [*python_words, float("nan") if python_gauss is None else python_gauss],
            dtype=torch.float64,
        ),
    }


def set_global_state(state: dict[str, torch.Tensor | list[torch.Tensor]]) -> None:
    """Put back what :func:`global_state` returned."""
    torch.set_rng_state(torch.as_tensor(state["torch"]).cpu())
    if cuda := [torch.as_tensor(device_state).cpu() for device_state in state["cuda"]]:
        torch.cuda.set_rng_state_all(cuda)
    *words, position, has_gauss, gauss = torch.as_tensor(state["numpy"]).tolist()
    np.random.set_state(
        ("MT19937", np.array(words, dtype=np.uint32), int(position), int(has_gauss), gauss)
    )
    *python_words, python_gauss = torch.as_tensor(state["python"]).tolist()
    random.setstate(
        (
            3,
            tuple(int(word) for word in python_words),
            None if python_gauss != python_gauss else python_gauss,
        )
    )


@contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Leave the global generators as found, also when the block raises.

    Args:
        seed: Seed of the global generators within the block; ``None`` lets them run on.

    Example:
        >>> before = torch.get_rng_state()
        >>> with isolated():
        ...     _ = torch.rand(3)
        >>> bool((before == torch.get_rng_state()).all())
        True
    """
    state = global_state()
    try:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if state["cuda"]:
                torch.cuda.manual_seed_all(seed)
            np.random.seed(seed)
            random.seed(seed)
        yield
    finally:
        set_global_state(state)
