"""Where a model looks: GradCAM and integrated gradients, through captum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_robust.contracts import ContractError, check_integer


def grad_cam(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[int],
    layer: nn.Module,
    *,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Explanation maps of several classes, as the adjusted IoU takes them.

    Each map is the positive part of GradCAM (Selvaraju et al., ICCV 2017), resized to the images
    and divided by its largest value, so that it lies in [0, 1]; a map without a positive part is 0.

    Args:
        model: Maps images to logits (n, C); put it into evaluation mode first.
        images: (n, c, h, w).
        classes: Whose maps to make.
        layer: Of a CNN, a module that returns (n, k, h', w'), such as the last convolution. Of a
            ViT, one that returns tokens (n, T, k), with ``grid``: not the last block, from which
            only the class token goes on, but the first norm inside it.
        grid: Rows and columns of the patches of a ViT. They are the last tokens; those in front,
            as the class token, are left out.

    Returns:
        (n, number of classes, h, w) in [0, 1], without gradient.

    Raises:
        ModuleNotFoundError: captum is missing.
        ContractError: The layer does not return what is described.
    """
    require_captum()
    from captum.attr import LayerGradCam

    images = images.detach().requires_grad_()  # or nothing of a frozen encoder has a gradient
    maps = []
    with torch.enable_grad(), _as_picture(layer, grid) as picture:
        attribution: Any = LayerGradCam(model, picture)
        for label in classes:
            coarse = attribution.attribute(images, target=int(label), relu_attributions=True)
            if not isinstance(coarse, Tensor) or coarse.ndim != 4:
                raise ContractError(
                    f"layer ({type(layer).__name__}) must return (n, k, h, w); for the tokens "
                    "(n, T, k) of a ViT give grid="
                )
            coarse = coarse.detach().float()
            maps.append(functional.interpolate(coarse, images.shape[-2:], mode="bilinear")[:, 0])
    found = torch.stack(maps, 1)
    largest = found.amax((-2, -1), keepdim=True)
    return found / largest.where(largest > 0, 1)


def integrated_gradients(
    model: nn.Module, inputs: Tensor, classes: Tensor | None = None, *, steps: int = 32
) -> Tensor:
    """How much each input value adds to a logit (Sundararajan et al., ICML 2017).

    The path of integration is straight from an input of zeros, by Gauss-Legendre quadrature. The
    attributions of an example sum to the difference of the logit there and at zeros, but for the
    error of quadrature.

    Args:
        model: Maps inputs to logits (n, C); put it into evaluation mode first.
        inputs: (n, ...) floating.
        classes: (n,) int64, whose logits to explain; ``None`` takes the predicted classes.
        steps: Points on the path, at least 1.

    Returns:
        (n, ...) like the inputs, without gradient.

    Raises:
        ModuleNotFoundError: captum is missing.
        ContractError: ``steps`` is less than 1.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
        >>> integrated_gradients(model, torch.tensor([[3.0, -1.0]]))
        tensor([[ 3., -2.]])
    """
    check_integer("steps", steps, 1)
    require_captum()
    from captum.attr import IntegratedGradients

    if classes is None:
        with torch.no_grad():
            classes = model(inputs).argmax(1)
    with torch.enable_grad():
        found: Tensor = IntegratedGradients(model).attribute(
            inputs, target=classes, n_steps=steps, internal_batch_size=max(len(inputs), 256)
        )
    return found.detach().to(inputs.dtype)


def require_captum() -> None:
    """Raise ``ModuleNotFoundError`` with the fix if captum is missing."""
    try:
        import captum.attr  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "captum is not installed; install the extra 'attribution': "
            "pip install 'lightning-robust[attribution]'"
        ) from error


@contextmanager
def _as_picture(layer: nn.Module, grid: tuple[int, int] | None) -> Iterator[nn.Module]:
    """A module through which the layer's output goes as (n, k, h, w)."""
    if grid is None:
        yield layer
        return
    rows, columns = grid
    picture = nn.Identity()

    def through(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[1] < rows * columns:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ContractError(
                f"layer ({type(layer).__name__}) must return tokens (n, T, k), T at least the "
                f"{rows * columns} patches of grid={grid}, got {shape}"
            )
        front, patches = output.split([output.shape[1] - rows * columns, rows * columns], 1)
        shown = picture(patches.transpose(1, 2).unflatten(2, (rows, columns)))
        return torch.cat([front, shown.flatten(2).transpose(1, 2)], 1)

    handle = layer.register_forward_hook(through)
    try:
        yield picture
    finally:
        handle.remove()
