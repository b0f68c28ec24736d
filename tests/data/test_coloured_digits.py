from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from lightning_robust.contracts import ContractError, groups_of, targets_of
from lightning_robust.data import ColouredDigits, ColouredDigitsDataModule, DigitsBesidePatches

HUES = [(255, 0, 0), (133, 255, 0), (0, 255, 243), (110, 0, 255), (255, 0, 200)]
DIGITS_IN = {"train": 1200, "val": 200, "test": 397}


def grey_and_hue(image: torch.Tensor) -> tuple[tuple[int, ...], int]:
    """What an image shows, found from its pixels alone: 64 grey values of 16, and the hue."""
    for hue, rgb in enumerate(HUES):
        colour = torch.tensor(rgb) / 255
        grey = image[colour.argmax()]  # the strongest channel of every hue is 1
        if torch.allclose(image, grey * colour[:, None, None], atol=1e-6):
            return tuple((grey * 16).round().int().flatten().tolist()), hue
    raise AssertionError("the image has none of the five hues")


def digits_by_pixels() -> dict[tuple[int, ...], int]:
    bundle = load_digits()
    return {
        tuple(image.astype(int).ravel().tolist()): int(digit)
        for image, digit in zip(bundle.images, bundle.target, strict=True)
    }


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_pixels_tell_the_same_class_and_group_as_the_annotations(split):
    dataset = ColouredDigits(split, correlation=0.9, seed=3)
    digit_of = digits_by_pixels()
    for index in range(len(dataset)):
        image, target = dataset[index]
        grey, hue = grey_and_hue(image)
        assert target == digit_of[grey] // 2 == int(dataset.targets[index])
        assert int(dataset.groups[index]) == 5 * target + hue


def test_every_digit_is_in_one_split_only():
    shown = [
        {grey_and_hue(image)[0] for image in ColouredDigits(split).images} for split in DIGITS_IN
    ]
    assert [len(greys) for greys in shown] == list(DIGITS_IN.values())
    assert len(set.union(*shown)) == 1797


@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_of_a_class_have_exact_sizes(correlation, seed):
    dataset = ColouredDigits("train", correlation, seed)
    assert len(dataset) == 1200
    for own in range(5):
        of_class = dataset.groups[dataset.targets == own] - 5 * own
        sizes = [int((of_class == hue).sum()) for hue in range(5)]
        others = sizes[:own] + sizes[own + 1 :]
        assert abs(sizes[own] - correlation * sum(sizes)) <= 0.5
        assert max(others) - min(others) <= 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_shows_every_digit_in_every_colour(split):
    dataset = ColouredDigits(split)
    seen = [grey_and_hue(image) for image in dataset.images]
    assert len(set(seen)) == len(seen) == 5 * DIGITS_IN[split]
    sizes = torch.bincount(dataset.groups, minlength=25).reshape(5, 5)
    assert (sizes == sizes[:, :1]).all()


def test_who_wears_a_foreign_colour_is_drawn_not_given_by_place():
    dataset = ColouredDigits("train", 0.5)
    foreign = (dataset.groups % 5 != dataset.targets).double()
    place = torch.arange(len(foreign), dtype=torch.double)
    assert abs(torch.corrcoef(torch.stack([foreign, place]))[0, 1]) < 0.1  # 3.5 standard errors


def test_smallest_group_at_the_settings_of_the_benchmark():
    def smallest(correlation: float) -> list[int]:
        datasets = (ColouredDigits("train", correlation, seed) for seed in range(20))
        return [int(torch.bincount(d.groups, minlength=25).min()) for d in datasets]

    assert set(smallest(0.95)) <= {2, 3}
    assert set(smallest(0.98)) == {1}


def test_seed_decides_everything_and_the_global_generator_nothing():
    before = torch.get_rng_state()
    first = ColouredDigits("train", seed=1)
    torch.rand(10)
    again, other = ColouredDigits("train", seed=1), ColouredDigits("train", seed=2)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.groups, again.groups)
    assert not torch.equal(first.images, other.images)

    torch.set_rng_state(before)
    ColouredDigits("train")
    assert torch.equal(torch.get_rng_state(), before)


