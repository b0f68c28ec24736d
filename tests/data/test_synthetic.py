from __future__ import annotations

import pytest
import torch

from lightning_robust.contracts import ContractError, groups_of, targets_of
from lightning_robust.data.synthetic import (
    MemorizableGaussians,
    NoisyCoreGaussians,
    ParityBits,
    SeparableClouds,
    SpuriousPatches,
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


def test_two_spurious_features_are_alike_and_independent_given_y():
    data = MemorizableGaussians(num_examples=20_000, num_noise=1, num_spurious=2)
    y = 2.0 * data.targets - 1
    first, second = (2.0 * (data.groups // place % 2) - 1 for place in (2, 1))
    for a, feature in ((first, data.features[:, 1]), (second, data.features[:, 2])):
        assert (feature - 5 * a).mean().abs() < 0.03
        assert (feature - 5 * a).std() == pytest.approx(0.6, rel=0.03)
    agreements = (first == y).long() + (second == y).long()
    assert torch.equal(data.agreements, agreements)
    shares = torch.bincount(agreements) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.01, 0.18, 0.81]), atol=0.01, rtol=0)
    assert data.group_names[5] == "y=+1,a=-1+1"
    example = int((data.groups == 5).nonzero()[0])
    assert (y[example], first[example], second[example]) == (1, -1, 1)


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


def test_patches_are_those_of_definition_2_1():
    data = SpuriousPatches(num_examples=4000, num_patches=4, dimension=20)
    y, a = 2.0 * data.targets - 1, 2.0 * (data.groups % 2) - 1
    assert float(data.core @ data.spurious) == pytest.approx(0, abs=1e-6)
    places = []
    for vector, expected in ((data.core, 0.2 * y), (data.spurious, a)):
        assert float(vector.norm()) == pytest.approx(1, abs=1e-6)
        distance = (data.patches - (expected[:, None] * vector)[:, None]).norm(dim=2)
        assert distance.min(1).values.max() < 1e-5
        places.append(distance.argmin(1))
        shares = torch.bincount(places[-1], minlength=4) / 4000
        torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.03, rtol=0)
    noise = torch.ones(4000, 4, dtype=torch.bool)
    for place in places:
        noise[torch.arange(4000), place] = False
    assert noise.sum() == 8000
    assert data.patches[noise].std() == pytest.approx(1 / 8, rel=0.01)
    assert (a == y).float().mean() == pytest.approx(0.98, abs=0.01)


def test_splits_of_patches_share_the_vectors_and_nothing_else():
    train, test = (SpuriousPatches(split, num_examples=50) for split in ("train", "test"))
    assert torch.equal(train.core, test.core)
    assert torch.equal(train.spurious, test.spurious)
    assert not torch.equal(train.patches, test.patches)
    assert torch.equal(SpuriousPatches(num_examples=50).patches, train.patches)
    assert torch.equal(targets_of(train), train.targets)
    assert torch.equal(groups_of(train).ids, train.groups)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("split", "val"), ("dimension", 1), ("num_patches", 1), ("core_strength", 0)],
)
def test_bad_arguments_of_patches_are_refused(argument, value):
    with pytest.raises(ContractError, match=argument):
        SpuriousPatches(**{argument: value})


@pytest.mark.parametrize("signed", [True, False])
def test_parities_are_the_target_and_the_bias(signed):
    data = ParityBits(num_examples=20_000, num_core=3, num_spurious=2, num_noise=2, signed=signed)
    assert set(data.features.unique().tolist()) == ({-1.0, 1.0} if signed else {0.0, 1.0})
    ones = (data.features > 0).long()
    for y, b, row in zip(data.targets[:200], data.biases[:200], ones[:200].tolist(), strict=True):
        assert row[:3].count(1) % 2 == y
        assert row[3:5].count(1) % 2 == b
    torch.testing.assert_close(ones.float().mean(0), torch.full((7,), 0.5), atol=0.02, rtol=0)
    assert (data.biases != data.targets).float().mean() == pytest.approx(0.1, abs=0.01)
    # Given both parities, every string is as likely as any other: 2 ** 5 of them in each group.
    codes = (ones * 2 ** torch.arange(7)).sum(1)
    for group in range(4):
        counts = torch.bincount(codes[data.groups == group], minlength=128)
        assert int((counts > 0).sum()) == 32
    test = ParityBits("test", num_examples=20_000)
    shares = torch.bincount(test.groups, minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.02, rtol=0)
    assert torch.equal(test.groups, 2 * test.targets + test.biases)
    assert groups_of(test).names == ("y=0,b=0", "y=0,b=1", "y=1,b=0", "y=1,b=1")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("split", "val"), ("num_core", 0), ("num_spurious", 0), ("conflicting", 2), ("signed", 1)],
)
def test_bad_arguments_of_the_parity_bits_are_refused(argument, value):
    with pytest.raises(ContractError, match=argument):
        ParityBits(**{argument: value})
