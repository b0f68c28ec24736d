"""How compressible a representation or a network is, what it separates, and what it looks at.

The measures of Barsbey et al., Large Learning Rates Simultaneously Achieve Robustness to Spurious
Correlations and Compressibility (ICCV 2025), Sections 3.2, 3.3, 5 and 6. The paper takes
representations after the activation of the penultimate layer: the input of the classifier head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from lightning_robust.contracts import (
    ContractError,
    check_choice,
    check_in_range,
    check_integer,
    check_positive,
)

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The kappa at which the paper prunes (Section 3.2)."""

_PRUNABLE = (nn.Linear, nn.modules.conv._ConvNd)


# --- compressibility ------------------------------------------------------------------------------


def sparsity(vectors: Tensor) -> Tensor:
    """Share of the entries of each vector that are exactly 0 (Section 3.2).

    Args:
        vectors: (..., d).

    Returns:
        (...) in [0, 1].

    Example:
        >>> sparsity(torch.tensor([[0.0, 2.0, 0.0, -1.0], [1.0, 1.0, 1.0, 1.0]]))
        tensor([0.5000, 0.0000])
    """
    return (vectors == 0).float().mean(-1)


def compressibility(vectors: Tensor, q: float = 2.0, kappa: float = 0.1) -> Tensor:
    """(q, kappa)-compressibility of each vector (Section 3.2).

    1 less the relative error, in the q-norm, of the best approximation of the vector by
    ``ceil(kappa d)`` of its entries, which are its largest. 1 where these are all there is.

    Args:
        vectors: (..., d) floating.
        q: Of the norm, > 0.
        kappa: Share of the entries that are kept, in [0, 1].

    Returns:
        (...) in [0, 1]; 1 for a vector of zeros, which nothing is needed for.

    Raises:
        ContractError: ``q`` or ``kappa`` is out of range.

    Example:
        >>> compressibility(torch.stack([torch.eye(10)[3], torch.ones(10)]))
        tensor([1.0000, 0.0513])
    """
    check_positive("q", q)
    check_in_range("kappa", kappa, 0, 1)
    dimension = vectors.shape[-1]
    kept = math.ceil(round(kappa * dimension, 9))  # .1 * 30 is 3, not 3.0000000000000004
    largest = vectors.abs().amax(-1, keepdim=True)
    parts = (vectors.abs() / torch.where(largest > 0, largest, 1)) ** q
    rest = parts.sort(-1).values[..., : dimension - kept].sum(-1)
    whole = parts.sum(-1)
    return 1 - (rest / torch.where(whole > 0, whole, 1)) ** (1 / q)


def pruned(
    network: nn.Module, share: float, *, head: str | None = None, norm: int = 1
) -> nn.Module:
    """A copy of a network without the weakest neurons and filters of each layer.

    In every linear and convolutional layer but the head, ``round(share * units)`` output units are
    set to 0, weights and bias: those whose weights have the smallest norm
    (`torch.nn.utils.prune.ln_structured`; the 1-norm is that of Li et al., ICLR 2017, whom the
    paper follows). What a normalisation layer adds after a unit stays.

    Args:
        network: Any network whose layers own their weights; it is not changed.
        share: kappa, of the units of each layer, in [0, 1].
        head: Name of the layer that returns the logits, which is not pruned; by default the last
            layer in ``network.modules()``.
        norm: n of the norm by which units are ranked, >= 1.

    Raises:
        ContractError: A value is out of range, there is no such layer as ``head``, or nothing but
            the head to prune.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> _ = network[0].weight.data.copy_(torch.tensor([[0.1, 0.1], [1.0, -1.0]]))
        >>> pruned(network, 0.5)[0].weight.tolist()
        [[0.0, 0.0], [1.0, -1.0]]
    """
    check_in_range("share", share, 0, 1)
    check_integer("norm", norm, minimum=1)
    smaller = copy.deepcopy(network)
    layers = {
        name: layer for name, layer in smaller.named_modules() if isinstance(layer, _PRUNABLE)
    }
    if head is not None and head not in layers:
        raise ContractError(
            f"head={head!r} is no linear or convolutional layer of {type(network).__name__}; "
            f"these are: {', '.join(layers) or 'none'}"
        )
    if len(layers) < 2:
        raise ContractError(
            f"network must have a linear or convolutional layer before its head, "
            f"{type(network).__name__} has none to prune"
        )
    del layers[list(layers)[-1] if head is None else head]
    for layer in layers.values():
        # Transposed convolutions have their outputs in the second dimension of the weight.
        outputs = int(getattr(layer, "transposed", False))
        prune.ln_structured(layer, "weight", float(share), n=norm, dim=outputs)
        mask = torch.as_tensor(layer.weight_mask)
        gone = mask.transpose(0, outputs).flatten(1).sum(1) == 0
        prune.remove(layer, "weight")
        if layer.bias is not None:
            layer.bias.data[gone] = 0
    return smaller