def test_correlation_leaves_the_split_and_the_evaluation_alone():
    weak, strong = ColouredDigits("test", 0.2), ColouredDigits("test", 0.95)
    assert torch.equal(weak.images, strong.images)
    weak, strong = ColouredDigits("train", 0.2), ColouredDigits("train", 0.95)
    assert torch.equal(weak.targets, strong.targets)


def test_offers_what_the_contract_asks_for():
    dataset = ColouredDigits("val")
    assert torch.equal(targets_of(dataset), dataset.targets)
    groups = groups_of(dataset)
    assert torch.equal(groups.ids, dataset.groups)
    assert groups.names[7] == "23_cyan"
    assert groups.num_groups == 25


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "validation"}, "split"),
        ({"correlation": 1.1}, "correlation"),
        ({"correlation": float("nan")}, "correlation"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_refuses_bad_arguments_by_name(arguments, named):
    with pytest.raises(ContractError, match=named):
        ColouredDigits(**arguments)


def test_datamodule_refuses_bad_arguments_before_training():
    with pytest.raises(ContractError, match="batch_size"):
        ColouredDigitsDataModule(batch_size=0)
    with pytest.raises(ContractError, match="correlation"):
        ColouredDigitsDataModule(-0.1)


def test_datamodule_serves_each_split_whole_and_shuffles_training_by_seed():
    def epoch(seed: int) -> torch.Tensor:
        datamodule = ColouredDigitsDataModule(seed=seed, batch_size=50)
        datamodule.setup("fit")
        loader = datamodule.train_dataloader()
        return torch.cat([images for images, _ in loader])

    datamodule = ColouredDigitsDataModule(0.9, seed=1, batch_size=50)
    datamodule.setup("fit")
    for loader, split in (
        (datamodule.val_dataloader(), "val"),
        (datamodule.test_dataloader(), "test"),
    ):
        expected = ColouredDigits(split, 0.9, seed=1)
        assert torch.equal(torch.cat([images for images, _ in loader]), expected.images)
        assert torch.equal(torch.cat([targets for _, targets in loader]), expected.targets)

    first = epoch(seed=1)
    torch.rand(1)
    assert torch.equal(first, epoch(seed=1))
    in_order = ColouredDigits("train", seed=1).images
    assert not torch.equal(first, in_order)
    assert torch.allclose(first.sum(0), in_order.sum(0), rtol=1e-4)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_digit_is_in_its_box_and_the_patch_in_the_other_half(split):
    dataset, digit_of = DigitsBesidePatches(split, 0.9, seed=2), digits_by_pixels()
    seen = []
    for index in range(len(dataset)):
        image, target = dataset[index]
        rows, columns = dataset.boxes[index].nonzero().T
        assert len(rows) == 64
        top, left = int(rows.min()), int(columns.min())
        digit = image[:, top : top + 8, left : left + 8]
        assert (digit == digit[0]).all(), "the digit is white"
        grey = tuple((digit[0] * 16).round().int().flatten().tolist())
        rest = image.masked_fill(dataset.boxes[index], 0)
        patch = rest.amax(0).nonzero()
        assert len(patch) == 16
        assert tuple(patch.amax(0) - patch.amin(0)) == (3, 3)
        assert len({left // 10, (left + 7) // 10, 1 - int(patch[0, 1]) // 10}) == 1
        hue = int(rest[0].sum() == 0)
        assert rest.sum((1, 2)).int().tolist() == ([16, 0, 0] if hue == 0 else [0, 16, 15])
        assert target == digit_of[grey] // 5
        assert int(dataset.groups[index]) == 2 * target + hue
        seen.append(((top, left), grey))
    assert len({place for place, _ in seen}) == 30, "every place"
    counts = dataset.groups.bincount()
    if split == "train":
        assert (counts[[0, 3]] - 0.9 * dataset.targets.bincount()).abs().max() <= 0.5
    else:
        assert counts[0] == counts[1]
        assert counts[2] == counts[3]
        assert len({grey for _, grey in seen}) == DIGITS_IN[split]
