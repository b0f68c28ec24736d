"""Small files in the layouts of the real data sets: plain colours that tell class and attribute."""

from __future__ import annotations

import csv
import pickle
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WATERBIRDS = "waterbird_complete95_forest2water2"

Row = tuple[int, int, int]  # split, class, attribute


def rows(n: int = 60) -> list[Row]:
    """Three in five are for training; the attribute mostly is the class, and all groups occur."""
    return [((0, 0, 0, 1, 2)[i % 5], y := (i // 3) % 2, y if i % 4 else 1 - y) for i in range(n)]


def colour(*levels: int) -> tuple[int, int, int]:
    """Three small integers as a colour."""
    red, green, blue = (*levels, 0, 0)[:3]
    return 30 + 90 * red, 30 + 90 * green, 30 + 90 * blue


def write_image(path: Path, rgb: tuple[int, int, int], size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, rgb).save(path, quality=95)


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])


def waterbirds(root: Path, layout: str = "archive") -> list[Row]:
    """Also returns what was written, in order."""
    folders = {
        "archive": WATERBIRDS,
        "itself": ".",
        "WILDS": "waterbirds_v1.0",
        "group_DRO": f"cub/data/{WATERBIRDS}",
        "SubpopBench": f"waterbirds/{WATERBIRDS}",
    }
    folder, written = root / folders[layout], rows()
    names = [f"{i % 7:03d}.Bird/{i}.jpg" for i in range(len(written))]
    for name, (_, y, place) in zip(names, written, strict=True):
        write_image(folder / name, colour(y, place))
    header = ["img_id", "img_filename", "y", "split", "place", "place_filename"]
    lines = [
        (i + 1, name, y, split, place, f"/p/{place}.jpg")
        for i, (name, (split, y, place)) in enumerate(zip(names, written, strict=True))
    ]
    if layout == "SubpopBench":
        table = root / "waterbirds" / "metadata_waterbirds.csv"
        order = ["id", "filename", "split", "y", "a"]
        write_csv(table, order, [(i, name, split, y, a) for i, name, y, split, a, _ in lines])
    else:
        write_csv(folder / "metadata.csv", header, lines)
    return written


def celeba(root: Path, layout: str = "torchvision") -> list[Row]:
    """Also returns what was written, in order; attributes are among others."""
    folders = {
        "WILDS": "celebA_v1.0",
        "group_DRO": "celebA/data",
        "SubpopBench": "celeba",
        "torchvision": "celeba",
        "Kaggle": "",
    }
    folder, written = root / folders[layout], rows()
    listed = [(f"{i + 1:06d}.jpg", *row) for i, row in enumerate(written)]
    images = folder / "img_align_celeba"
    for name, _, blond, male in listed:
        inner = images / "img_align_celeba" if layout == "Kaggle" else images
        write_image(inner / name, colour(blond, male), (178, 218))
    attributes = ["Bald", "Blond_Hair", "Chubby", "Male", "Young"]
    signs = [(name, -1, 2 * y - 1, 1, 2 * a - 1, -1) for name, _, y, a in listed]
    parts = [(name, split) for name, split, _, _ in listed]
    if layout == "SubpopBench":
        lines = [(i + 1, *row) for i, row in enumerate(listed)]
        write_csv(folder / "metadata_celeba.csv", ["id", "filename", "split", "y", "a"], lines)
    elif layout == "torchvision":
        text = [str(len(listed)), " ".join(attributes) + " "]
        text += ["  ".join(map(str, line)) for line in signs]
        (folder / "list_attr_celeba.txt").write_text("\n".join(text) + "\n")
        text = [f"{name} {split}" for name, split in parts]
        (folder / "list_eval_partition.txt").write_text("\n".join(text) + "\n")
    else:
        write_csv(folder / "list_attr_celeba.csv", ["image_id", *attributes], signs)
        write_csv(folder / "list_eval_partition.csv", ["image_id", "partition"], parts)
    return written


def mnist(root: Path, name: str = "MNIST", train: int = 120, test: int = 50) -> None:
    """Digits 0 to 9 in turn, each a square of grey ``100 + 10 * digit`` in a black frame."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        digits = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 4:24, 4:24] = (100 + 10 * digits)[:, None, None]
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, count)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + digits.tobytes())


def cifar(root: Path, classes: int = 10, train: int = 20, test: int = 5) -> None:
    """Classes in turn, each image the grey of its class; ``train`` and ``test`` are a class's."""
    key = "labels" if classes == 10 else "fine_labels"

    def batch(count: int) -> dict[str, Any]:
        labels = np.arange(count) % classes
        data = np.repeat(labels.astype(np.uint8)[:, None] * 2, 3072, axis=1)
        return {"data": data, key: labels.tolist()}

    if classes == 10:
        folder = root / "cifar-10-batches-py"
        files = {f"data_batch_{i}": batch(train * 10 // 5) for i in range(1, 6)}
        files |= {"test_batch": batch(test * 10)}
        files |= {"batches.meta": {"label_names": [str(i) for i in range(10)]}}
    else:
        folder = root / "cifar-100-python"
        files = {"train": batch(train * 100), "test": batch(test * 100)}
        files |= {"meta": {"fine_label_names": [str(i) for i in range(100)]}}
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))


def tiny_imagenet(root: Path, in_folders: bool = False) -> None:
    """Four classes, six training images and three others each; colours tell the class."""
    folder, names = root / "tiny-imagenet-200", [f"n{i:08d}" for i in (44, 11, 33, 22)]
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    lines = []
    for number, name in enumerate(sorted(names)):
        for i in range(6):
            path = folder / "train" / name / "images" / f"{name}_{i}.JPEG"
            write_image(path, colour(number % 2, number // 2), (64, 64))
        for _ in range(3):
            file = f"val_{len(lines) * 7 % 12}.JPEG"  # in another order than their names
            path = folder / "val" / (name if in_folders else "images") / file
            write_image(path, colour(number % 2, number // 2), (64, 64))
            lines.append(f"{file}\t{name}\t0\t0\t63\t63")
    if not in_folders:
        (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")


def imagenet(root: Path, names: Iterable[str], per_class: int = 2) -> None:
    """Images in ``train`` and ``val`` for each WordNet id."""
    for split in ("train", "val"):
        for name in names:
            for i in range(per_class if split == "train" else 1):
                write_image(root / split / name / f"{name}_{i}.JPEG", (90, 90, 90))


def image_folder(root: Path) -> list[tuple[str, str, str]]:
    """Cats and dogs, on grass or snow; also returns file, place and light of each image."""
    listed = []
    for i, (split, y, a) in enumerate(rows()):
        file = f"{('train', 'val', 'test')[split]}/{('cat', 'dog')[y]}/{i}.png"
        write_image(root / file, colour(y, a, i % 2))
        listed.append((file, ("grass", "snow")[a], str(i % 2)))
    lines = [("extra/cat/0.png", "sand", "1"), *reversed(listed)]
    write_csv(root / "groups.csv", ["filename", "place", "light"], lines)
    return listed
