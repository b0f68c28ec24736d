"""Pictures of examples: look at what a method has dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.contracts import ContractError, IntegersLike, check_integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_examples(
    dataset: Dataset[Any],
    indices: IntegersLike,
    *,
    titles: Sequence[str] | None = None,
    columns: int = 10,
    marked: Tensor | None = None,
    input_key: int | str = 0,
) -> Figure:
    """Draw some examples of a dataset of images.

    Args:
        dataset: Items are tuples, lists or dictionaries with an image: a tensor (H, W), (1, H, W)
            or (3, H, W), or a PIL image. Tensors are scaled from their smallest to their largest
            number.
        indices: (m,) dataset indices, such as ``EPIC.dropped_indices``.
        titles: One for each picture; ``None`` takes the indices.
        columns: Pictures in a row.
        marked: (n,) bool, examples to frame in red, such as ``PoisonedDataset.poisoned``.
        input_key: Where the image stands in an item.

    Returns:
        A matplotlib figure, to show or to save.

    Raises:
        ContractError: If an input is no image, or there is no index.
        ModuleNotFoundError: If matplotlib is missing.

    Example:
        >>> from lightning_robust.data import ColouredDigits
        >>> figure = draw_examples(ColouredDigits(), [0, 7])
        >>> [axis.get_title() for axis in figure.axes]
        ['0', '7']
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures need matplotlib, which is not installed; install the extra 'demo': "
            "pip install 'lightning-robust[demo]'"
        ) from error
    wanted = torch.as_tensor(indices).tolist()
    check_integer("columns", columns, 1)
    if not wanted:
        raise ContractError("indices must hold at least one index, got none")
    names = [str(index) for index in wanted] if titles is None else titles
    columns = min(columns, len(wanted))
    rows = -(-len(wanted) // columns)
    figure = Figure(figsize=(0.9 * columns, 1.1 * rows), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, index, name in zip(axes, wanted, names, strict=False):
        axis.imshow(_pixels(dataset[index][input_key], index), cmap="gray")
        axis.set_title(name, fontsize=7, pad=2)
        axis.set(xticks=[], yticks=[])
        framed = marked is not None and bool(marked[index])
        axis.spines[:].set(color="#dc2626" if framed else "#d1d5db", linewidth=2.5 if framed else 1)
    for axis in axes[len(wanted) :]:
        axis.remove()
    return figure


def _pixels(image: Any, index: int) -> Any:
    """What matplotlib draws of an image."""
    if not isinstance(image, Tensor):
        return image
    pixels = image.detach().cpu().float()
    if pixels.ndim == 3 and len(pixels) in (1, 3):
        pixels = pixels.movedim(0, -1).squeeze(-1)
    elif pixels.ndim != 2:
        raise ContractError(
            f"the input of example {index} is no image: its shape is {tuple(image.shape)}, and "
            "(H, W), (1, H, W) or (3, H, W) can be drawn"
        )
    low, high = pixels.aminmax()
    return ((pixels - low) / (high - low).clamp(min=1e-12)).numpy()
