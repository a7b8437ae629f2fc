"""Requests and results: trees whose structure, dtypes and shapes are declared once, and then checked for each one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from headrace.buffers.tree import tree_leaves, tree_map, tree_paths
from headrace.types import Tree

__all__ = ["Layout", "Leaves", "copied"]

#: The arrays of a tree, in the order of `Layout.row`.
Leaves = list[np.ndarray]
#: Appends the arrays of a tree with so many leading dimensions to a list; returns False if it is not as declared.
_Collector = Callable[[Tree, tuple[int, ...], Leaves], bool]
_NUMBERS = (bool, int, float, complex, np.generic)


class Layout:
    """What all requests of a stream, or all its results, have in common.

    Two processes that have the same fields in another order, or in a dict instead of a dataclass, agree on the order of
    the arrays, because keys are sorted.

    Args:
        example: arrays and numbers nested in dataclasses, dicts and tuples: what one request, or one result, is like.
        what: the name of the tree in errors: "request" or "result".

    Raises:
        TypeError: if there is anything else in it.
    """

    def __init__(self, example: Tree, what: str) -> None:
        #: The example with dicts in the places of dataclasses, arrays in the places of numbers, and sorted keys.
        self.row = _plain(example, what)
        self._example = example
        self._what = what
        self._collect = _collector(self.row)

    @staticmethod
    def of_batch(batch: Tree, what: str) -> Layout:
        """Returns the layout of the rows of a tree of arrays `[n, ...]`, where n may be 0.

        Raises:
            TypeError: as the constructor does.
            ValueError: if an array has no rows.
        """
        plain = _plain(batch, what)
        for path, leaf in tree_paths(plain):
            if leaf.ndim < 1:
                raise ValueError(f"{what}{path} is a single number, expected an array [n, ...] with a row per request")
        return Layout(tree_map(lambda leaf: np.zeros(leaf.shape[1:], leaf.dtype), plain), what)

    def leaves(self, tree: Tree, n: int | None = None) -> Leaves:
        """Returns the arrays of a tree.

        Args:
            tree: one request or result; its numbers become arrays.
            n: the tree is a batch of so many: arrays `[n, ...]`.

        Raises:
            TypeError: if there is anything else than arrays and numbers in it.
            ValueError: if it has another structure, dtype or shape than declared; nothing is cast or broadcast.
        """
        found: Leaves = []
        if not self._collect(tree, () if n is None else (n,), found):
            raise ValueError(self._difference(_plain(tree, self._what), n))
        return found

    def tree(self, leaves: Sequence[Any]) -> Tree:
        """Returns a tree with the dataclasses of the example, and these arrays."""
        return _built(self.row, self._example, iter(leaves))

    def trees(self, leaves: Sequence[np.ndarray], n: int) -> list[Tree]:
        """Returns a tree for each of the n rows of these arrays `[n, ...]`, of views where rows are arrays."""
        return _rows(self.row, self._example, iter(leaves), n)

    def stacked(self, trees: Sequence[Leaves], n: int) -> Leaves:
        """Returns the n rows of several trees, of single ones or batches, as new arrays `[n, ...]`."""
        columns = zip(tree_leaves(self.row), zip(*trees, strict=True), strict=True)
        return [
            np.concatenate([leaf.reshape(-1) for leaf in column]).reshape(n, *of_row.shape)
            for of_row, column in columns
        ]

    def plain(self, leaves: Sequence[Any]) -> Tree:
        """Returns a tree of dicts and tuples with these arrays."""
        return _built(self.row, self.row, iter(leaves))

    def empty(self) -> Tree:
        """Returns arrays `[0, ...]`, which say in a message what the layout is."""
        return tree_map(lambda leaf: np.empty((0, *leaf.shape), leaf.dtype), self.row)

    def _difference(self, tree: Tree, n: int | None) -> str:
        rows = "" if n is None else f", with {n} rows, one per request"
        leading = () if n is None else (n,)
        expected = {path: _shown(leaf.dtype, (*leading, *leaf.shape)) for path, leaf in tree_paths(self.row)}
        found = {path: _shown(leaf.dtype, leaf.shape) for path, leaf in tree_paths(tree)}
        for path, description in expected.items():
            what = found.get(path, "missing")
            if what != description:
                return f"{self._what}{path} is {what}, expected {description} as declared by the first one{rows}"
        for path, what in found.items():
            if path not in expected:
                return f"{self._what}{path} is {what}, which the first one did not have"
        return f"{self._what} is nested in another way than the first one: {[*found]}"


def copied(tree: Tree) -> Tree:
    """Returns a tree with copies of the arrays."""
    return tree_map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)


def _plain(tree: Tree, path: str) -> Tree:
    if isinstance(tree, np.ndarray):
        if tree.dtype.kind not in "biufc":
            raise TypeError(f"{path} is an array of {tree.dtype}, expected numbers or booleans")
        return tree
    if tree is None:
        return None
    if isinstance(tree, dict):
        if not all(isinstance(key, str) for key in tree):
            raise TypeError(f"{path} has the keys {[*tree]}, expected strings")
        return {key: _plain(tree[key], f"{path}[{key!r}]") for key in sorted(tree)}
    if isinstance(tree, tuple):
        return tuple([_plain(value, f"{path}[{index}]") for index, value in enumerate(tree)])
    names = getattr(type(tree), "__dataclass_fields__", None)
    if names is not None:
        return {name: _plain(getattr(tree, name), f"{path}.{name}") for name in sorted(names)}
    if isinstance(tree, bool | int | float | complex | np.generic):
        return _plain(np.asarray(tree), path)
    raise TypeError(
        f"{path} is a {type(tree).__name__}, expected an array, a number, None, or a dict, tuple or dataclass of them "
        "(of a tensor: tensor.numpy())"
    )


def _collector(row: Tree) -> _Collector:
    """Returns what collects the arrays of trees like `row`. It runs once per request, so nothing is looked up twice."""
    if isinstance(row, np.ndarray):
        return _array_collector(row.dtype, row.shape)
    if row is None:
        return lambda tree, leading, found: tree is None
    if isinstance(row, dict):
        return _dict_collector({key: _collector(value) for key, value in row.items()})
    parts = [_collector(value) for value in row]

    def collect(tree: Tree, leading: tuple[int, ...], found: Leaves) -> bool:
        if not isinstance(tree, tuple) or len(tree) != len(parts):
            return False
        return all([of_part(value, leading, found) for of_part, value in zip(parts, tree, strict=True)])

    return collect


def _array_collector(dtype: np.dtype[Any], shape: tuple[int, ...]) -> _Collector:
    def collect(tree: Tree, leading: tuple[int, ...], found: Leaves) -> bool:
        if not isinstance(tree, np.ndarray):
            if not isinstance(tree, _NUMBERS):
                return False
            tree = np.asarray(tree)
        found.append(tree)
        return bool(tree.dtype == dtype and tree.shape == (leading + shape if leading else shape))

    return collect


def _dict_collector(parts: dict[str, _Collector]) -> _Collector:
    items = [*parts.items()]

    def collect(tree: Tree, leading: tuple[int, ...], found: Leaves) -> bool:
        if not isinstance(tree, dict):
            tree = {name: getattr(tree, name) for name in getattr(type(tree), "__dataclass_fields__", ())}
        if tree.keys() != parts.keys():
            return False
        return all([of_part(tree[key], leading, found) for key, of_part in items])

    return collect


def _built(row: Tree, example: Tree, leaves: Iterator[Any]) -> Tree:
    if isinstance(row, dict):
        if isinstance(example, dict):
            return {key: _built(value, example[key], leaves) for key, value in row.items()}
        return type(example)(**{key: _built(value, getattr(example, key), leaves) for key, value in row.items()})
    if isinstance(row, tuple):
        return tuple([_built(value, other, leaves) for value, other in zip(row, example, strict=True)])
    return None if row is None else next(leaves)


def _rows(row: Tree, example: Tree, leaves: Iterator[np.ndarray], n: int) -> list[Tree]:
    """Returns a tree for each row, a level at a time, which is faster than a row at a time."""
    if row is None:
        return [None] * n
    if isinstance(row, np.ndarray):
        return [*next(leaves)]
    if isinstance(row, tuple):
        parts = [_rows(value, other, leaves, n) for value, other in zip(row, example, strict=True)]
        return [*zip(*parts, strict=True)] if parts else [()] * n
    of_dict = isinstance(example, dict)
    columns = [
        _rows(value, example[key] if of_dict else getattr(example, key), leaves, n) for key, value in row.items()
    ]
    found = (
        [dict(zip(row, values, strict=True)) for values in zip(*columns, strict=True)]
        if columns
        else [{} for _ in range(n)]
    )
    return found if of_dict else [type(example)(**fields) for fields in found]


def _shown(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"
