"""Data sets of images: small files in the real layouts, whose colours tell class and attribute."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections import Counter
from pathlib import Path

import imitations
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torchvision import datasets
from torchvision.transforms import v2

from lightning_robust import SPARE, GroupDRO, GroupMetrics, data
from lightning_robust.contracts import ContractError, groups_of, names_in_keys, targets_of
from lightning_robust.data._datamodule import SPLITS
from lightning_robust.data._draws import held_out, imbalanced
from lightning_robust.data._images import ImageFormat
from lightning_robust.data.restricted_imagenet import RANGES, superclasses
from lightning_robust.models import Classifier

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def unchecked(monkeypatch):
    """torchvision's CIFAR readers, without their checksums."""
    for reader in (datasets.CIFAR10, datasets.CIFAR100):
        for files in ("train_list", "test_list"):
            monkeypatch.setattr(reader, files, [[name, None] for name, _ in getattr(reader, files)])
        monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": None})


def rgb(image: torch.Tensor) -> tuple[int, int, int]:
    """The colour of a standardised image of one colour, 0 to 255."""
    assert image.dtype == torch.float32
    assert type(image) is torch.Tensor
    centre = image[:, image.shape[1] // 2, image.shape[2] // 2]
    return tuple((255 * (centre * STD + MEAN)).round().int().tolist())


def near(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 6  # JPEG


# ---- Waterbirds and CelebA -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "write", "layout"),
    [
        *((data.Waterbirds, imitations.waterbirds, layout) for layout in
          ("archive", "itself", "WILDS", "group_DRO", "SubpopBench")),
        *((data.CelebA, imitations.celeba, layout) for layout in
          ("WILDS", "group_DRO", "SubpopBench", "torchvision", "Kaggle")),
    ],
)  # fmt: skip
def test_each_layout_is_found_and_images_go_with_their_groups(tmp_path, dataset, write, layout):
    written = write(tmp_path, layout)
    for number, split in enumerate(SPLITS):
        own = [(y, a) for part, y, a in written if part == number]
        images = dataset(tmp_path, split, image_size=16)
        groups = groups_of(images)
        assert targets_of(images).tolist() == [y for y, _ in own]
        counted = Counter(own)
        assert groups.counts.tolist() == [counted[y, a] for y in (0, 1) for a in (0, 1)]
        assert len(set(groups.names)) == 4
        for (image, target), (y, a), group in zip(images, own, groups.ids, strict=True):
            assert image.shape == (3, 16, 16)
            assert target == y
            assert int(group) == 2 * y + a
            assert near(rgb(image), imitations.colour(y, a))


def test_waterbirds_and_celeba_say_what_their_groups_are():
    assert data.Waterbirds.group_names[1] == "landbird_water"
    assert data.CelebA.group_names[1] == "not_blond_male"


def test_the_clean_view_has_the_same_examples_without_augmentation(tmp_path):
    imitations.waterbirds(tmp_path)
    augmented = data.Waterbirds(tmp_path, augment=True, image_size=16)
    plain = data.Waterbirds(tmp_path, image_size=16)
    assert len(augmented.clean) == len(plain)
    for index in range(3):
        assert torch.equal(augmented.clean[index][0], plain[index][0])
    assert augmented.transform is not plain.transform
    assert plain.clean.transform is plain.transform
    kinds = [type(step) for step in augmented.transform.transforms]
    assert kinds[:2] == [v2.RandomResizedCrop, v2.RandomHorizontalFlip]


def test_a_celeba_whose_two_files_disagree_is_refused(tmp_path):
    imitations.celeba(tmp_path, "torchvision")
    parts = tmp_path / "celeba" / "list_eval_partition.txt"
    parts.write_text("\n".join(reversed(parts.read_text().splitlines())))
    with pytest.raises(ContractError, match="does not name the files of"):
        data.CelebA(tmp_path)
    parts.unlink()
    with pytest.raises(ContractError, match=r"looked for list_eval_partition\.txt"):
        data.CelebA(tmp_path)


def test_an_unknown_value_is_refused_with_its_row(tmp_path):
    imitations.waterbirds(tmp_path)
    table = tmp_path / imitations.WATERBIRDS / "metadata.csv"
    table.write_text(table.read_text().replace("002.Bird/2.jpg,0,", "002.Bird/2.jpg,7,"))
    with pytest.raises(
        ContractError, match=r"y of .*metadata.csv must be one of \(0, 1\), got '7'"
    ):
        data.Waterbirds(tmp_path)


# ---- missing files -------------------------------------------------------------------------------

MODULES = {
    "Waterbirds": data.WaterbirdsDataModule,
    "CelebA": data.CelebADataModule,
    "MNIST": data.CMNISTDataModule,
    "FashionMNIST": data.FashionMNISTDataModule,
    "CIFAR-10": data.CIFARDataModule,
    "TinyImageNet": data.TinyImageNetDataModule,
    "ImageNet": data.RestrictedImageNetDataModule,
    "folder of images": data.ImageFolderDataModule,
}


@pytest.mark.parametrize("name", MODULES)
def test_missing_files_are_named_with_address_place_and_licence(tmp_path, name):
    module = MODULES[name](tmp_path / "nowhere")
    module.prepare_data()
    with pytest.raises(ContractError) as error:
        module.setup("fit")
    said, source = str(error.value), module.source
    assert name in said
    for part in (str(tmp_path / "nowhere"), "looked for", source.address, source.licence):
        assert part in said
    assert source.place in said
    downloads = source.archive is not None or source.fetch is not None
    assert ("download=True" in said) == downloads == (name not in ("ImageNet", "folder of images"))


def test_a_table_without_its_images_is_refused(tmp_path):
    imitations.waterbirds(tmp_path)
    for folder in (tmp_path / imitations.WATERBIRDS).glob("*.Bird"):
        shutil.rmtree(folder)
    with pytest.raises(ContractError, match=r"looked for .*000\.Bird"):
        data.Waterbirds(tmp_path)


def test_damaged_files_are_not_taken_for_cifar(tmp_path):
    imitations.cifar(tmp_path)
    with pytest.raises(ContractError, match=r"not found or corrupted.* pass download=True"):
        data.CIFAR(tmp_path)


# ---- images in memory ----------------------------------------------------------------------------


def painted(image: torch.Tensor) -> tuple[str, int]:
    """Hue and digit of a coloured square, from its pixels alone."""
    red, green, blue = (255 * image[:, 14, 14]).round().int().tolist()
    assert image[:, 0, 0].tolist() == [0, 0, 0]
    grey = max(red, green, blue)
    hue = min(
        data.cmnist.HUES,
        key=lambda h: sum(
            abs(channel * grey / max(bytes.fromhex(h)) - value)
            for channel, value in zip(bytes.fromhex(h), (red, green, blue), strict=True)
        ),
    )
    return hue, round((grey * 255 / max(bytes.fromhex(hue)) - 100) / 10)


@pytest.mark.parametrize("split", SPLITS)
def test_cmnist_paints_what_its_annotations_say(tmp_path, split):
    imitations.mnist(tmp_path, train=240)
    digits = data.CMNIST(tmp_path, split, correlation=0.8)
    assert len(digits) == {"train": 200, "val": 40, "test": 50}[split]
    for (image, target), group in zip(digits, digits.groups.tolist(), strict=True):
        hue, digit = painted(image)
        assert target == digit // 2
        assert digits.group_names[group] == f"{2 * target}{2 * target + 1}_{hue}"
    if split == "train":
        for label in range(5):
            sizes = digits.groups[digits.targets == label].bincount(minlength=25)
            own = int(sizes[5 * label + label])
            assert own == round(0.8 * int(sizes.sum()))
            others = [int(sizes[5 * label + hue]) for hue in range(5) if hue != label]
            assert max(others) - min(others) <= 1


def test_cmnist_draws_by_its_seed_and_splits_without_overlap(tmp_path):
    imitations.mnist(tmp_path, train=240)
    before = torch.get_rng_state()
    first, again, other = (data.CMNIST(tmp_path, data_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(torch.get_rng_state(), before)
    seen = Counter(
        first.targets.tolist() + data.CMNIST(tmp_path, "val", data_seed=1).targets.tolist()
    )
    assert seen == Counter(i % 10 // 2 for i in range(240))


@pytest.mark.parametrize(
    ("hues", "said"),
    [
        (("ff0000",) * 5, "five different colours"),
        (("red",) * 5, "hexadecimal"),
        (("ff0000", "00ff00"), "five different colours"),
    ],
)
def test_cmnist_refuses_what_are_no_five_colours(hues, said):
    with pytest.raises(ContractError, match=said):
        data.CMNISTDataModule(hues=hues)


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_reads_images_with_their_classes(tmp_path, unchecked, classes):
    imitations.cifar(tmp_path, classes)
    train, test = (data.CIFAR(tmp_path, split, num_classes=classes) for split in ("train", "test"))
    assert len(train) == 20 * classes
    assert len(test) == 5 * classes
    assert len(train.group_names) == classes
    assert torch.equal(train.groups, train.targets)
    for index in range(0, len(train), 7):
        assert train.images[index].unique().tolist() == [2 * int(train.targets[index])]
    pixels = torch.stack([train[i][0] for i in range(classes)])[:, :, 0, 0]
    mean, std = map(torch.tensor, data.cifar._MOMENTS[classes])
    expected = (torch.arange(classes)[:, None] * 2 / 255 - mean) / std
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)


def test_label_shift_has_the_profile_of_the_paper(tmp_path, unchecked):
    imitations.cifar(tmp_path, train=100)
    step = data.CIFAR(tmp_path, imbalance=10)
    assert step.groups.bincount().tolist() == [100] * 5 + [10] * 5
    steep = data.CIFAR(tmp_path, imbalance=50, profile="exponential")
    assert steep.targets.bincount().tolist() == [round(100 * 50 ** (-c / 9)) for c in range(10)]
    assert data.CIFAR(tmp_path, "test", imbalance=10).targets.bincount().tolist() == [5] * 10
    imitations.mnist(tmp_path, "FashionMNIST", train=200)
    clothes = data.FashionMNIST(tmp_path, imbalance=4)
    assert clothes.targets.bincount().tolist() == [20] * 5 + [5] * 5
    assert clothes[0][0].shape == (1, 28, 28)


def test_who_remains_and_who_is_held_out_is_drawn_by_seed():
    targets = torch.arange(600) % 3
    chosen = [imbalanced(targets, 4, "exponential", seed).tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] == sorted(set(chosen[0]))
    held = held_out(targets, 0.25, 0)
    assert targets[held].bincount().tolist() == [50, 50, 50]
    assert not held_out(targets, 0.0, 0).any()


def test_a_held_out_validation_split_is_not_trained_on(tmp_path, unchecked):
    imitations.cifar(tmp_path, train=20)
    module = data.CIFARDataModule(tmp_path, held_out=0.1, imbalance=3)
    module.setup("fit")
    assert module.val.targets.bincount().tolist() == [2] * 10
    assert module.train.targets.bincount().tolist() == [18] * 5 + [6] * 5
    module = data.CIFARDataModule(tmp_path)
    module.setup("fit")
    assert torch.equal(module.val.images, module.test.images)


# ---- TinyImageNet, Restricted ImageNet, folders --------------------------------------------------


@pytest.mark.parametrize("in_folders", [False, True])
def test_tiny_imagenet_as_published_and_in_folders(tmp_path, in_folders):
    imitations.tiny_imagenet(tmp_path, in_folders)
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        images = data.TinyImageNet(tmp_path, split, held_out=1 / 3)
        assert images.targets.bincount().tolist() == [count] * 4
        assert images.group_names == tuple(f"n{i:08d}" for i in (11, 22, 33, 44))
        for image, target in images:
            assert image.shape == (3, 64, 64)
            assert near(rgb(image), imitations.colour(target % 2, target // 2))
    moved = data.TinyImageNet(tmp_path, augment=True)
    assert moved[0][0].shape == (3, 64, 64)


def test_restricted_imagenet_needs_its_own_classes_only(tmp_path):
    sizes = Counter(superclasses().values())
    ranges = [last - first + 1 for first, last in RANGES.values()]
    assert [sizes[i] for i in range(9)] == ranges == [118, 5, 3, 5, 21, 18, 9, 4, 20]
    known = {"n02085620": "dog", "n02123045": "cat", "n01641577": "frog", "n01664065": "turtle"}
    known |= {"n01530575": None, "n02480855": "primate", "n02190166": "insect"}
    for name, superclass in known.items():
        found = superclasses().get(name)
        assert (None if found is None else list(RANGES)[found]) == superclass
    imitations.imagenet(tmp_path, [*superclasses(), "n01530575"])
    train = data.RestrictedImageNet(tmp_path, image_size=8)
    assert train.targets.bincount().tolist() == [2 * size for size in ranges]
    assert (
        list(RANGES)[int(train.targets[0])]
        == list(RANGES)[superclasses()[train.path(0).parent.name]]
    )
    for index in range(0, len(train), 40):
        assert int(train.targets[index]) == superclasses()[train.path(index).parent.name]
    assert data.RestrictedImageNet(tmp_path, "test").targets.bincount().tolist() == ranges
    shutil.rmtree(tmp_path / "val" / "n02123045")
    with pytest.raises(ContractError, match="n02123045"):
        data.RestrictedImageNet(tmp_path, "test")


@pytest.mark.parametrize(
    ("settings", "name_of"),
    [
        ({"columns": "place"}, lambda y, place, light: place),
        ({"columns": "place", "by_class": True}, lambda y, place, light: f"{y}_{place}"),
        (
            {"columns": ["place", "light"]},
            lambda y, place, light: f"place={place},light={light}",
        ),
        ({"groups": None}, lambda y, place, light: y),
    ],
)
def test_a_folder_of_images_gets_its_groups_from_the_file(tmp_path, settings, name_of):
    listed = {file: rest for file, *rest in imitations.image_folder(tmp_path)}
    for split in SPLITS:
        images = data.GroupedImageFolder(tmp_path, split, image_size=16, **settings)
        assert len(images) == sum(file.startswith(split) for file in listed)
        groups = groups_of(images)
        for index in range(len(images)):
            file = images.path(index).relative_to(tmp_path).as_posix()
            label = file.split("/")[1]
            assert images.class_names[int(images.targets[index])] == label
            assert groups.names[int(groups.ids[index])] == name_of(label, *listed[file])


def test_a_folder_of_images_refuses_what_has_no_group(tmp_path):
    imitations.image_folder(tmp_path)
    table = tmp_path / "groups.csv"
    lines = table.read_text().splitlines()
    with pytest.raises(ContractError, match="no column 'group'"):
        data.GroupedImageFolder(tmp_path)
    table.write_text("\n".join([*lines, lines[2]]))
    with pytest.raises(ContractError, match="2 times"):
        data.GroupedImageFolder(tmp_path, columns="place")
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(ContractError, match=r"no row for 'train/cat/0\.png' and 0 more"):
        data.GroupedImageFolder(tmp_path, columns="place")
    table.unlink()
    with pytest.raises(ContractError, match=r"groups\.csv' must be an existing file"):
        data.GroupedImageFolder(tmp_path)
    shutil.rmtree(tmp_path / "test")
    as_test = data.GroupedImageFolder(tmp_path, "test", groups=None)
    assert len(as_test) == len(data.GroupedImageFolder(tmp_path, "val", groups=None))


# ---- what the network expects --------------------------------------------------------------------


def test_a_timm_model_says_what_images_it_expects(tmp_path):
    import timm
    from timm.data import resolve_model_data_config

    name = "vit_base_patch16_224.augreg_in21k"
    found = ImageFormat.of(None, name)
    expected = resolve_model_data_config(
        timm.create_model(name, img_size=32, depth=1), use_test_size=False
    )
    assert (found.mean, found.std) == (tuple(expected["mean"]), tuple(expected["std"]))
    assert (found.interpolation, found.crop_share) == (
        expected["interpolation"],
        expected["crop_pct"],
    )
    assert found.size == 224
    assert found.mean != tuple(MEAN.tolist())
    assert ImageFormat.of(96, name).size == 96
    imitations.waterbirds(tmp_path)
    image, _ = data.Waterbirds(tmp_path, image_size=16, timm_model=name)[0]
    assert near(tuple((255 * (image[:, 8, 8] + 1) / 2).int().tolist()), imitations.colour(0, 1))
    with pytest.raises(ContractError, match="no model of timm's"):
        data.WaterbirdsDataModule(timm_model="resnet_of_mine")


# ---- every data module ---------------------------------------------------------------------------


def write_all(name: str, root: Path) -> dict[str, object]:
    """Small files of a data set; what its module needs besides."""
    match name:
        case "Waterbirds":
            imitations.waterbirds(root)
        case "CelebA":
            imitations.celeba(root)
        case "MNIST":
            imitations.mnist(root)
            return {"correlation": 0.8}
        case "FashionMNIST":
            imitations.mnist(root, name)
            return {"imbalance": 3}
        case "CIFAR-10":
            imitations.cifar(root, train=5)
            return {"held_out": 0.2}
        case "TinyImageNet":
            imitations.tiny_imagenet(root)
            return {"image_size": 16}
        case "ImageNet":
            imitations.imagenet(root, superclasses(), 1)
            return {"image_size": 16}
        case _:
            imitations.image_folder(root)
            return {"image_size": 16, "columns": "place", "by_class": True}
    return {"image_size": 16}


def network(channels: int, classes: int) -> nn.Module:
    convolution = nn.Conv2d(channels, 4, 5, stride=4)
    return nn.Sequential(
        convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )


@pytest.mark.parametrize("name", MODULES)
def test_two_steps_of_training_and_group_metrics_on_every_data_set(tmp_path, unchecked, name):
    settings = write_all(name, tmp_path)
    if "image_size" in settings:
        settings["num_workers"] = 0
    settings["download"] = name not in ("ImageNet", "folder of images")  # nothing is missing
    module = MODULES[name](tmp_path, batch_size=20, seed=0, **settings)
    module.setup("fit")
    image, _ = pickle.loads(pickle.dumps(module.train))[0]  # as spawned workers get it
    names = set(names_in_keys(module.train.group_names))
    assert module.train.group_names == module.val.group_names == module.test.group_names
    trainer = Trainer(
        max_epochs=2,
        limit_train_batches=2,
        limit_val_batches=1,
        callbacks=[SPARE(num_clusters=1), GroupDRO(), GroupMetrics()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    model = Classifier(network(len(image), int(module.train.targets.max()) + 1))
    trainer.fit(model, datamodule=module)
    assert trainer.global_step == 4
    logged = trainer.callback_metrics
    assert 0 <= float(logged["val/worst_group_acc"]) <= 1
    assert {key.rpartition("/")[2] for key in logged if key.startswith("val/group_acc/")} <= names
    [tested] = trainer.test(model, datamodule=module, verbose=False)
    keys = names_in_keys(module.test.group_names)
    seen = {keys[group] for group in module.test.groups.tolist()}
    assert {f"test/group_acc/{group}" for group in seen} <= tested.keys()


@pytest.mark.parametrize("name", MODULES)
def test_every_data_module_is_made_from_a_command_line(tmp_path, monkeypatch, name):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's
    monkeypatch.setattr(sys, "argv", ["fit"])
    kind = MODULES[name]
    own = {
        "Waterbirds": "--data.augment=false",
        "MNIST": "--data.correlation=0.9",
        "FashionMNIST": "--data.profile=exponential",
        "CIFAR-10": "--data.num_classes=100",
        "TinyImageNet": "--data.held_out=0.1",
        "folder of images": "--data.columns=[place,light]",
    }
    words = [f"--data=lightning_robust.data.{kind.__name__}", f"--data.root={tmp_path}"]
    words += [own.get(name, "--data.seed=3"), "--data.batch_size=7", "--data.num_workers=1"]
    words += ["--trainer.logger=false", "--trainer.accelerator=cpu"]
    cli = LightningCLI(
        BoringModel,
        data.GroupDataModule,
        subclass_mode_data=True,
        args=words,
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
    )
    module = cli.datamodule
    assert type(module) is kind
    assert (module.batch_size, module.num_workers, module.root) == (7, 1, tmp_path)
    key, _, value = words[2].removeprefix("--data.").partition("=")
    assert str(getattr(module, key)).lower().replace("'", "").replace(" ", "") == value


class Recorded(Classifier):
    """Writes down what each rank trains on."""

    def __init__(self, folder: str) -> None:
        super().__init__(network(3, 5))
        self.folder, self.seen = folder, []

    def training_step(self, batch, batch_idx):
        images, targets = batch
        self.seen += images.sum((1, 2, 3)).tolist()
        return nn.functional.cross_entropy(self(images), targets)

    def on_train_end(self):
        module = self.trainer.datamodule
        found = {"seen": self.seen, "groups": module.train.groups, "images": module.train.images}
        torch.save(found, Path(self.folder) / str(self.global_rank))


def test_two_ranks_make_the_same_splits_and_share_an_epoch(tmp_path):
    imitations.mnist(tmp_path)
    trainer = Trainer(
        max_epochs=1,
        devices=2,
        strategy="ddp_fork",
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Recorded(str(tmp_path)), datamodule=data.CMNISTDataModule(tmp_path, batch_size=10))
    first, second = (torch.load(tmp_path / rank) for rank in "01")
    assert torch.equal(first["images"], second["images"])
    assert torch.equal(first["groups"], second["groups"])
    expected = (first["images"].float() / 255).sum((1, 2, 3))
    assert sorted(first["seen"] + second["seen"]) == pytest.approx(sorted(expected.tolist()))
