"""Inferring two environments in which a classifier is not equally well calibrated.

Environment inference for invariant learning (Creager et al., ICML 2021,
https://arxiv.org/abs/2010.07249) looks for the split of the training set that violates a
classifier's invariance most, measured by the penalty of IRMv1.
"""

from __future__ import annotations

from torch import Tensor


def scale_gradients(logits: Tensor, targets: Tensor) -> Tensor:
    """How each example's loss changes when all logits are scaled: ``d CE(w z, y) / dw`` at 1.

    It is ``sum_c p_c z_c - z_y``, the expected logit less that of the target: negative where the
    classifier is right and could be more certain, positive where it is wrong, or right by too
    little. IRMv1's penalty of an environment is the square of the mean of these.

    Args:
        logits: (n, C).
        targets: (n,) int64.

    Returns:
        (n,) in the dtype of ``logits``.

    Example:
        >>> import torch
        >>> scale_gradients(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
        tensor([-0.2384,  1.7616])
    """
    expected = (logits.softmax(1) * logits).sum(1)
    return expected - logits.gather(1, targets.unsqueeze(1)).squeeze(1)


def environment_penalty(gradients: Tensor, membership: Tensor) -> Tensor:
    """The IRMv1 penalty of two environments, their mean: what environment inference maximises.

    Each environment's risk is ``1/n`` times the sum of its members' losses, not their mean, as in
    the paper's relaxation to soft members.

    Args:
        gradients: (n,), from :func:`scale_gradients`.
        membership: (n,) in [0, 1], how far each example belongs to the first environment.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> environment_penalty(torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 1.0]))
        tensor(0.6250)
    """
    first, second = (membership * gradients).mean(), ((1 - membership) * gradients).mean()
    return (first**2 + second**2) / 2


def infer_environments(logits: Tensor, targets: Tensor) -> Tensor:
    """The two environments that maximise :func:`environment_penalty`, exactly and at once.

    The penalty is convex in the memberships, so its maximum is at a corner: every example belongs
    to one environment. With ``A`` the sum of the first environment's gradients and ``S`` that of
    all it is ``(A^2 + (S - A)^2) / 2n^2``, convex in A; so A is as large, or as small, as it can
    be, and both are the same split: **by the sign of the gradient**. The thousands of steps of Adam
    by which the authors search it are not needed.

    Args:
        logits: (n, C).
        targets: (n,) int64.

    Returns:
        (n,) bool, true where the gradient is positive: what the classifier gets wrong, and what it
        gets right by so little that it would gain from smaller logits.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
        >>> infer_environments(logits, torch.tensor([0, 1, 1]))
        tensor([False,  True, False])
    """
    return scale_gradients(logits.double(), targets) > 0


def environment_groups(
    environments: Tensor, targets: Tensor, num_classes: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Classes crossed with environments, as group numbers and names.

    Args:
        environments: (n,) bool.
        targets: (n,) int64 in ``[0, num_classes)``.
        num_classes: C.

    Returns:
        (n,) int64, ``2 * target + environment``, and 2C names.

    Example:
        >>> import torch
        >>> environment_groups(torch.tensor([True, False]), torch.tensor([1, 0]), 2)
        (tensor([3, 0]), ('0_easy', '0_hard', '1_easy', '1_hard'))
    """
    names = tuple(f"{label}_{word}" for label in range(num_classes) for word in ("easy", "hard"))
    return 2 * targets + environments.long(), names
