"""Greedy picks by a first-order Taylor expansion of a validation loss."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.contracts import ContractError, check_integer, check_positive
from lightning_robust.functional.gradients import logit_gradients


def greedy_by_taylor(
    gradients: Tensor,
    features: Tensor,
    val_logits: Tensor,
    val_features: Tensor,
    val_targets: Tensor,
    k: int,
    *,
    step_size: float,
    rounds: int,
) -> Tensor:
    """Pick k examples whose gradient steps on a linear head lower a validation loss most.

    The head has a weight and a bias; a step on example j moves them by ``-step_size / k`` times
    ``gradients_j (features_j, 1)^T``. To first order that lowers the mean cross-entropy of the
    validation examples by ``step_size / k`` times the inner product of that matrix with the
    gradient of the validation loss. Picks are made in ``rounds`` of equal size (to one), each by
    the expansion around the head that the steps of the rounds before have made.

    Args:
        gradients: (n, C), of each example's loss with respect to its logits.
        features: (n, d), the inputs of the head.
        val_logits: (m, C).
        val_features: (m, d).
        val_targets: (m,) int64.
        k: How many are picked, at most n.
        step_size: eta > 0: all steps together are one of this size on the mean gradient.
        rounds: How often the expansion is made anew, at most k; with k it is greedy.

    Returns:
        Indices (k,), in the order of picks; among equals the smaller first.

    Raises:
        ContractError: If an argument is out of range.

    References:
        Algorithm 2 of GLISTER (Killamsetty et al., AAAI 2021), for the last layer.

    Example:
        >>> gradients, features = torch.tensor([[0.5, -0.5], [-0.5, 0.5]]), torch.ones(2, 1)
        >>> val = torch.zeros(1, 2), torch.ones(1, 1), torch.tensor([1])
        >>> greedy_by_taylor(gradients, features, *val, 1, step_size=1.0, rounds=1)
        tensor([0])
    """
    check_integer("k", k, 1)
    check_positive("step_size", step_size)
    check_integer("rounds", rounds, 1)
    if k > len(gradients):
        raise ContractError(f"k={k} is more than the {len(gradients)} examples; give at most these")
    gradients, features = gradients.double(), _with_one(features)
    val_logits, val_features = val_logits.double(), _with_one(val_features)
    left = torch.ones(len(gradients), dtype=torch.bool, device=gradients.device)
    picks = []
    for size in torch.arange(k).tensor_split(min(rounds, k)):
        slope = logit_gradients(val_logits, val_targets).T @ val_features / len(val_logits)
        gains = ((gradients @ slope) * features).sum(1).where(left, -torch.inf)
        best = gains.argsort(descending=True, stable=True)[: len(size)]
        left[best] = False
        picks.append(best)
        step = gradients[best].T @ features[best] * (step_size / k)
        val_logits = val_logits - val_features @ step.T
    return torch.cat(picks)


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features.double(), features.new_ones(len(features), 1).double()], 1)
