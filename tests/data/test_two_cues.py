"""Core and spurious cues: labels against pixels, shares against counts, files against messages."""

from __future__ import annotations

import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from lightning_robust.contracts import ContractError, groups_of, targets_of
from lightning_robust.data import MoonStar, TwoCuesDataModule
from lightning_robust.data.corruptions import CORRUPTIONS
from lightning_robust.data.two_cues import TWO_CUES

NAMES = sorted(TWO_CUES)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def splits(name):
    datamodule = TwoCuesDataModule(name)
    datamodule.setup("fit")
    return datamodule.train, datamodule.val, datamodule.test


def test_shares_are_those_of_the_paper_in_training_and_unbiased_elsewhere(name, splits):
    rho = {"colored-mnist": 0.025, "double-mnist": 0.025}.get(name, 0.1)
    for number, dataset in enumerate(splits):
        classes = len(dataset.class_names)
        assert targets_of(dataset).equal(dataset.targets)
        assert groups_of(dataset).names == dataset.group_names
        assert len(set(dataset.group_names)) == classes**2
        assert dataset.images.min() >= 0
        assert dataset.images.max() <= 1
        table = dataset.groups.bincount(minlength=classes**2).view(classes, classes)
        for y, row in enumerate(table.tolist()):
            others = row[:y] + row[y + 1 :]
            share = rho if number == 0 else 1 - 1 / classes
            assert abs(sum(others) - share * sum(row)) <= 0.5
            assert max(others) - min(others) <= 1


