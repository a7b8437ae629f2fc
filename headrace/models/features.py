"""Observations of any supported space as flat vectors."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch.nn.functional import one_hot

from headrace.types import Tree

__all__ = ["FlatFeatures"]


class FlatFeatures(torch.nn.Module):
    """Maps a tree of `[..., *shape]` to float32 `[..., size]`: numbers flat, Discrete one-hot, trees concatenated."""

    size: int

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self._children: list[tuple[Any, FlatFeatures]] = []
        self._n_dims = 0
        self._start: int | None = None
        if isinstance(space, spaces.Dict | spaces.Tuple):
            items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            self._children = [(key, FlatFeatures(child)) for key, child in items]
            self.size = sum(child.size for _, child in self._children)
        elif isinstance(space, spaces.Discrete):
            self.size, self._start = int(space.n), int(space.start)
        else:
            assert space.shape is not None
            self.size, self._n_dims = int(torch.Size(space.shape).numel()), len(space.shape)

    def forward(self, observation: Tree) -> torch.Tensor:
        """See the class."""
        if self._n_dims == 1:
            # Not `float()` alone: an operator that does nothing costs its dispatch too.
            features: torch.Tensor = observation if observation.dtype is torch.float32 else observation.float()
            return features
        if self._children:
            return torch.cat([child(observation[key]) for key, child in self._children], dim=-1)
        if self._start is not None:
            # Clamped, because padding rows are 0 whatever the space's start.
            return one_hot((observation - self._start).clamp(0, self.size - 1), self.size).float()
        flat: torch.Tensor = observation.float().reshape(
            *observation.shape[: observation.ndim - self._n_dims], self.size
        )
        return flat
