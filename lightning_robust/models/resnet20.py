"""The small residual network of CIFAR-10 (He et al., CVPR 2016, Section 4.2)."""

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

    Shape:
        Images (n, 3, H, W), H and W multiples of 4, to logits (n, C).

    Example:
        >>> import torch
        >>> network = ResNet20()
        >>> network(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in network.parameters())
        (torch.Size([2, 10]), 269722)
    """

    def __init__(self, num_classes: int = 10) -> None:
        sizes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2
        sizes += [(32, 64, 2)] + [(64, 64, 1)] * 2
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *(_Block(*size) for size in sizes),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )
