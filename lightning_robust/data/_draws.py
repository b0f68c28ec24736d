"""Who wears which colour, who is held out, and who remains of an imbalanced data set."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_robust.randomness import generator

Profile: TypeAlias = Literal["step", "exponential"]


def correlated_hues(
    classes: Tensor, correlation: float, draw: torch.Generator, num_hues: int = 5
) -> Tensor:
    """A hue for each example (n,), in exact proportions within each class.

    Args:
        classes: Class of each example (n,), below ``num_hues``; the own hue of class c is c.
        correlation: Share of a class in its own hue, rounded to whole examples; the others are
            spread evenly over the other hues.
        draw: Decides who wears what.
        num_hues: Number of hues.

    Example:
        >>> hues = correlated_hues(torch.zeros(100).long(), 0.92, torch.Generator())
        >>> hues.bincount().tolist()
        [92, 2, 2, 2, 2]
    """
    hues = torch.empty_like(classes)
    for own in range(num_hues):
        members = _shuffled(classes, own, draw)
        num_own = round(correlation * len(members))
        others = torch.arange(len(members) - num_own) % (num_hues - 1)  # evenly: 0 1 2 3 0 1 ...
        hues[members[:num_own]] = own
        hues[members[num_own:]] = (own + 1 + others) % num_hues
    return hues


def held_out(targets: Tensor, share: float, seed: int) -> Tensor:
    """A share of each class, drawn by seed alone.

    Args:
        targets: Class of each example (n,).
        share: Of each class, in [0, 1), rounded to whole examples.
        seed: Of the draw.

    Returns:
        Whether each example is held out (n,), bool.

    Example:
        >>> held_out(torch.tensor([0, 1, 0, 1, 1, 1]), 0.5, seed=0).sum()
        tensor(3)
    """
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    draw = generator(seed, "data: held out")
    for label in targets.unique().tolist():
        members = _shuffled(targets, label, draw)
        chosen[members[: round(share * len(members))]] = True
    return chosen


def imbalanced(targets: Tensor, ratio: float, profile: Profile, seed: int) -> Tensor:
    """The examples that remain of classes of equal size when they are made unequal.

    Args:
        targets: Class of each example (n,).
        ratio: How many times larger the largest class becomes than the smallest, >= 1.
        profile: ``"step"``: the first half of the classes stays, the second half shrinks by
            ``ratio`` (importance tempering, Section 3.2). ``"exponential"``: class c of C shrinks
            by ``ratio ** (c / (C - 1))`` (Cui et al., CVPR 2019).
        seed: Draws who remains.

    Returns:
        Indices of those that remain (m,), ascending.

    Example:
        >>> targets = torch.arange(4).repeat_interleave(100)
        >>> targets[imbalanced(targets, 10, "step", seed=0)].bincount().tolist()
        [100, 100, 10, 10]
    """
    labels = targets.unique().tolist()
    largest = int(targets.bincount(minlength=1)[labels].min())
    draw = generator(seed, "data: imbalance")
    remaining = []
    for rank, label in enumerate(labels):
        if profile == "step":
            share = 1.0 if rank < len(labels) // 2 else 1 / ratio
        else:
            share = ratio ** (-rank / max(1, len(labels) - 1))
        members = _shuffled(targets, label, draw)
        remaining.append(members[: max(1, round(share * largest))])
    return torch.cat(remaining).sort().values


def _shuffled(targets: Tensor, label: int, draw: torch.Generator) -> Tensor:
    members = (targets == label).nonzero().flatten()
    return members[torch.randperm(len(members), generator=draw)]
