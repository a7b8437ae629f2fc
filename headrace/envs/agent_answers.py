"""Checks what agents return before it is written into the arrays of a batch: nothing is broadcast or truncated."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from headrace.envs.spaces import Mismatch, described, null_value
from headrace.types import Tree

__all__ = ["AS_AT_FIRST", "AnswerWriter", "action_writer", "answer_writer"]

#: Writes a tree of tensors `[n, ...]` into a tree of arrays; raises Mismatch if one does not fit.
AnswerWriter = Callable[[Tree, Tree], None]

AS_AT_FIRST = "one entry per environment, as in the first answer"

#: For fewer numbers than this, Python's own minimum and maximum are faster than one NumPy call.
_MIN_NUMPY_SIZE = 64

#: The kinds of dtypes that each kind can hold without loss; integers are also checked for range.
_HELD_BY = {"b": "b", "i": "iub", "u": "iub", "f": "fiub"}


def answer_writer(example: Tree, path: str, of_leaf: Callable[[Any, str], AnswerWriter] | None = None) -> AnswerWriter:
    """Returns the writer of trees like `example`.

    Trees are matched by the names of their parts: two dicts with the same keys may have them in different order.

    Args:
        example: a tree of the arrays that will be written to.
        path: name of the tree for error messages.
        of_leaf: makes the writer of a leaf from the leaf and its path; None: writers of arrays of any numbers.
    """
    of_leaf = of_leaf or _array_writer
    fields = getattr(type(example), "__dataclass_fields__", None)
    if example is None:
        return _nothing_writer(path)
    if isinstance(example, dict):
        keyed = {key: answer_writer(part, f"{path}[{key!r}]", of_leaf) for key, part in example.items()}
        return _dict_writer(keyed, path)
    if isinstance(example, tuple):
        return _tuple_writer([answer_writer(part, f"{path}[{i}]", of_leaf) for i, part in enumerate(example)], path)
    if fields is not None:
        named = [(name, answer_writer(getattr(example, name), f"{path}.{name}", of_leaf)) for name in fields]
        return _fields_writer(type(example), named, path)
    return of_leaf(example, path)


def action_writer(space: spaces.Space[Any]) -> AnswerWriter:
    """Returns the writer of recorded actions: integers within their range, finite numbers in a Box."""
    return answer_writer(_tree_of(space), "action", _action_writer)


def _tree_of(space: spaces.Space[Any]) -> Tree:
    match space:
        case spaces.Dict():
            return {key: _tree_of(child) for key, child in space.spaces.items()}
        case spaces.Tuple():
            return tuple(_tree_of(child) for child in space.spaces)
    return space


def _nothing_writer(path: str) -> AnswerWriter:
    def write(to: Tree, value: Tree) -> None:
        if value is not None:
            raise Mismatch(path, described(value), "None, as in the first answer")

    return write


def _dict_writer(parts: dict[Any, AnswerWriter], path: str) -> AnswerWriter:
    def write(to: Tree, value: Tree) -> None:
        if not isinstance(value, dict) or value.keys() != parts.keys():
            raise Mismatch(path, described(value), f"a dict with the keys {sorted(map(str, parts))}")
        for key, part in parts.items():
            part(to[key], value[key])

    return write


def _tuple_writer(parts: list[AnswerWriter], path: str) -> AnswerWriter:
    def write(to: Tree, value: Tree) -> None:
        if not isinstance(value, tuple) or len(value) != len(parts):
            raise Mismatch(path, described(value), f"a tuple of {len(parts)}")
        for part, own, came in zip(parts, to, value, strict=True):
            part(own, came)

    return write


def _fields_writer(cls: type, parts: list[tuple[str, AnswerWriter]], path: str) -> AnswerWriter:
    def write(to: Tree, value: Tree) -> None:
        if type(value) is not cls:
            raise Mismatch(path, described(value), f"a {cls.__name__}, as in the first answer")
        for name, part in parts:
            part(getattr(to, name), getattr(value, name))

    return write


class _Values(NamedTuple):
    """The permitted numbers. each: which numbers of an array are; quickly: a faster check, True only if all of them
    are.
    """

    words: str
    each: Callable[[np.ndarray], np.ndarray] | None = None
    quickly: Callable[[np.ndarray], bool] | None = None


def _leaf_writer(dtype: np.dtype[Any], path: str, values: _Values) -> AnswerWriter:
    kinds = _HELD_BY[dtype.kind]
    words, each, quickly = values

    def refuse(to: np.ndarray, came: str, row: int | None = None) -> Mismatch:
        return Mismatch(path, came, f"{words}, {dtype} {list(to.shape)}", row)

    def require(right: np.ndarray, to: np.ndarray, array: np.ndarray) -> None:
        if not right.all():
            place = tuple(np.argwhere(~right)[0])
            raise refuse(to, str(array[place]), int(place[0]))

    def write(to: np.ndarray, value: Any) -> None:
        try:
            array = value.numpy(force=True)
        except Exception:
            came, expected = f"a {type(value).__name__}", f"a tensor of a dtype that NumPy supports: {words}"
            raise Mismatch(path, came, f"{expected}, {dtype} {list(to.shape)}") from None
        if array.shape != to.shape or (array.dtype is not dtype and array.dtype.kind not in kinds):
            raise refuse(to, described(array))
        if array.dtype is dtype:
            to[...] = array
        else:
            with np.errstate(over="ignore"):  # overflow gives infinity, which a Box refuses
                to[...] = array
            if dtype.kind in "iu":
                require(to == array, to, array)
        if each is not None and (quickly is None or not quickly(to)):
            require(each(to), to, array)

    return write


def _surely_finite(array: np.ndarray) -> bool:
    """Returns whether all numbers are finite and none is very large: one call instead of `isfinite` and `all`."""
    return isfinite(np.vdot(array, array))


def _array_writer(example: np.ndarray, path: str) -> AnswerWriter:
    return _leaf_writer(example.dtype, path, _Values(AS_AT_FIRST))


def _action_writer(space: spaces.Space[Any], path: str) -> AnswerWriter:
    return _leaf_writer(null_value(space).dtype, path, _action_values(space))


def _action_values(space: spaces.Space[Any]) -> _Values:
    match space:
        case spaces.Discrete():
            n = int(space.n)

            def all_indices(array: np.ndarray) -> bool:
                if array.size > _MIN_NUMPY_SIZE:
                    return bool(array.view(np.uint64).max() < n)  # negative ones are huge: checks both ends
                values: list[int] = array.tolist()
                return min(values) >= 0 and max(values) < n

            after = f" (the sampler adds the start of the space, {space.start})" if space.start else ""
            return _Values(f"indices in [0, {n}){after}", lambda array: (array >= 0) & (array < n), all_indices)
        case spaces.MultiDiscrete():
            nvec = space.nvec
            after = f" (the sampler adds the start of the space, {space.start})" if space.start.any() else ""
            words = f"indices below {' '.join(str(nvec).split())}{after}"
            return _Values(words, lambda array: (array >= 0) & (array < nvec))
        case spaces.MultiBinary():
            return _Values("zeros and ones", lambda array: (array == 0) | (array == 1))
        case spaces.Box() if space.dtype.kind == "f":
            return _Values("finite numbers", np.isfinite, _surely_finite)
        case spaces.Box():
            return _Values("whole numbers")
    raise AssertionError(space)  # `null_value` refused it
