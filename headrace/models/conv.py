"""Convolutional networks for image observations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch.nn import functional

__all__ = ["NatureCnn", "is_image"]

#: Shortest side of an image: below it, the third convolution has no input left.
_SMALLEST = 36


def is_image(space: spaces.Space[Any]) -> bool:
    """Returns whether a `NatureCnn` fits: uint8 images `[C, H, W]` or `[H, W, C]` with H and W of at least 36."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return sorted(space.shape)[1] >= _SMALLEST and min(space.shape) in (space.shape[0], space.shape[2])


class NatureCnn(torch.nn.Module):
    """Three convolutions and a linear layer, which map uint8 images `[..., *shape]` to float32 `[..., size]`.

    Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015. The channel axis is the
    smaller of the first and the last; pixel values are scaled to 0 … 1.

    Args:
        shape: shape of one image, `(C, H, W)` or `(H, W, C)`.
        size: number of features.
    """

    def __init__(self, shape: tuple[int, ...], size: int = 512) -> None:
        super().__init__()
        self.size = size
        self._channels_last = shape[2] < shape[0]
        channels, height, width = (shape[2], *shape[:2]) if self._channels_last else shape
        self.convolutions = torch.nn.ModuleList(
            [
                torch.nn.Conv2d(channels, 32, 8, stride=4),
                torch.nn.Conv2d(32, 64, 4, stride=2),
                torch.nn.Conv2d(64, 64, 3, stride=1),
            ]
        )
        for side_kernel, side_stride in ((8, 4), (4, 2), (3, 1)):
            height, width = ((side - side_kernel) // side_stride + 1 for side in (height, width))
        self.linear = torch.nn.Linear(64 * height * width, size)
        for layer in (*self.convolutions, self.linear):
            torch.nn.init.orthogonal_(layer.weight, math.sqrt(2.0))
            torch.nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns features float32 `[..., size]` of uint8 images `[..., *shape]`."""
        leading = images.shape[:-3]
        # Scaling in place makes one float copy of a batch of images instead of two.
        hidden = images.reshape(-1, *images.shape[-3:]).float().mul_(1.0 / 255.0)
        if self._channels_last:
            hidden = hidden.permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            hidden = torch.relu(convolution(hidden))
        hidden = functional.linear(hidden.flatten(1), self.linear.weight, self.linear.bias)
        return torch.relu(hidden).reshape(*leading, self.size)
