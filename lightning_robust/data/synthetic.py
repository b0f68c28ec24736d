"""Synthetic data of the papers: a few numbers that decide, and many that do not."""

from __future__ import annotations

from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.contracts import (
    check_at_least,
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
