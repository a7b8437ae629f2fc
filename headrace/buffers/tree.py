"""Trees: arrays nested in dataclasses, dicts and tuples; None is an empty tree. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.types import Tree

if TYPE_CHECKING:
    import torch

__all__ = [
    "allocate_like",
    "tree_concatenate",
    "tree_copy_into",
    "tree_leaves",
    "tree_map",
    "tree_paths",
    "tree_rows",
    "tree_to_numpy",
    "tree_to_torch",
    "tree_zeroed",
]


def _field_names(cls: type) -> Iterable[str] | None:
    """Returns the field names of a dataclass type, else None. (`dataclasses.fields` takes 1 µs per call.)"""
    return getattr(cls, "__dataclass_fields__", None)


def tree_map(fn: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Returns a tree of the same structure with `fn(leaf, *leaves of others)` at each leaf."""
    if not others:
        return _map_one(fn, tree)
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: tree_map(fn, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(tree_map(fn, *values) for values in zip(tree, *others, strict=True))
    names = _field_names(type(tree))
    if names is not None:
        return type(tree)(
            **{name: tree_map(fn, getattr(tree, name), *(getattr(other, name) for other in others)) for name in names}
        )
    return fn(tree, *others)


def _map_one(fn: Callable[[Any], Any], tree: Tree) -> Tree:
    """Does what `tree_map` does for one tree, in half of the time. It runs several times per batch."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: _map_one(fn, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple([_map_one(fn, value) for value in tree])
    names = _field_names(type(tree))
    if names is not None:
        return type(tree)(**{name: _map_one(fn, getattr(tree, name)) for name in names})
    return fn(tree)


def tree_paths(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, leaf) pairs; a path is written as in user code: `.dist.logits`, `['camera']`, `[0]`."""
    if tree is None:
        return
    names = _field_names(type(tree))
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from tree_paths(value, f"{path}[{key!r}]")
    elif isinstance(tree, tuple):
        for index, value in enumerate(tree):
            yield from tree_paths(value, f"{path}[{index}]")
    elif names is not None:
        for name in names:
            yield from tree_paths(getattr(tree, name), f"{path}.{name}")
    else:
        yield path, tree


def tree_leaves(tree: Tree) -> list[Any]:
    """Returns the leaves in the order of `tree_map`. It is called in every step, so it avoids generators."""
    leaves: list[Any] = []
    _collect(tree, leaves)
    return leaves


def _collect(tree: Tree, leaves: list[Any]) -> None:
    if tree is None:
        return
    if isinstance(tree, dict):
        for value in tree.values():
            _collect(value, leaves)
        return
    if isinstance(tree, tuple):
        for value in tree:
            _collect(value, leaves)
        return
    names = _field_names(type(tree))
    if names is None:
        leaves.append(tree)
        return
    for name in names:
        _collect(getattr(tree, name), leaves)


def tree_rows(tree: Tree, index: Any) -> Tree:
    """Returns `leaf[index]` for every leaf, e.g. a row, a slice or list of rows, or `(slice(None), columns)`."""
    return tree_map(lambda leaf: leaf[index], tree)


def tree_copy_into(destination: Tree, source: Tree) -> None:
    """Copies every leaf of `source` into the corresponding array of `destination`."""
    for to, value in zip(tree_leaves(destination), tree_leaves(source), strict=True):
        to[...] = value


def tree_concatenate(trees: Sequence[Tree], name: str) -> Tree:
    """Returns the rows of all trees, one after another, in new memory.

    Args:
        trees: at least one tree of arrays `[n, ...]`.
        name: what the trees are, for the error.

    Raises:
        ValueError: if the trees have different keys or shapes.
    """
    if all(isinstance(tree, np.ndarray) and tree.shape[1:] == trees[0].shape[1:] for tree in trees):
        return np.concatenate(trees)  # comparing the paths of many small trees takes longer than copying them
    first = _paths_and_shapes(trees[0])
    for tree in trees[1:]:
        other = _paths_and_shapes(tree)
        if other != first:
            path = min(path for path, _ in {*first.items()} ^ {*other.items()})
            raise ValueError(
                f"cannot concatenate {name}: {name}{path} is {_described(first, path)} in the first part and "
                f"{_described(other, path)} in another, expected the same in all parts"
            )
    return tree_map(lambda *leaves: np.concatenate(leaves), *trees)


def _paths_and_shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape[1:] for path, leaf in tree_paths(tree)}


def _described(shapes: dict[str, tuple[int, ...]], path: str) -> str:
    return f"an array {['n', *shapes[path]]}".replace("'", "") if path in shapes else "missing"


def allocate_like(
    example: Tree, leading: tuple[int, ...], allocate: Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]
) -> Tree:
    """Returns arrays of shape `[*leading, *leaf.shape]` and the leaf's dtype, made by `allocate(shape, dtype)`."""
    return tree_map(lambda leaf: allocate((*leading, *leaf.shape), leaf.dtype), example)


def tree_to_numpy(tree: Tree) -> Tree:
    """Returns arrays of the same memory, or of a copy for tensors on a GPU; arrays stay as they are."""
    return tree_map(lambda leaf: leaf if isinstance(leaf, np.ndarray) else leaf.numpy(force=True), tree)


def tree_to_torch(tree: Tree, device: torch.device | str | None = None) -> Tree:
    """Returns torch views of the same memory or, with `device`, tensors on that device."""
    import torch

    tensors = tree_map(torch.from_numpy, tree)
    return tensors if device is None else tree_map(lambda tensor: tensor.to(device), tensors)


def tree_zeroed(tree: Tree, mask: torch.Tensor) -> Tree:
    """Returns a tree of tensors `[n, ...]` with zeros where `mask`, bool `[n]`, is set."""
    return tree_map(lambda leaf: leaf.masked_fill(mask.reshape(-1, *[1] * (leaf.ndim - 1)), 0), tree)
