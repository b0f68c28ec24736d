"""Networks by name, as a YAML file can hold them: timm's, torchvision's and Hugging Face's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_robust.contracts import ContractError, check_integer, check_probability


class LeNet5(nn.Sequential):
    """Two convolutions and three linear layers, with ReLU and max-pooling.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels: 28, or 32.

    Shape:
        Images (n, in_channels, image_size, image_size) to logits (n, C).

    References:
        LeCun et al., Gradient-based learning applied to document recognition, 1998, as it is built
        today: 6 and 16 filters, 120 and 84 units.

    Example:
        >>> import torch
        >>> LeNet5()(torch.zeros(2, 3, 28, 28)).shape
        torch.Size([2, 5])
    """

    def __init__(self, num_classes: int = 5, in_channels: int = 3, image_size: int = 28) -> None:
        check_integer("num_classes", num_classes, minimum=2)
        check_integer("in_channels", in_channels, minimum=1)
        check_integer("image_size", image_size, minimum=28)
        side = ((image_size // 2) - 4) // 2
        super().__init__(
            nn.Conv2d(in_channels, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * side**2, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )


def timm_network(
    name: str, num_classes: int, *, pretrained: bool = False, in_channels: int = 3
) -> nn.Module:
    """A network of timm.

    Args:
        name: As in ``timm.list_models()``, such as ``"resnet50"``.
        num_classes: Number of classes C.
        pretrained: Start from the weights that timm downloads, but for the head.
        in_channels: Channels of the images.

    Raises:
        ContractError: If there is no such network.

    Example:
        >>> import torch
        >>> timm_network("resnet10t", 4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """
    import timm

    check_integer("num_classes", num_classes, minimum=2)
    if not timm.is_model(name.split("/")[-1].split(".")[0]) and ":" not in name:
        raise ContractError(f"name={name!r} is no network of timm; see timm.list_models()")
    network: nn.Module = timm.create_model(
        name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
    )
    return network


def torchvision_network(
    name: str, num_classes: int, *, pretrained: bool = False, small_images: bool = False
) -> nn.Module:
    """A classifier of torchvision, with a head of its own.

    Args:
        name: As in ``torchvision.models.list_models()``, such as ``"resnet50"``.
        num_classes: Number of classes C.
        pretrained: Start from the first published ImageNet weights (``IMAGENET1K_V1``), which the
            papers used and torchvision downloads, but for the head.
        small_images: For a ResNet on images of 28 to 64 pixels: its first convolution is 3x3 with
            stride 1, and the first max-pooling is left out.

    Raises:
        ContractError: If there is no such network, or it has no linear head or first layer to
            replace.

    Example:
        >>> import torch
        >>> network = torchvision_network("resnet18", 10, small_images=True)
        >>> network(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    from torchvision import models

    check_integer("num_classes", num_classes, minimum=2)
    if name not in models.list_models(module=models):
        raise ContractError(
            f"name={name!r} is no classifier of torchvision; see "
            "torchvision.models.list_models(module=torchvision.models)"
        )
    network: nn.Module = models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None)
    place, head = [
        (place, layer) for place, layer in network.named_modules() if isinstance(layer, nn.Linear)
    ][-1]
    network.set_submodule(place, nn.Linear(head.in_features, num_classes))
    if small_images:
        if not isinstance(network, models.ResNet):
            raise ContractError(f"small_images=True is for ResNets, got name={name!r}")
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        network.set_submodule("maxpool", nn.Identity())
    return network


def text_network(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = True,
    dropout: float | None = None,
) -> nn.Module:
    """A text classifier of Hugging Face (``AutoModelForSequenceClassification``).

    Args:
        name: Of the model, or a folder that holds one; a folder needs no network.
        num_classes: Number of classes C.
        pretrained: Start from its weights, but for the head; otherwise only its configuration is
            read.
        dropout: Before the head; ``None`` is the model's own.

    Raises:
        ContractError: If an argument is refused.
        ModuleNotFoundError: If transformers is missing.
    """
    check_integer("num_classes", num_classes, minimum=2)
    settings: dict[str, Any] = {"num_labels": num_classes}
    if dropout is not None:
        check_probability("dropout", dropout)
        # Configurations keep names they do not know, and each model knows its own.
        settings |= {"classifier_dropout": dropout, "seq_classif_dropout": dropout}
    return _from_hub("AutoModelForSequenceClassification", name, pretrained, settings)


def language_model(name: str, *, pretrained: bool = True) -> nn.Module:
    """A causal language model of Hugging Face (``AutoModelForCausalLM``).

    Args:
        name: Of the model, or a folder that holds one; a folder needs no network.
        pretrained: Start from its weights; otherwise only its configuration is read.

    Raises:
        ModuleNotFoundError: If transformers is missing.
    """
    return _from_hub("AutoModelForCausalLM", name, pretrained, {})


def _from_hub(kind: str, name: str, pretrained: bool, settings: Mapping[str, Any]) -> nn.Module:
    transformers = require_transformers()
    name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    auto = getattr(transformers, kind)
    network: nn.Module
    if pretrained:
        network = auto.from_pretrained(name, **settings)
    else:
        network = auto.from_config(transformers.AutoConfig.from_pretrained(name, **settings))
    return network.train()


def require_transformers() -> Any:
    """The package transformers.

    Raises:
        ModuleNotFoundError: With the fix, if it is missing.
    """
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "text needs transformers, which is not installed; install the extra 'text': "
            "pip install 'lightning-robust[text]'"
        ) from error


def logits_of(network: nn.Module, inputs: Any) -> Tensor:
    """The logits a network makes of the inputs of a batch.

    Args:
        network: Any; Hugging Face's return an object with ``logits``.
        inputs: A mapping is passed by keywords, without its ``labels``.
    """
    if isinstance(inputs, Mapping):
        output = network(**{key: value for key, value in inputs.items() if key != "labels"})
    else:
        output = network(inputs)
    logits: Tensor = getattr(output, "logits", output)
    return logits
