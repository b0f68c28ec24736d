"""Loaders of the data modules beside plain torchvision ones: ``python benchmarks/loaders.py``.

Files are generated in the layouts of the real data sets, at about their sizes: JPEGs of smooth
noise, as long to decode as photographs. What is plain is what a user would write: torchvision's own
dataset (`ImageFolder`, `CIFAR10`, `FashionMNIST`, `MNIST`; for a table of files a class of ten
lines) with the same steps of `transforms.v2`, in a `DataLoader` of the same batch size. Both pass
over the whole training split in the main process, one thread, and CPU time is taken. They take
turns, in another order each round, and each round gives a ratio of images a second: above 1, the
data module is the faster. The plain `MNIST` gives grey images, one channel; the others do the same
work on both sides.
"""

from __future__ import annotations

import argparse
import csv
import os
import pickle
import platform
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.transforms import v2

from lightning_robust import data
from lightning_robust.data.restricted_imagenet import superclasses

BATCH_SIZE = 64
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CIFAR = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]

Pair = tuple[data.GroupDataModule, Dataset[Any]]


class Table(Dataset[Any]):
    """Files, classes and a transform."""

    def __init__(self, folder: Path, rows: list[tuple[str, int]], transform: Any) -> None:
        self.folder, self.rows, self.transform = folder, rows, transform

    def __len__(self) -> int:
        """Number of files."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """One image and its class."""
        file, target = self.rows[index]
        return self.transform(datasets.folder.pil_loader(str(self.folder / file))), target


def tensor(*geometry: Any, moments: Any = IMAGENET) -> Any:
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*moments)]
    return v2.Compose([*geometry, *steps])


def crop(low: float, ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> Any:
    return tensor(v2.RandomResizedCrop(224, (low, 1.0), ratio), v2.RandomHorizontalFlip())


def write_image(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(abs(hash(path.name)) % 1000)
    coarse = draw.integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def write_csv(path: Path, header: list[str], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_idx(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        name = folder / f"{prefix}-images-idx3-ubyte"
        name.write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + images.tobytes())
        name = folder / f"{prefix}-labels-idx1-ubyte"
        name.write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


def waterbirds(root: Path, count: int, augment: bool) -> Pair:
    folder = root / "waterbird_complete95_forest2water2"
    rows = [(f"{i % 20:03d}.Bird/{i}.jpg", i % 2, i // 2 % 2) for i in range(count)]
    for file, _, _ in rows:
        write_image(folder / file, 500, 375)
    splits = [0] * (count - 2) + [1, 2]
    lines = [(i, f, y, s, a) for i, ((f, y, a), s) in enumerate(zip(rows, splits, strict=True))]
    write_csv(folder / "metadata.csv", ["img_id", "img_filename", "y", "split", "place"], lines)
    transform = crop(0.7) if augment else tensor(v2.Resize((256, 256)), v2.CenterCrop(224))
    plain = Table(folder, [(file, y) for file, y, _ in rows[:-2]], transform)
    return data.WaterbirdsDataModule(root, augment=augment, num_workers=0), plain


def celeba(root: Path, count: int) -> Pair:
    folder = root / "celeba"
    rows = [(f"{i:06d}.jpg", i % 2, i // 2 % 2) for i in range(count)]
    for file, _, _ in rows:
        write_image(folder / "img_align_celeba" / file, 178, 218)
    splits = [0] * (count - 2) + [1, 2]
    lines = [(f, s, y, a) for (f, y, a), s in zip(rows, splits, strict=True)]
    write_csv(folder / "metadata_celeba.csv", ["filename", "split", "y", "a"], lines)
    listed = [(file, y) for file, y, _ in rows[:-2]]
    plain = Table(folder / "img_align_celeba", listed, crop(0.7, (1.0, 4 / 3)))
    return data.CelebADataModule(root, num_workers=0), plain


def tiny_imagenet(root: Path, count: int) -> Pair:
    folder, names = root / "tiny-imagenet-200", [f"n{i:08d}" for i in range(200)]
    for i in range(count):
        write_image(folder / "train" / names[i % 200] / "images" / f"{i}.JPEG", 64, 64)
    for name in names:
        write_image(folder / "train" / name / "images" / "0.JPEG", 64, 64)
        write_image(folder / "val" / name / "0.JPEG", 64, 64)
    (folder / "wnids.txt").write_text("\n".join(names))
    steps = [v2.Resize((64, 64)), v2.RandomCrop(64, 4), v2.RandomHorizontalFlip()]
    plain = datasets.ImageFolder(str(folder / "train"), tensor(*steps))
    return data.TinyImageNetDataModule(root, num_workers=0), plain


def restricted_imagenet(root: Path, count: int) -> Pair:
    names = list(superclasses())
    for i in range(max(count, len(names))):
        write_image(root / "train" / names[i % len(names)] / f"{i}.JPEG", 500, 375)
    for name in names:
        write_image(root / "val" / name / "0.JPEG", 64, 64)
    plain = datasets.ImageFolder(str(root / "train"), crop(0.08))
    return data.RestrictedImageNetDataModule(root, num_workers=0), plain


def image_folder(root: Path, count: int) -> Pair:
    files = [f"train/{i % 10}/{i}.jpg" for i in range(count)] + ["val/0/0.jpg"]
    for file in files:
        write_image(root / file, 500, 375)
    write_csv(root / "groups.csv", ["filename", "group"], [(f, i % 3) for i, f in enumerate(files)])
    plain = datasets.ImageFolder(str(root / "train"), crop(0.08))
    return data.ImageFolderDataModule(root, num_workers=0), plain


def cifar(root: Path, count: int) -> Pair:
    folder, draw = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    reader: Any = datasets.CIFAR10
    for name in [file for file, _ in reader.train_list + reader.test_list]:
        pixels = draw.integers(0, 256, (count // 5, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": [i % 10 for i in range(count // 5)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    for files in ("train_list", "test_list"):  # generated files have other checksums
        setattr(reader, files, [[name, None] for name, _ in getattr(reader, files)])
    reader.meta = {**reader.meta, "md5": None}
    steps = [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip()]
    return data.CIFARDataModule(root), reader(str(root), transform=tensor(*steps, moments=CIFAR))


def fashion_mnist(root: Path, count: int) -> Pair:
    write_idx(root / "FashionMNIST" / "raw", count)
    transform = tensor(moments=([0.2860], [0.3530]))
    plain = datasets.FashionMNIST(str(root), transform=transform)
    return data.FashionMNISTDataModule(root, augment=False), plain


def cmnist(root: Path, count: int) -> Pair:
    write_idx(root / "MNIST" / "raw", count)
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return data.CMNISTDataModule(root), datasets.MNIST(str(root), transform=transform)


CONTESTS: dict[str, Callable[[Path, int], Pair]] = {
    "Waterbirds, as it is": lambda root, count: waterbirds(root, count, False),
    "Waterbirds, augmented": lambda root, count: waterbirds(root, count, True),
    "CelebA, augmented": celeba,
    "TinyImageNet, augmented": lambda root, count: tiny_imagenet(root, 5 * count),
    "Restricted ImageNet, augmented": restricted_imagenet,
    "folder of images and groups, augmented": image_folder,
    "CIFAR-10, augmented": lambda root, count: cifar(root, 20 * count),
    "FashionMNIST, as it is": lambda root, count: fashion_mnist(root, 20 * count),
    "CMNIST": lambda root, count: cmnist(root, 20 * count),
}
"""Writes the files, and gives the data module and the plain dataset."""


def images_a_second(loader: DataLoader[Any]) -> float:
    start, seen = time.process_time(), 0
    for images, _ in loader:
        seen += len(images)
    return seen / (time.process_time() - start)


def measure(pair: Pair, rounds: int) -> tuple[float, list[float]]:
    """Images a second of the plain loader, median, and a ratio each round."""
    module, plain = pair
    module.batch_size = BATCH_SIZE
    module.setup("fit")
    loaders = {
        "module": module.train_dataloader(),
        "plain": DataLoader(plain, BATCH_SIZE, shuffle=True),
    }
    order, ratios, plains = list(loaders), [], []
    shuffler = random.Random(0)
    for round_number in range(rounds + 1):  # the first warms the file cache
        shuffler.shuffle(order)
        found = {name: images_a_second(loaders[name]) for name in order}
        if round_number:
            ratios.append(found["module"] / found["plain"])
            plains.append(found["plain"])
    return statistics.median(plains), ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=256, help="large ones; of small ones more")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    command = f"python benchmarks/loaders.py --rounds {chosen.rounds} --images {chosen.images}"
    print(f"# Loaders (`{command}`)\n")
    print(
        f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, {platform.machine()}, "
        f"{os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), CPU time of the main process, "
        f"one thread, no workers, batch {BATCH_SIZE}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}; {chosen.rounds} rounds\n"
    )
    print("| data module | speed, of the plain loader's | middle half of the rounds | ", end="")
    print("plain, images a second |")
    print("|---|---|---|---|")
    for name, make in CONTESTS.items():
        with tempfile.TemporaryDirectory() as folder:
            speed, ratios = measure(make(Path(folder), chosen.images), chosen.rounds)
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {name} | {statistics.median(ratios):.2f} | {low:.2f} to {high:.2f} | {speed:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
