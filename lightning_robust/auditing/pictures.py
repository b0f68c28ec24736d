"""Pictures of examples, small enough to stand in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

_SMALL = 16


def pixels_of(item: Any) -> Tensor | None:
    """The picture in an item of a data set, (3, h, w) float32, or ``None`` if there is none.

    It is the item, or the first of its parts (of a dictionary: its values) that is a PIL image or a
    tensor (h, w), (1, h, w) or (3, h, w); a tensor is taken as it is, whatever its range.

    Example:
        >>> pixels_of((torch.zeros(1, 8, 8), 3)).shape
        torch.Size([3, 8, 8])
        >>> pixels_of((torch.zeros(12), 3))
    """
    if isinstance(item, dict):
        parts: Iterable[Any] = item.values()
    else:
        parts = item if isinstance(item, list | tuple) else [item]
    for part in parts:
        if hasattr(part, "convert") and hasattr(part, "getbands"):  # a PIL image
            from torchvision.transforms.functional import pil_to_tensor

            bytes_of_picture: Tensor = pil_to_tensor(part.convert("RGB"))
            return bytes_of_picture.float() / 255
        if isinstance(part, Tensor) and part.ndim in (2, 3) and min(part.shape[-2:]) > 1:
            values = part.detach().cpu().float()
            values = values.unsqueeze(0) if values.ndim == 2 else values
            if len(values) in (1, 3):
                return values.expand(3, *values.shape[1:])
    return None


def small_pixels(dataset: Dataset[Any]) -> Tensor | None:
    """Every picture of a data set, (n, 3, 16, 16) in [0, 1]; ``None`` if its items are none.

    Values outside [0, 1], as of normalised pictures, are scaled by the smallest and largest of all.
    """
    found = torch.empty(len(dataset), 3, _SMALL, _SMALL)  # type: ignore[arg-type]
    for index in range(len(found)):
        pixels = pixels_of(dataset[index])
        if pixels is None:
            return None
        found[index] = F.interpolate(pixels.unsqueeze(0), (_SMALL, _SMALL), mode="area")[0]
    low, high = found.aminmax()
    return found if low >= 0 and high <= 1 else (found - low) / (high - low).clamp(min=1e-12)


def thumbnails(dataset: Dataset[Any], indices: Sequence[int], size: int = 96) -> dict[int, str]:
    """Pictures as data URIs of PNG files, by index; empty where items are no pictures.

    Args:
        dataset: Items with pictures.
        indices: Which examples.
        size: The longer side is at most this many pixels; smaller pictures stay as they are.
    """
    from PIL import Image

    found = {}
    for index in indices:
        pixels = pixels_of(dataset[index])
        if pixels is None:
            return {}
        low, high = pixels.aminmax()
        if low < 0 or high > 1:
            pixels = (pixels - low) / (high - low).clamp(min=1e-12)
        array = (255 * pixels).round().byte().movedim(0, -1).numpy()
        picture = Image.fromarray(array)
        picture.thumbnail((size, size))
        file = io.BytesIO()
        picture.save(file, format="PNG", optimize=True)
        found[index] = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return found
