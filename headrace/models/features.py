"""Observations of any supported space as flat vectors."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces

from headrace.types import Tree

__all__ = ["FlatFeatures"]


class FlatFeatures(torch.nn.Module):
    """Maps a tree of `[..., *shape]` to float32 `[..., size]`: numbers flat, Discrete one-hot, trees concatenated."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self._space = space
        self.size = _size(space)

    def forward(self, observation: Tree) -> torch.Tensor:
        """See the class."""
        return _flat(self._space, observation)


def _children(space: spaces.Dict | spaces.Tuple[Any]) -> list[tuple[Any, spaces.Space[Any]]]:
    return list(space.spaces.items()) if isinstance(space, spaces.Dict) else list(enumerate(space.spaces))


def _size(space: spaces.Space[Any]) -> int:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return sum(_size(child) for _, child in _children(space))
    return int(space.n) if isinstance(space, spaces.Discrete) else _volume(space)


def _volume(space: spaces.Space[Any]) -> int:
    assert space.shape is not None
    return int(torch.Size(space.shape).numel())


def _flat(space: spaces.Space[Any], observation: Tree) -> torch.Tensor:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return torch.cat([_flat(child, observation[key]) for key, child in _children(space)], dim=-1)
    if isinstance(space, spaces.Discrete):
        return torch.nn.functional.one_hot(observation - int(space.start), int(space.n)).float()
    assert space.shape is not None
    leading = observation.shape[: observation.ndim - len(space.shape)]
    features: torch.Tensor = observation.float().reshape(*leading, _volume(space))
    return features
