"""Matching pursuit: a few gradients, with weights, whose sum is nearly a given one."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.contracts import ContractError, check_integer, check_positive

_STEPS_A_PICK = 10  # Lawson and Hanson's method needs one or two
_TOLERANCE = 1e-10


def matching_pursuit(
    atoms: Tensor, target: Tensor, k: int, regularisation: float
) -> tuple[Tensor, Tensor]:
    """Pick at most k rows, and weights >= 0 for them, whose sum is nearly a target.

    Minimises ``|sum_i w_i atoms_i - target|^2 + regularisation * |w|^2`` over w >= 0. At each step
    the row with which the objective falls fastest is added, and the weights of all that are picked
    are solved for anew; what would get a weight below 0 is dropped. That is Lawson and Hanson's
    method for non-negative least squares, stopped at k rows: left to itself it ends at the
    minimum, often with fewer rows than there are.

    Args:
        atoms: (n, d).
        target: (d,).
        k: The most rows that are picked.
        regularisation: lambda > 0.

    Returns:
        Indices (m,), m <= k, in the order of picks, and weights (m,) float64 > 0.

    Raises:
        ContractError: If shapes do not fit, or an argument is out of range.

    References:
        Algorithm 2 of GradMatch (Killamsetty et al., ICML 2021). Lawson and Hanson,
        Solving Least Squares Problems, 1974, chapter 23.

    Example:
        >>> atoms = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> indices, weights = matching_pursuit(atoms, torch.tensor([3.0, 1.5]), 3, 0.5)
        >>> indices, weights
        (tensor([0, 1]), tensor([2., 1.], dtype=torch.float64))
    """
    if atoms.ndim != 2 or target.shape != atoms.shape[1:]:
        raise ContractError(
            f"atoms must be (n, d) and target (d,), got {tuple(atoms.shape)} and "
            f"{tuple(target.shape)}"
        )
    check_integer("k", k, 1)
    check_positive("regularisation", regularisation)
    atoms, target = atoms.double(), target.double()
    ridge = regularisation * torch.eye(len(target), dtype=torch.float64, device=atoms.device)
    tolerance = _TOLERANCE * float(target.norm() * atoms.norm(dim=1).max())
    picks: list[int] = []
    weights = atoms.new_zeros(0)
    for _ in range(_STEPS_A_PICK * k):
        descent = atoms @ (target - weights @ atoms[picks])  # half of it, for weights of 0
        descent[picks] = -torch.inf
        best = int(descent.argmax())
        if len(picks) == min(k, len(atoms)) or float(descent[best]) <= tolerance:
            break
        picks, weights = [*picks, best], torch.cat([weights, weights.new_zeros(1)])
        while True:
            # The ridge solution with as many unknowns as dimensions, not as picks.
            chosen = atoms[picks]
            solved = chosen @ torch.linalg.solve(ridge + chosen.T @ chosen, target)
            below = solved <= 0
            if not bool(below.any()):
                weights = solved
                break
            shares = torch.where(below, weights / (weights - solved), torch.inf)
            weights = weights + shares.min() * (solved - weights)
            stay = (shares > shares.min()).nonzero().squeeze(1)
            picks, weights = [picks[place] for place in stay.tolist()], weights[stay]
    return torch.tensor(picks, dtype=torch.int64, device=atoms.device), weights
