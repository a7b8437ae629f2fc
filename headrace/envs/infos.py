"""Info dicts of environments: copies of them, and their recorded fields."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import numpy as np

from headrace.envs.spaces import Mismatch, unmasked

__all__ = ["EVERY_STEP", "info_copy", "info_value", "missing"]

#: What is expected of a declared key that is missing.
EVERY_STEP = "a value at every step, as of all keys of env_info_keys"

_KIND_ORDER = "buif"  # a kind may be recorded as a later one: booleans as numbers, whole numbers as floats


def info_value(came: Any, key: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Returns a declared info field in its dtype.

    Args:
        came: the value in the info dict.
        key: name of the field.
        dtype: the declared dtype.
        shape: the declared shape.

    Raises:
        Mismatch: the shape or the kind of dtype does not fit, or a whole number would be truncated.
    """
    expected = f"{dtype} {list(shape)}"
    path = f"info[{key!r}]"
    value = unmasked(came, path, expected)
    fits = value.dtype.kind in _KIND_ORDER and max(_KIND_ORDER.find(value.dtype.kind), 1) <= max(
        _KIND_ORDER.find("i" if dtype.kind == "u" else dtype.kind), 1
    )
    if value.shape != shape or not (fits or value.dtype == dtype):
        raise Mismatch(path, f"{value.dtype} {list(value.shape)}", expected)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = value.astype(dtype)
    if dtype.kind in "bui" and (cast != value).any():
        raise Mismatch(path, str(came), f"a number that fits {expected}")
    return cast


def missing(key: str, info: Any, expected: str) -> Mismatch:
    """Returns the error for a key that an info dict does not have.

    Args:
        key: the key.
        info: the dict, or what came in its place.
        expected: what the value should be.
    """
    if not isinstance(info, dict):
        said = f"info is a {type(info).__name__}, not a dict"
    elif info:
        said = f"the info dict has only {', '.join(map(repr, sorted(map(str, info))))}"
    else:
        said = "the info dict is empty"
    return Mismatch(f"info[{key!r}]", f"nothing ({said})", expected)


def info_copy(value: Any) -> Any:
    """Returns a snapshot of an info dict: containers and arrays are copied at every depth, other objects are shared.

    Copying a simulator, a window or a lock would have side effects.
    """
    return _copied(value, {})


def _copied(value: Any, made: dict[int, Any]) -> Any:
    """Copies a value. made: copies so far by id of the original: a value may occur twice or contain itself."""
    if id(value) in made:
        return made[id(value)]
    new: Any
    match value:
        case dict():
            new = made[id(value)] = copy.copy(value)
            for key, part in value.items():
                new[key] = _copied(part, made)
        case list() | deque():
            new = made[id(value)] = copy.copy(value)
            for index, part in enumerate(value):
                new[index] = _copied(part, made)
        case tuple():
            parts = [_copied(part, made) for part in value]
            if all(map(_is, parts, value)):
                return value
            new = made[id(value)] = tuple.__new__(type(value), parts)  # works for named tuples, too
        case np.ndarray():
            new = made[id(value)] = value.copy()
            if value.dtype == np.object_ and value.ndim:
                for place in np.ndindex(value.shape):
                    new[place] = _copied(value[place], made)
        case set() | bytearray():
            new = made[id(value)] = copy.copy(value)
        case _:
            return value
    return new


def _is(first: Any, second: Any) -> bool:
    return first is second
