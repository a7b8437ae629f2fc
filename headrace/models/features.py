"""Observations of any supported space as vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from gymnasium import spaces
from torch.nn.functional import one_hot

from headrace.models.conv import NatureCnn, is_image
from headrace.models.norm import RunningNorm
from headrace.types import Tree

__all__ = ["Features"]


class Features(torch.nn.Module):
    """Maps a tree of `[..., *shape]` to float32 `[..., size]`: the parts of Dict and Tuple side by side.

    Numbers are flattened, Discrete is one-hot (under a linear layer: an embedding), images go through a `NatureCnn`
    each. normalize: numbers of Box spaces pass a `RunningNorm`, whose statistics `update` gathers; agents call it for
    every `Features` in their model. Raises TypeError for a space without parts.
    """

    size: int
    has_images: bool

    def __init__(self, space: spaces.Space[Any], normalize: bool = False) -> None:
        super().__init__()
        parts = list(_parts(space, ()))
        if not parts:
            raise TypeError(f"a model has nothing to look at in {space}; give the observation at least one entry")
        self._keys = [keys for keys, _ in parts]
        self.normalizes = normalize
        leaves = [_leaf(child, normalize) for _, child in parts]
        self.leaves = torch.nn.ModuleList(leaves)
        self.size = sum(leaf.size for leaf in leaves)
        self.has_images = any(isinstance(leaf, NatureCnn) for leaf in leaves)

    def forward(self, observation: Tree) -> torch.Tensor:
        """See the class."""
        # `forward`, and the dict below the ModuleList: calls of modules and its iterator cost 2 µs each.
        parts = [
            leaf.forward(_at(observation, keys))
            for leaf, keys in zip(self.leaves._modules.values(), self._keys, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def update(self, observation: Tree) -> None:
        """Takes observations, a tree of `[N, *shape]`, into the statistics of normalization, if there are any."""
        for leaf, keys in zip(self.leaves, self._keys, strict=True):
            if isinstance(leaf, _Numbers) and leaf.norm is not None:
                leaf.norm.update(leaf.flat(_at(observation, keys)))


class _Numbers(torch.nn.Module):
    """Numbers `[..., *shape]` as float32 `[..., size]`."""

    def __init__(self, shape: tuple[int, ...], normalize: bool) -> None:
        super().__init__()
        self.size, self._n_dims = int(torch.Size(shape).numel()), len(shape)
        self.norm = RunningNorm(self.size) if normalize else None

    def flat(self, numbers: torch.Tensor) -> torch.Tensor:
        """Not normalized."""
        # Not `float()` alone: an operator that does nothing costs its dispatch too.
        floats = numbers if numbers.dtype is torch.float32 else numbers.float()
        if self._n_dims == 1:
            return floats
        return floats.reshape(*floats.shape[: floats.ndim - self._n_dims], self.size)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        flat = self.flat(numbers)
        return flat if self.norm is None else self.norm.forward(flat)


class _OneHot(torch.nn.Module):
    """Integers `[...]` from `start` as float32 `[..., n]`."""

    def __init__(self, n: int, start: int) -> None:
        super().__init__()
        self.size, self._start = n, start

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        # Clamped, because padding rows are 0 whatever the space's start.
        return one_hot((numbers.long() - self._start).clamp(0, self.size - 1), self.size).float()


def _parts(space: spaces.Space[Any], keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], spaces.Space[Any]]]:
    """The spaces that are no Dict or Tuple, with the keys that lead there."""
    match space:
        case spaces.Dict():
            children: Any = space.spaces.items()
        case spaces.Tuple():
            children = enumerate(space.spaces)
        case _:
            yield keys, space
            return
    for key, child in children:
        yield from _parts(child, (*keys, key))


def _leaf(space: spaces.Space[Any], normalize: bool) -> Any:
    if is_image(space):
        assert space.shape is not None
        return NatureCnn(space.shape)
    if isinstance(space, spaces.Discrete):
        return _OneHot(int(space.n), int(space.start))
    assert space.shape is not None
    return _Numbers(space.shape, normalize and isinstance(space, spaces.Box))


def _at(tree: Tree, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        tree = tree[key]
    return tree
