from __future__ import annotations

import pytest
import torch

from lightning_robust.contracts import ContractError, groups_of, targets_of
from lightning_robust.data.synthetic import (
    MemorizableGaussians,
    NoisyCoreGaussians,
    SeparableClouds,
)


def test_features_have_the_means_and_deviations_of_setup_2_1():
    data = MemorizableGaussians(num_examples=20_000, num_noise=30, strength=5.0, std=0.12)
    y = 2.0 * data.targets - 1
    a = 2.0 * (data.groups % 2) - 1
    assert data.features.shape == (20_000, 32)
    core, spurious, noise = data.features[:, 0], data.features[:, 1], data.features[:, 2:]
    assert (core - y).mean().abs() < 0.01
    assert (core - y).std() == pytest.approx(0.12, rel=0.03)
    assert (spurious - 5 * a).mean().abs() < 0.03
    assert (spurious - 5 * a).std() == pytest.approx(0.6, rel=0.03)
    assert noise.mean().abs() < 0.01
    assert noise.std() == pytest.approx(0.5, rel=0.01)
    assert (a == y).float().mean() == pytest.approx(0.9, abs=0.01)


def test_in_the_test_split_the_spurious_feature_says_nothing():
    data = MemorizableGaussians("test", num_examples=20_000, num_noise=1)
    shares = torch.bincount(data.groups, minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.02, rtol=0)
    assert torch.equal(data.groups // 2, data.targets)


def test_it_is_a_data_set_of_the_contract():
    data = MemorizableGaussians(num_examples=50, num_noise=3)
    assert torch.equal(targets_of(data), data.targets)
    assert groups_of(data).names == ("y=-1,a=-1", "y=-1,a=+1", "y=+1,a=-1", "y=+1,a=+1")
    features, target = data[7]
    assert torch.equal(features, data.features[7])
    assert target == int(data.targets[7])
    again, other = (MemorizableGaussians(num_examples=50, num_noise=3, seed=s) for s in (0, 1))
    assert torch.equal(again.features, data.features)
    assert not torch.equal(other.features, data.features)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("split", "val"), ("num_examples", 0), ("correlation", 1.1), ("strength", 0), ("std", -1)],
)
def test_bad_arguments_are_refused(argument, value):
    with pytest.raises(ContractError, match=argument):
        MemorizableGaussians(**{argument: value})


def test_core_and_spurious_features_have_the_moments_of_equation_8():
    data = NoisyCoreGaussians(
        num_examples=4000, num_features=30, core_variance=25.0, spurious_variance=0.25, strength=3.0
    )
    assert data.features.shape == (4000, 60)
    y, a = 2.0 * data.targets - 1, 2.0 * (data.groups % 2) - 1
    core, spurious = data.features[:, :30], data.features[:, 30:]
    assert (core - y[:, None]).mean().abs() < 0.05
    assert (core - y[:, None]).std() == pytest.approx(5.0, rel=0.01)
    assert (spurious - 3 * a[:, None]).mean().abs() < 0.02
    assert (spurious - 3 * a[:, None]).std() == pytest.approx(1.5, rel=0.01)
    assert torch.bincount(data.groups).tolist() == [1800, 200, 200, 1800]
    assert torch.equal(data.groups // 2, data.targets)
    test = NoisyCoreGaussians("test", num_examples=400)
    assert torch.bincount(test.groups).tolist() == [100] * 4


def test_a_line_through_zero_separates_the_clouds():
    data = SeparableClouds(num_majority=3000, num_minority=1000, radius=0.75)
    assert torch.bincount(data.targets).tolist() == [3000, 1000]
    assert torch.equal(data.groups, data.targets)
    centres = torch.tensor([[-0.8, 1.1], [0.8, 1.1]])
    distance = (data.features - centres[data.targets]).norm(dim=1)
    assert distance.max() <= 0.75
    assert (distance < 0.375).double().mean() == pytest.approx(0.25, abs=0.03)  # uniform by area
    sign = 2 * data.targets - 1
    assert (sign * data.features[:, 0]).min() > 0


@pytest.mark.parametrize(
    ("dataset", "argument", "value"),
    [
        (NoisyCoreGaussians, "split", "val"),
        (NoisyCoreGaussians, "num_features", 0),
        (NoisyCoreGaussians, "correlation", -0.1),
        (NoisyCoreGaussians, "core_variance", -1),
        (NoisyCoreGaussians, "strength", 0),
        (SeparableClouds, "num_minority", 0),
        (SeparableClouds, "radius", 0),
        (SeparableClouds, "radius", 0.8),
    ],
)
def test_bad_arguments_of_the_others_are_refused(dataset, argument, value):
    with pytest.raises(ContractError, match=argument):
        dataset(**{argument: value})
