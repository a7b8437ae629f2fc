"""Converts observations of any supported space to vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch.nn.functional import one_hot

from headrace.models.conv import NatureCnn, is_image
from headrace.models.norm import RunningNorm
from headrace.types import Tree

__all__ = ["Features"]


class Features(torch.nn.Module):
    """Maps an observation, a tree of `[..., *shape]`, to one vector, float32 `[..., size]`.

    The parts of Dict and Tuple spaces are concatenated. Numbers are flattened, Discrete is one-hot (an embedding, if a
    linear layer follows), and each image passes through its own `NatureCnn`.

    Args:
        space: the observation space.
        normalize: normalize numbers of Box spaces by a `RunningNorm`, whose statistics `update` changes; agents call
            `update` for every `Features` in their model.

    Raises:
        TypeError: if the space has no parts.
    """

    size: int
    has_images: bool

    def __init__(self, space: spaces.Space[Any], normalize: bool = False) -> None:
        super().__init__()
        parts = list(_parts(space, ()))
        if not parts:
            raise TypeError(f"the observation space {space} is empty for a model; it needs at least one entry")
        self._keys = [keys for keys, _ in parts]
        self.normalizes = normalize
        leaves = [_leaf(child, normalize) for _, child in parts]
        self.leaves = torch.nn.ModuleList(leaves)
        self.size = sum(leaf.size for leaf in leaves)
        self.has_images = any(isinstance(leaf, NatureCnn) for leaf in leaves)
        self._of_vector = isinstance(space, spaces.Box) and space.dtype == np.float32 and len(space.shape) == 1
        self._of_float32 = all(child.dtype == np.float32 for _, child in parts)

    def forward(self, observation: Tree) -> torch.Tensor:
        """Returns features float32 `[..., size]` of observations, a tree of `[..., *shape]`."""
        # `leaf.forward` and `_modules`, because a module call and the iterator of a ModuleList cost 2 µs each.
        parts = [
            leaf.forward(_at(observation, keys))
            for leaf, keys in zip(self.leaves._modules.values(), self._keys, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @property
    def is_vector(self) -> bool:
        """Whether the features are the observation itself, a vector of float32, normalized if there is a norm."""
        return self._of_vector and self.is_numbers

    @property
    def is_numbers(self) -> bool:
        """Whether the features are the numbers of the observation, all of them float32, normalized if there are norms.

        `parts` returns the arrays, `norms` what normalizes each.
        """
        return self._of_float32 and all(
            type(leaf) is _Numbers and type(leaf.norm) in (RunningNorm, type(None)) for leaf in self.leaves
        )

    @property
    def is_one_hot(self) -> bool:
        """Whether the features are the one-hot code of a Discrete observation that begins at 0."""
        leaf = self.leaves[0]
        return self._keys == [()] and type(leaf) is _OneHot and leaf.start == 0

    @property
    def norms(self) -> list[RunningNorm]:
        """What normalizes the parts of observations that are numbers (`is_numbers`); empty if nothing does."""
        return [leaf.norm for leaf in self.leaves if isinstance(leaf, _Numbers) and leaf.norm is not None]

    def parts(self, observation: Tree) -> list[Any]:
        """Returns the leaves of an observation in the order in which features are concatenated."""
        return [_at(observation, keys) for keys in self._keys]

    def update(self, observation: Tree) -> None:
        """Updates the normalization statistics, if any, with observations, a tree of `[N, *shape]`."""
        for leaf, keys in zip(self.leaves, self._keys, strict=True):
            if isinstance(leaf, _Numbers) and leaf.norm is not None:
                leaf.norm.update(leaf.flat(_at(observation, keys)))


class _Numbers(torch.nn.Module):
    """Flattens numbers `[..., *shape]` to float32 `[..., size]` and normalizes them if asked."""

    def __init__(self, shape: tuple[int, ...], normalize: bool) -> None:
        super().__init__()
        self.size, self._n_dims = int(torch.Size(shape).numel()), len(shape)
        self.norm = RunningNorm(self.size) if normalize else None

    def flat(self, numbers: torch.Tensor) -> torch.Tensor:
        """Returns the flattened numbers, not normalized."""
        # The dtype is checked because `float()` costs an operator dispatch even when it does nothing.
        floats = numbers if numbers.dtype is torch.float32 else numbers.float()
        if self._n_dims == 1:
            return floats
        return floats.reshape(*floats.shape[: floats.ndim - self._n_dims], self.size)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        flat = self.flat(numbers)
        return flat if self.norm is None else self.norm.forward(flat)


class _OneHot(torch.nn.Module):
    """One-hot encodes integers `[...]`, which begin at `start`, as float32 `[..., n]`."""

    def __init__(self, n: int, start: int) -> None:
        super().__init__()
        self.size, self.start = n, start

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        # Clamped because padding is 0, whatever the `start` of the space.
        return one_hot((numbers.long() - self.start).clamp(0, self.size - 1), self.size).float()


def _parts(space: spaces.Space[Any], keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], spaces.Space[Any]]]:
    """Yields the leaf spaces (neither Dict nor Tuple) with the keys of the path to each."""
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
