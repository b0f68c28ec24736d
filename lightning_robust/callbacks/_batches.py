"""What methods share that weigh the examples of a batch by its losses, over all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.callbacks._conductor import Conductor
from lightning_robust.functional.groups import exponentiated_gradient, group_sums


def ascend(
    conductor: Conductor,
    weights: Tensor,
    losses: Tensor,
    groups: Tensor,
    step_size: float,
    adjustments: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Update the distribution over groups with a batch, and weigh its examples.

    Args:
        conductor: Of the running fit: group losses are those of the batch over all ranks.
        weights: q (G,).
        losses: (B,).
        groups: (B,) int64.
        step_size: eta.
        adjustments: Added to the group losses in the update, (G,).

    Returns:
        The new q (G,), and ``B q_g / n_g`` of each example (B,), n_g its group's size in the batch.
    """
    local = torch.stack(group_sums(losses, groups, len(weights)))
    sums, counts = conductor.sum_over_ranks(local)
    present, sizes = counts > 0, counts.clamp(min=1)
    weights = exponentiated_gradient(weights, sums / sizes + adjustments, step_size, present)
    # DDP averages gradients over ranks, and n_g counts the batch over all of them.
    batch_size = len(groups) * conductor.trainer.world_size
    return weights, (batch_size * weights / sizes)[groups]


def over_ranks(conductor: Conductor, values: Tensor) -> Tensor:
    """The batches of all ranks, one after the other: (world size * B, ...), alike on all ranks."""
    if conductor.trainer.world_size == 1:
        return values
    whole = values.new_zeros(conductor.trainer.world_size, *values.shape)
    whole[conductor.trainer.global_rank] = values
    return conductor.sum_over_ranks(whole).flatten(0, 1)