def prunability(
    network: nn.Module,
    accuracy: Callable[[nn.Module], float],
    shares: Sequence[float] = SHARES,
    *,
    head: str | None = None,
    norm: int = 1,
) -> Tensor:
    """kappa-prunability: the share of its accuracy a network keeps when pruned (Section 3.2).

    The paper takes the accuracy on an unbiased test set, and sums over ``SHARES``.

    Args:
        network: The network; it is not changed.
        accuracy: Measures the accuracy of a network, or any other figure > 0.
        shares: The kappa, each in [0, 1].
        head: See :func:`pruned`.
        norm: See :func:`pruned`.

    Returns:
        (len(shares),) float64, each the accuracy after pruning by that before; 1 where nothing is
        lost. NaN if the accuracy before is 0.

    Raises:
        ContractError: See :func:`pruned`.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 10), nn.ReLU(), nn.Linear(10, 2))
        >>> kept = prunability(network, lambda net: float((net[0].weight != 0).float().mean()))
        >>> round(float(kept.sum()), 3)
        4.5
    """
    before = accuracy(network)
    after = [accuracy(pruned(network, share, head=head, norm=norm)) for share in shares]
    return torch.tensor(after, dtype=torch.float64) / before


# --- what neurons separate ------------------------------------------------------------------------


def class_separation(features: Tensor, targets: Tensor) -> Tensor:
    """Class separation R^2 with cosine similarity (Section 3.3; Kornblith et al., NeurIPS 2021).

    1 less the mean distance of pairs within a class by that of all pairs, classes counted alike. A
    representation of zeros is similar to none.

    Args:
        features: (n, d) floating.
        targets: (n,) integers >= 0.

    Returns:
        A scalar, at most 1; NaN if all representations point the same way.

    Raises:
        ContractError: The shapes do not fit.

    Example:
        >>> class_separation(torch.eye(2)[[0, 0, 1]], torch.tensor([0, 0, 1]))
        tensor(1.)
    """
    _check_rows(features, targets)
    if not len(targets):
        return features.new_full((), torch.nan)
    return separation_of_sums(*direction_sums(features, targets, int(targets.max()) + 1))


