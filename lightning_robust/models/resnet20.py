"""The small residual networks of CIFAR-10 (He et al., CVPR 2016, Section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    """Two 3x3 convolutions beside an identity that pads new channels with zeros (option A)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, channels - channels_in
        self.first = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels_in, H, W) to (n, channels, H / stride, W / stride)."""
        hidden = F.relu(self.first_norm(self.first(x)))
        hidden = self.second_norm(self.second(hidden))
        beside = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(hidden + beside)


class ResNet20(nn.Sequential):
    """Nine blocks of 16, 32 and 64 channels; 0.27 million parameters.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of the images.

    Shape:
        Images (n, in_channels, H, W), H and W multiples of 4, to logits (n, C).

    Example:
        >>> import torch
        >>> network = ResNet20()
        >>> network(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in network.parameters())
        (torch.Size([2, 10]), 269722)
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(*_layers(3, num_classes, in_channels))


class ResNet32(nn.Sequential):
    """Fifteen blocks of 16, 32 and 64 channels; 0.46 million parameters.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of the images.

    Shape:
        Images (n, in_channels, H, W), H and W multiples of 4, to logits (n, C).

    Example:
        >>> import torch
        >>> network = ResNet32(in_channels=1)
        >>> network(torch.zeros(2, 1, 28, 28)).shape, sum(p.numel() for p in network.parameters())
        (torch.Size([2, 10]), 463866)
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(*_layers(5, num_classes, in_channels))


def _layers(blocks: int, num_classes: int, in_channels: int) -> list[nn.Module]:
    """Three times as many blocks, between a first convolution and the head."""
    sizes = [(16, 16, 1)] * blocks
    for channels in (32, 64):
        sizes += [(channels // 2, channels, 2)] + [(channels, channels, 1)] * (blocks - 1)
    return [
        nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(_Block(*size) for size in sizes),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    ]
