"""Synthetic data of the papers: a few numbers that decide, and many that do not."""

from __future__ import annotations

from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.contracts import (
    check_at_least,
    check_bool,
    check_choice,
    check_in_range,
    check_integer,
    check_positive,
)
from lightning_robust.randomness import generator


class MemorizableGaussians(Dataset[tuple[Tensor, int]]):
    """A core feature, a stronger spurious one, and noise by which each example can be memorised.

    Setup 2.1 of memorization-aware training (Pezeshki et al., ICLR 2025): with y and a in {-1, +1},
    the features are ``(N(y, std^2), strength * N(a, std^2), noise)``, where a equals y with
    probability ``correlation`` in training and 1/2 in testing. Its Appendix E has two spurious
    features, each with an a of its own.

    Args:
        split: ``"train"`` or ``"test"``.
        num_examples: n.
        num_noise: How many noise dimensions there are.
        num_spurious: k, how many spurious features, alike and independent given y.
        correlation: Share of training examples whose a is y, in [0, 1].
        strength: Gamma > 0, which makes the spurious feature the faster to learn.
        std: Standard deviation of both features, before ``strength``.
        noise_std: Standard deviation of each noise dimension; with 0 nothing can be memorised.
        seed: Draws everything.

    Attributes:
        features: (n, 1 + k + num_noise) float32: core, spurious, noise.
        targets: (n,) int64, 0 for y = -1 and 1 for y = +1.
        groups: (n,) int64, ``2 * target + (a is +1)``; with more features their bits follow.
        group_names: ``"y=-1,a=-1"`` and so on; with more features ``"y=-1,a=-1-1"``.
        agreements: (n,) int64, how many a are y, 0 to k.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> dataset = MemorizableGaussians(num_examples=500, num_noise=20)
        >>> features, target = dataset[0]
        >>> tuple(features.shape), int((dataset.groups == 3).sum()) > 150
        ((22,), True)
    """

    group_names: tuple[str, ...]

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        num_examples: int = 1000,
        num_noise: int = 1800,
        num_spurious: int = 1,
        correlation: float = 0.9,
        strength: float = 5.0,
        std: float = 0.12,
        noise_std: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_choice("split", split, ("train", "test"))
        check_integer("num_examples", num_examples, minimum=1)
        check_integer("num_noise", num_noise)
        check_integer("num_spurious", num_spurious, minimum=1)
        check_in_range("correlation", correlation, 0, 1)
        check_positive("strength", strength)
        check_at_least("std", std, 0)
        check_at_least("noise_std", noise_std, 0)
        draw = generator(seed, f"memorizable gaussians: {split}")
        agreement = correlation if split == "train" else 0.5
        y = 2.0 * (torch.rand(num_examples, generator=draw) < 0.5) - 1
        agrees = torch.rand(num_spurious, num_examples, generator=draw) < agreement
        a = torch.where(agrees, y, -y)
        core = y + std * torch.randn(num_examples, generator=draw)
        spurious = strength * (a + std * torch.randn(num_spurious, num_examples, generator=draw))
        noise = noise_std * torch.randn(num_examples, num_noise, generator=draw)
        self.features = torch.cat([core[:, None], spurious.T, noise], 1)
        self.targets = (y > 0).long()
        self.agreements = agrees.sum(0)
        self.groups = self.targets
        for attribute in a:
            self.groups = 2 * self.groups + (attribute > 0)
        signs = ("-1", "+1")
        self.group_names = tuple(
            f"y={label},a={''.join(attributes)}"
            for label in signs
            for attributes in product(signs, repeat=num_spurious)
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The features (1 + k + num_noise,) of one example, and its class."""
        return self.features[index], int(self.targets[index])


class SpuriousPatches(Dataset[tuple[Tensor, int]]):
    """A weak core patch, a strong spurious one and patches of noise, in any order.

    Definition 2.1 of progressive data expansion (Deng et al., NeurIPS 2023): with y and a in
    {-1, +1}, the patches of an example are ``core_strength * y * v_c``, ``spurious_strength * a *
    v_s`` and Gaussian noise, where v_c and v_s are orthogonal unit vectors and a equals y with
    probability ``correlation``, in training and testing alike.

    Args:
        split: ``"train"`` or ``"test"``.
        num_examples: n.
        dimension: d of a patch, 2 or more.
        num_patches: P, 2 or more; all but two are noise.
        correlation: Alpha, share of examples whose a is y, in [0, 1].
        core_strength: Beta_c > 0.
        spurious_strength: Beta_s > 0.
        noise_std: Standard deviation of each coordinate of a noise patch. The authors' notebooks
            have 1/8; the sigma_p of .78 in Appendix A is .78 / sqrt(50) = .110.
        seed: Draws everything; splits of one seed share v_c and v_s.

    Attributes:
        patches: (n, P, d) float32.
        targets: (n,) int64, 0 for y = -1 and 1 for y = +1.
        groups: (n,) int64, ``2 * target + (a is +1)``.
        group_names: ``"y=-1,a=-1"`` and so on.
        core: v_c, (d,).
        spurious: v_s, (d,).

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> dataset = SpuriousPatches(num_examples=500)
        >>> patches, target = dataset[0]
        >>> tuple(patches.shape), int((dataset.groups == 3).sum()) > 150
        ((3, 50), True)
    """

    group_names: tuple[str, ...] = ("y=-1,a=-1", "y=-1,a=+1", "y=+1,a=-1", "y=+1,a=+1")

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        num_examples: int = 10_000,
        dimension: int = 50,
        num_patches: int = 3,
        correlation: float = 0.98,
        core_strength: float = 0.2,
        spurious_strength: float = 1.0,
        noise_std: float = 0.125,
        seed: int = 0,
    ) -> None:
        check_choice("split", split, ("train", "test"))
        check_integer("num_examples", num_examples, minimum=1)
        check_integer("dimension", dimension, minimum=2)
        check_integer("num_patches", num_patches, minimum=2)
        check_in_range("correlation", correlation, 0, 1)
        check_positive("core_strength", core_strength)
        check_positive("spurious_strength", spurious_strength)
        check_at_least("noise_std", noise_std, 0)
        vectors = torch.randn(dimension, 2, generator=generator(seed, "spurious patches: vectors"))
        self.core, self.spurious = torch.linalg.qr(vectors).Q.T
        draw = generator(seed, f"spurious patches: {split}")
        y = 2.0 * (torch.rand(num_examples, generator=draw) < 0.5) - 1
        a = torch.where(torch.rand(num_examples, generator=draw) < correlation, y, -y)
        patches = noise_std * torch.randn(num_examples, num_patches, dimension, generator=draw)
        patches[:, 0] = core_strength * y[:, None] * self.core
        patches[:, 1] = spurious_strength * a[:, None] * self.spurious
        order = torch.rand(num_examples, num_patches, generator=draw).argsort(1)
        self.patches = patches.gather(1, order[:, :, None].expand_as(patches))
        self.targets = (y > 0).long()
        self.groups = 2 * self.targets + (a > 0)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The patches (P, d) of one example, and its class."""
        return self.patches[index], int(self.targets[index])


class NoisyCoreGaussians(Dataset[tuple[Tensor, int]]):
    """Core features that are mostly noise, and spurious ones that are nearly free of it.

    The synthetic data of Sagawa et al. (ICML 2020, https://arxiv.org/abs/2005.04345), and Eq. 8 of
    importance tempering: with y and a in {-1, +1}, the features are ``N(y, core_variance)`` and
    ``strength * N(a, spurious_variance)``, ``num_features`` coordinates of each. Both classes are
    equally large. In training, a equals y in a share ``correlation`` of each class, as nearly as
    the count allows; in testing all four groups are equally large.

    Args:
        split: ``"train"`` or ``"test"``.
        num_examples: n.
        num_features: d, the coordinates of either kind.
        correlation: Share of training examples whose a is y, in [0, 1].
        core_variance: Variance of a core coordinate.
        spurious_variance: Variance of a spurious coordinate, before ``strength``.
        strength: Factor > 0 on the spurious coordinates.
        seed: Draws everything.

    Attributes:
        features: (n, 2 num_features) float32: core, spurious.
        targets: (n,) int64, 0 for y = -1 and 1 for y = +1.
        groups: (n,) int64, ``2 * target + (a is +1)``.
        group_names: ``"y=-1,a=-1"`` and so on.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> dataset = NoisyCoreGaussians(num_examples=200, num_features=3)
        >>> features, target = dataset[0]
        >>> tuple(features.shape), torch.bincount(dataset.groups).tolist()
        ((6,), [90, 10, 10, 90])
    """

    group_names: tuple[str, ...] = ("y=-1,a=-1", "y=-1,a=+1", "y=+1,a=-1", "y=+1,a=+1")

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        num_examples: int = 3000,
        num_features: int = 100,
        correlation: float = 0.9,
        core_variance: float = 100.0,
        spurious_variance: float = 1.0,
        strength: float = 1.0,
        seed: int = 0,
    ) -> None:
        check_choice("split", split, ("train", "test"))
        check_integer("num_examples", num_examples, minimum=1)
        check_integer("num_features", num_features, minimum=1)
        check_in_range("correlation", correlation, 0, 1)
        check_at_least("core_variance", core_variance, 0)
        check_at_least("spurious_variance", spurious_variance, 0)
        check_positive("strength", strength)
        draw = generator(seed, f"noisy core gaussians: {split}")
        agreement = correlation if split == "train" else 0.5
        order = torch.randperm(num_examples, generator=draw)
        y = torch.where(order % 2 == 0, -1.0, 1.0)
        a = torch.where(order // 2 < round(agreement * num_examples / 2), y, -y)
        noise = torch.randn(2, num_examples, num_features, generator=draw)
        core = y[:, None] + core_variance**0.5 * noise[0]
        spurious = strength * (a[:, None] + spurious_variance**0.5 * noise[1])
        self.features = torch.cat([core, spurious], 1)
        self.targets = (y > 0).long()
        self.groups = 2 * self.targets + (a > 0)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The features (2 num_features,) of one example, and its class."""
        return self.features[index], int(self.targets[index])


class SeparableClouds(Dataset[tuple[Tensor, int]]):
    """Two classes in the plane, one larger than the other, that a line through 0 separates.

    Class 0, the majority, is uniform in a disc around (-.8, 1.1), class 1, the minority, in one
    around (.8, 1.1). A separating line that turns away from one turns towards the other, so that it
    matters which class is to be kept further away.

    Args:
        num_majority: Examples of class 0.
        num_minority: Examples of class 1.
        radius: Of the discs, in (0, .75], which keeps the classes apart.
        seed: Draws everything.

    Attributes:
        features: (n, 2) float64.
        targets: (n,) int64.
        groups: (n,) int64, the same as the targets.
        group_names: ``"majority"`` and ``"minority"``.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> dataset = SeparableClouds(num_majority=3, num_minority=1)
        >>> tuple(dataset.features.shape), dataset.targets.tolist()
        ((4, 2), [0, 0, 0, 1])
    """

    group_names: tuple[str, ...] = ("majority", "minority")

    def __init__(
        self,
        *,
        num_majority: int = 40,
        num_minority: int = 10,
        radius: float = 0.6,
        seed: int = 0,
    ) -> None:
        check_integer("num_majority", num_majority, minimum=1)
        check_integer("num_minority", num_minority, minimum=1)
        check_positive("radius", radius)
        check_in_range("radius", radius, 0, 0.75)
        draw = generator(seed, "separable clouds")
        sizes = torch.tensor([num_majority, num_minority])
        self.targets = torch.arange(2).repeat_interleave(sizes)
        self.groups = self.targets.clone()
        uniform = torch.rand(2, len(self.targets), generator=draw, dtype=torch.float64)
        distance, angle = radius * uniform[0].sqrt(), 2 * torch.pi * uniform[1]
        centres = torch.tensor([[-0.8, 1.1], [0.8, 1.1]], dtype=torch.float64)
        offsets = distance[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        self.features = centres[self.targets] + offsets

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The two features of one example, and its class."""
        return self.features[index], int(self.targets[index])


class ParityBits(Dataset[tuple[Tensor, int]]):
    """The class is the parity of some bits; that of fewer others, the bias, mostly agrees with it.

    The parity dataset of Qiu et al. (ICML 2024) as in Section 4.1 of Barsbey et al. (ICCV 2025):
    core and spurious bits whose parities are the target y and the bias label b, and bits of noise.
    All strings of bits of the given parities are equally likely.

    Args:
        split: ``"train"`` or ``"test"``.
        num_examples: n.
        num_core: C, the bits whose parity is y.
        num_spurious: S, the bits whose parity is b; fewer are simpler.
        num_noise: How many bits there are besides.
        conflicting: Rho, the probability of b != y in training, in [0, 1]; in testing it is 1/2.
        signed: Bits are -1 and +1; if false they are 0 and 1.
        seed: Draws everything.

    Attributes:
        features: (n, num_core + num_spurious + num_noise) float32: core, spurious, noise.
        targets: (n,) int64, y: 1 where the number of ones is odd.
        biases: (n,) int64, b.
        groups: (n,) int64, ``2 * target + bias``.
        group_names: ``"y=0,b=0"`` and so on.
        core: (num_core + num_spurious + num_noise,) bool, which are core bits.

    Raises:
        ContractError: If an argument is refused.

    Example:
        >>> dataset = ParityBits(num_examples=500)
        >>> features, target = dataset[0]
        >>> tuple(features.shape), int((features[:4] > 0).sum()) % 2 == target
        ((16,), True)
    """

    group_names: tuple[str, ...] = ("y=0,b=0", "y=0,b=1", "y=1,b=0", "y=1,b=1")

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        num_examples: int = 4000,
        num_core: int = 4,
        num_spurious: int = 2,
        num_noise: int = 10,
        conflicting: float = 0.1,
        signed: bool = True,
        seed: int = 0,
    ) -> None:
        check_choice("split", split, ("train", "test"))
        check_integer("num_examples", num_examples, minimum=1)
        check_integer("num_core", num_core, minimum=1)
        check_integer("num_spurious", num_spurious, minimum=1)
        check_integer("num_noise", num_noise)
        check_in_range("conflicting", conflicting, 0, 1)
        check_bool("signed", signed)
        draw = generator(seed, f"parity bits: {split}")
        width = num_core + num_spurious + num_noise
        self.core = torch.arange(width) < num_core
        bits = torch.randint(2, (num_examples, width), generator=draw)
        self.targets = bits[:, :num_core].sum(1) % 2
        conflicts = torch.rand(num_examples, generator=draw) < (
            conflicting if split == "train" else 0.5
        )
        self.biases = torch.where(conflicts, 1 - self.targets, self.targets)
        spurious = bits[:, num_core : num_core + num_spurious]
        spurious[:, 0] = (self.biases + spurious[:, 1:].sum(1)) % 2
        self.features = (2.0 * bits - 1) if signed else bits.float()
        self.groups = 2 * self.targets + self.biases

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The bits of one example, and its class."""
        return self.features[index], int(self.targets[index])