def direction_sums(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """What class separation needs of a batch: it adds up over batches.

    Args:
        features: (n, d) floating.
        targets: (n,) integers in [0, num_classes).
        num_classes: C.

    Returns:
        The sum of the unit vectors of each class (C, d), and its examples (C,) int64.

    Example:
        >>> sums, counts = direction_sums(torch.tensor([[3.0, 4.0]]), torch.tensor([1]), 2)
        >>> sums[1], counts
        (tensor([0.6000, 0.8000]), tensor([0, 1]))
    """
    units = F.normalize(features.float() if features.dtype.itemsize < 4 else features, dim=1)
    sums = units.new_zeros(num_classes, units.shape[1]).index_add(0, targets, units)
    return sums, torch.bincount(targets, minlength=num_classes)


def separation_of_sums(sums: Tensor, counts: Tensor) -> Tensor:
    """Class separation R^2 from :func:`direction_sums`; classes without examples are left out.

    The mean similarity of the pairs of two classes is the product of their mean unit vectors.

    Args:
        sums: (C, d).
        counts: (C,).

    Returns:
        A scalar; NaN if there is nothing, or it all points the same way.

    Example:
        >>> separation_of_sums(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([2, 1]))
        tensor(1.)
    """
    present = counts > 0
    means = sums[present] / counts[present].unsqueeze(1)
    within = 1 - means.square().sum(1).mean()
    total = 1 - means.mean(0).square().sum()
    # A rounding error above 0 is no distance.
    nothing = total <= 8 * torch.finfo(sums.dtype).eps
    return torch.where(nothing, torch.nan, 1 - within / total)


def selectivity(features: Tensor, labels: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Class- or bias-selectivity index of each neuron, with coverage (Section 3.3).

    ``rho * (top - rest) / (top + rest + epsilon)``: of a neuron's mean activations in the classes,
    ``top`` is the largest and ``rest`` the mean of the others, and rho is the share of the examples
    of the top class for which the neuron is active (> 0). With targets for labels, on an unbiased
    set, this is the class-selectivity index (CSI) by which the paper measures the use of core
    features; with bias labels the bias-selectivity index (BSI). The paper averages over neurons.

    Args:
        features: (n, d) activations >= 0, as after a ReLU.
        labels: (n,) integers >= 0: targets, or bias labels.
        epsilon: Keeps neurons that never fire at 0; > 0.

    Returns:
        (d,) in [0, 1]; NaN if fewer than two labels have examples.

    Raises:
        ContractError: The shapes do not fit, or ``epsilon`` is not positive.

    Example:
        >>> features = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
        >>> selectivity(features, torch.tensor([0, 0, 1, 1]))  # half of class 0 is covered
        tensor([0.5000, 0.0000])
    """
    _check_rows(features, labels)
    check_positive("epsilon", epsilon)
    if not len(labels):
        return features.new_full((features.shape[1],), torch.nan)
    return selectivity_of_sums(*activation_sums(features, labels, int(labels.max()) + 1), epsilon)


def activation_sums(
    features: Tensor, labels: Tensor, num_labels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What selectivity needs of a batch: it adds up over batches.

    Args:
        features: (n, d) floating.
        labels: (n,) integers in [0, num_labels).
        num_labels: C.

    Returns:
        The sum of the activations of each class (C, d), how many of its examples each neuron is
        active for (C, d) int64, and its examples (C,) int64.

    Example:
        >>> activation_sums(torch.tensor([[3.0, 0.0]]), torch.tensor([1]), 2)[1]
        tensor([[0, 0],
                [1, 0]])
    """
    values = features.float() if features.dtype.itemsize < 4 else features
    empty = values.new_zeros(num_labels, values.shape[1])
    active = empty.to(torch.int64).index_add(0, labels, (values > 0).to(torch.int64))
    counts = torch.bincount(labels, minlength=num_labels)
    return empty.index_add(0, labels, values), active, counts


def selectivity_of_sums(
    sums: Tensor, active: Tensor, counts: Tensor, epsilon: float = 1e-7
) -> Tensor:
    """Selectivity from :func:`activation_sums`; classes without examples are left out.

    Args:
        sums: (C, d).
        active: (C, d).
        counts: (C,).
        epsilon: See :func:`selectivity`.

    Returns:
        (d,), NaN if fewer than two classes have examples.

    Example:
        >>> sums, active = torch.tensor([[4.0], [0.0]]), torch.tensor([[1], [0]])
        >>> selectivity_of_sums(sums, active, torch.tensor([2, 2]))
        tensor([0.5000])
    """
    present = counts > 0
    if int(present.sum()) < 2:
        return sums.new_full((sums.shape[1],), torch.nan)
    sizes = counts[present].unsqueeze(1)
    means = sums[present] / sizes
    top, which = means.max(0)
    rest = (means.sum(0) - top) / (len(means) - 1)
    coverage = (active[present] / sizes).gather(0, which.unsqueeze(0)).squeeze(0)
    return coverage * (top - rest) / (top + rest + epsilon)


# --- what the input attributions say --------------------------------------------------------------


def attribution_entropy(attributions: Tensor) -> Tensor:
    """Entropy of each input attribution map (Section 5), in nats.

    The absolute attributions of a map are normalised to sum to 1. Dispersed maps, which look at
    background or texture, have a high entropy.

    Args:
        attributions: (n, ...), such as integrated gradients, a map an example.

    Returns:
        (n,) from 0, all on one pixel, to the logarithm of the size of a map, all alike; NaN for a
        map of zeros.

    Example:
        >>> attribution_entropy(torch.tensor([[[2.0, -2.0], [2.0, 2.0]], [[0, 0], [0, -3.0]]]))
        tensor([1.3863, 0.0000])
    """
    parts = attributions.flatten(1).abs()
    shares = parts / parts.sum(1, keepdim=True)
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy


def background_attribution(attributions: Tensor, background: Tensor) -> Tensor:
    """Share of each map's absolute attributions that falls on the background (Section 5).

    Args:
        attributions: (n, H, W), or (n, C, H, W) with a map a channel.
        background: (n, H, W) bool, true where there is background; the paper takes DeepLabV3's.

    Returns:
        (n,) in [0, 1]; NaN for a map of zeros.

    Raises:
        ContractError: The shapes do not fit, or the masks are not bool.

    Example:
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> background_attribution(torch.tensor([[[1.0, 0.0], [-3.0, 0.0]]]), mask)
        tensor([0.2500])
    """
    maps = attributions.abs()
    if maps.ndim == background.ndim + 1:
        maps = maps.sum(1)
    if maps.shape != background.shape or background.dtype != torch.bool:
        raise ContractError(
            f"background must be bool of shape {tuple(maps.shape)}, true where there is "
            f"background, got {background.dtype} of shape {tuple(background.shape)}"
        )
    return (maps * background).flatten(1).sum(1) / maps.flatten(1).sum(1)


# --- the mechanism --------------------------------------------------------------------------------


def conflicting_loss_ratio(
    losses: Tensor, conflicting: Tensor, of: Literal["total", "aligned"] = "total"
) -> Tensor:
    """Loss of the bias-conflicting examples of a batch, by that of all or of the aligned ones.

    The share of the total is what Figure 12 sets against accuracy; the ratio to the bias-aligned
    examples is the one of Proposition 1 (Eq. 1).

    Args:
        losses: (n,) >= 0.
        conflicting: (n,) bool, true where the bias label is not the target.
        of: ``"total"`` or ``"aligned"``.

    Returns:
        A scalar; NaN or infinite where the losses it is divided by are 0.

    Raises:
        ContractError: ``of`` is neither, or ``conflicting`` is no bool vector like ``losses``.

    Example:
        >>> losses, conflicting = torch.tensor([1.0, 1.0, 6.0]), torch.tensor([False, False, True])
        >>> conflicting_loss_ratio(losses, conflicting)
        tensor(0.7500)
        >>> conflicting_loss_ratio(losses, conflicting, of="aligned")
        tensor(3.)
    """
    check_choice("of", of, ("total", "aligned"))
    if conflicting.shape != losses.shape or conflicting.dtype != torch.bool:
        raise ContractError(
            f"conflicting must be bool of shape {tuple(losses.shape)}, got {conflicting.dtype} of "
            f"shape {tuple(conflicting.shape)}: compare bias labels with targets, bias != targets"
        )
    numerator = losses[conflicting].sum()
    return numerator / (losses.sum() if of == "total" else losses[~conflicting].sum())


def logit_norm(logits: Tensor) -> Tensor:
    """Euclidean norm of the logits of each example; it grows fast under large learning rates.

    Args:
        logits: (n, C).

    Returns:
        (n,).

    Example:
        >>> logit_norm(torch.tensor([[3.0, -4.0]]))
        tensor([5.])
    """
    norms: Tensor = torch.linalg.vector_norm(logits, dim=1)
    return norms


def weight_norm(network: nn.Module) -> Tensor:
    """Euclidean norm of all parameters of a network together, without gradient.

    Example:
        >>> layer = nn.Linear(3, 1)
        >>> _ = nn.init.ones_(layer.weight), nn.init.ones_(layer.bias)
        >>> weight_norm(layer)
        tensor(2.)
    """
    return torch.nn.utils.get_total_norm([each.detach() for each in network.parameters()])


def _check_rows(features: Tensor, labels: Tensor) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ContractError(
            f"features must be (n, d) and the labels (n,), got {tuple(features.shape)} and "
            f"{tuple(labels.shape)}: flatten each representation, one row an example"
        )