def test_a_seed_is_a_data_set_and_the_global_generator_is_left_alone(name):
    state = torch.get_rng_state()
    one, same, other = (TWO_CUES[name]("val", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.groups, same.groups)
    assert not torch.equal(one.images, other.images)


def bundled() -> dict[tuple[int, ...], int]:
    bundle = load_digits()
    return {
        tuple(image.astype(int).ravel().tolist()): int(digit)
        for image, digit in zip(bundle.images, bundle.target, strict=True)
    }


def digit_of(grey: torch.Tensor, table: dict[tuple[int, ...], int]) -> int:
    return table[tuple((16 * grey).round().int().flatten().tolist())]


def test_double_digits_show_the_class_left_and_the_bias_right():
    table = bundled()
    for split in ("train", "test"):
        dataset = TWO_CUES["double-mnist"](split)
        for image, y, b in zip(dataset.images, dataset.targets, dataset.biases, strict=True):
            assert digit_of(image[0][dataset.core].view(8, 8) / 0.4, table) == y
            assert digit_of(image[0, :, 8:], table) == b


def test_digits_of_ten_colours_have_the_hue_of_the_bias():
    table, dataset = bundled(), TWO_CUES["colored-mnist"]("train")
    matplotlib_colors = pytest.importorskip("matplotlib.colors")
    distances = []
    for image, y, b in zip(dataset.images, dataset.targets, dataset.biases, strict=True):
        grey = image.amax(0)
        assert digit_of(grey, table) == y
        brightest = image[:, grey == grey.max()][:, 0]
        hue = matplotlib_colors.rgb_to_hsv(brightest.numpy())[0]
        distances.append((hue - b / 10 + 0.5) % 1 - 0.5)
    assert torch.tensor(distances).std() == pytest.approx(0.02, rel=0.1)


def test_dominoes_have_the_bias_above_and_the_class_below():
    table, dataset = bundled(), TWO_CUES["mnist-cifar"]("train")
    assert dataset.core.shape == (32, 16)
    assert dataset.core.nonzero().min(0).values.tolist() == [16, 0]
    for image, b in zip(dataset.images, dataset.biases, strict=True):
        assert digit_of(image[0, :16:2, ::2], table) == b
    # A digit over a photograph is the photograph where the digit has no ink.
    below = dataset.images[:, :, 16:]
    assert below.mean() > 0.15
    assert (below.amax(1) - below.amin(1)).mean() > 0.02  # in colour


def test_corrupted_images_are_those_of_their_bias():
    dataset = TWO_CUES["corrupted-cifar10"]("test")
    jumps = (dataset.images[..., 1:] - dataset.images[..., :-1]).abs().mean((1, 2, 3))
    by_name = {
        name: float(jumps[dataset.biases == number].mean())
        for number, name in enumerate(CORRUPTIONS)
    }
    for name, jump in by_name.items():
        if "noise" in name:
            assert jump > 1.5 * by_name["original"], by_name
        elif "blur" in name:
            assert jump < by_name["original"], by_name


def test_moons_are_lopsided_stars_are_not_and_the_quadrant_is_the_bias():
    dataset = MoonStar("test", num_examples=60, size=48, seed=1)
    line = torch.arange(48.0) - 23.5
    mass = dataset.images[:, 0] / dataset.images.sum((1, 2, 3))[:, None, None]
    x, y = mass.sum(1) @ line, mass.sum(2) @ line
    assert torch.equal((x * y < 0).long(), dataset.biases)
    dx, dy = line - x[:, None], line - y[:, None]
    spread = torch.stack(
        [
            (mass.sum(1) * dx.square()).sum(1),
            torch.einsum("nij,ni,nj->n", mass, dy, dx),
            torch.einsum("nij,ni,nj->n", mass, dy, dx),
            (mass.sum(2) * dy.square()).sum(1),
        ],
        1,
    ).view(-1, 2, 2)
    small, large = torch.linalg.eigvalsh(spread).T
    assert torch.equal((large / small < 1.3).long(), dataset.targets)
    # Neither shape gives itself away by its size.
    area = dataset.images.mean((1, 2, 3))
    assert area[dataset.targets == 0].mean() == pytest.approx(
        float(area[dataset.targets == 1].mean()), rel=0.2
    )


# --- corruptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_function_of_image_and_seed(name):
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    one, same, other = (
        CORRUPTIONS[name](images, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(images, before)
    assert torch.equal(one, same)
    assert one.shape == images.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(one, images) == (name == "original")
    assert torch.equal(one, other) != ("noise" in name or "glass" in name)


def test_corruptions_in_closed_form():
    draw = torch.Generator().manual_seed(0)
    grey = torch.full((1, 1, 200, 200), 0.5)
    for name in CORRUPTIONS:
        if "blur" in name:
            torch.testing.assert_close(CORRUPTIONS[name](grey, draw), grey)
    for name, std in {
        "gaussian-noise": 0.15,
        "shot-noise": (0.5 / 12) ** 0.5,
        "speckle-noise": 0.2,
        "impulse-noise": (0.1 * 0.25) ** 0.5,
    }.items():
        noisy = CORRUPTIONS[name](grey, draw)
        assert float(noisy.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(noisy.std()) == pytest.approx(std, rel=0.05)
    dot = torch.zeros(1, 1, 15, 15)
    dot[..., 7, 7] = 1
    line = CORRUPTIONS["motion-blur"](dot, draw)[0, 0]
    torch.testing.assert_close(line[4:11, 4:11], torch.eye(7) / 7)
    disc = CORRUPTIONS["defocus-blur"](dot, draw)[0, 0]
    assert int((disc > 0).sum()) == 13 or int((disc > 0).sum()) == 21
    assert float(disc.sum()) == pytest.approx(1)
    column = CORRUPTIONS["gaussian-blur"](dot, draw)[0, 0, :, 7]
    assert float(column[8] / column[7]) == pytest.approx(torch.tensor(-0.5).exp().item())


# --- files ----------------------------------------------------------------------------------------


class FakeMNIST:
    """30 or 20 images; the pixel at the top left is the class."""

    def __init__(self, root, train, download) -> None:
        assert not download
        self.targets = torch.arange(5100 if train else 20) % 10
        self.data = torch.zeros(len(self.targets), 28, 28, dtype=torch.uint8)
        self.data[:, 0, 0] = 25 * self.targets.to(torch.uint8)


class FakeCIFAR10:
    def __init__(self, root, train, download) -> None:
        labels = torch.arange(5100 if train else 20) % 10
        self.targets = labels.tolist()
        self.data = (25 * labels).to(torch.uint8)[:, None, None, None].repeat(1, 32, 32, 3).numpy()


def test_is_built_from_torchvision_where_it_is_on_disk(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", FakeMNIST)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCIFAR10)
    for split, size in {"train": 100, "val": 5000, "test": 20}.items():
        dominoes = TWO_CUES["mnist-cifar"](split, source="torchvision", root="here")
        assert dominoes.images.shape == (size, 3, 64, 32)
        assert torch.equal((dominoes.images[:, 0, 40, 5] * 10.2).round().long(), dominoes.targets)
        assert torch.equal((dominoes.images[:, 0, 2, 2] * 10.2).round().long(), dominoes.biases)
        double = TWO_CUES["double-mnist"](split, source="torchvision", root="here")
        assert double.images.shape == (size, 1, 28, 56)
        assert torch.equal((double.images[:, 0, 0, 28] * 10.2).round().long(), double.biases)
    assert dominoes.group_names[1] == "airplane_with_1"
    corrupted = TWO_CUES["corrupted-cifar10"]("test", source="torchvision", root="here")
    assert corrupted.group_names[-1] == "truck_with_original"


@pytest.mark.parametrize(
    ("name", "missing"),
    [("double-mnist", "train-images-idx3-ubyte"), ("corrupted-cifar10", "cifar-10-batches-py")],
)
def test_missing_files_are_named_with_where_to_get_them(name, missing, tmp_path):
    with pytest.raises(ContractError, match=rf"(?s){tmp_path}.*{missing}.*https://.*digits"):
        TWO_CUES[name](source="torchvision", root=tmp_path)


def test_refuses_bad_arguments():
    with pytest.raises(ContractError, match=r"root.*None"):
        TWO_CUES["double-mnist"](source="torchvision")
    with pytest.raises(ContractError, match="source"):
        TWO_CUES["double-mnist"](source="mnist")
    with pytest.raises(ContractError, match=r"conflicting.*1\.5"):
        TWO_CUES["moon-star"](conflicting=1.5)
    with pytest.raises(ContractError, match=r"split.*dev"):
        TWO_CUES["moon-star"]("dev")
    with pytest.raises(ContractError, match="dataset"):
        TwoCuesDataModule("waterbirds")


def test_loaders_repeat_themselves():
    batches = []
    for _ in range(2):
        datamodule = TwoCuesDataModule("moon-star", seed=2)
        datamodule.setup("fit")
        batches.append(next(iter(datamodule.train_dataloader()))[0])
        torch.rand(1)
    assert torch.equal(*batches)
    assert len(batches[0]) == 100
    assert sum(len(y) for _, y in datamodule.test_dataloader()) == len(datamodule.test)
