"""Info dicts of environments: copies of them, and their recorded fields."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import numpy as np

from headrace.envs.spaces import Mismatch, unmasked

__all__ = ["EVERY_STEP", "InfoField", "info_copy", "missing"]

#: What is expected of a declared key that is missing.
EVERY_STEP = "a value at every step, as of all keys of env_info_keys"

_KIND_ORDER = "buif"  # a kind may be recorded as a later one: booleans as numbers, whole numbers as floats
_EXACT = 2**53  # whole numbers up to this one are floats, too
_WHOLE = (int, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
_TRUTHS = (bool, np.bool_)
#: Types of values that cannot change, so that a copy of an info dict may share them.
_UNCHANGING = frozenset((float, str, bytes, type(None), np.float16, np.float32, np.float64, *_WHOLE, *_TRUTHS))


class InfoField:
    """A declared field of info dicts.

    Args:
        key: its name.
        dtype: the dtype in which it is recorded.
        shape: its shape, with a leading axis for all environments of a vector environment.
    """

    def __init__(self, key: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.key, self.dtype, self.shape = key, dtype, shape
        self._path = f"info[{key!r}]"
        self._expected = f"{dtype} {list(shape)}"  # here, because describing a dtype takes 4 µs
        #: Types of numbers that are recorded as they are, and of those that are within limits.
        self._known = frozenset() if shape else frozenset((dtype.type, *_TRUTHS))
        self._limits = {} if shape else _limits(dtype)
        self._rank = _rank("i" if dtype.kind == "u" else dtype.kind)

    def write(self, to: np.ndarray, column: int, info: Any) -> None:
        """Records the field of one environment's info dict; 0.2 µs for a number.

        Args:
            to: `[n, *shape]`.
            column: the column to write.
            info: the info dict.

        Raises:
            Mismatch: the field is missing, or see `array`.
        """
        if not isinstance(info, dict) or self.key not in info:
            raise missing(self.key, info, EVERY_STEP)
        value = info[self.key]
        if type(value) in self._known:
            to[column] = value
            return
        limits = self._limits.get(type(value))
        # NaN is not within limits.
        to[column] = value if limits is not None and limits[0] <= value <= limits[1] else self.array(value)

    def array(self, came: Any) -> np.ndarray:
        """Returns a value as an array of the field's dtype and shape, perhaps the same array.

        Raises:
            Mismatch: the shape or the kind of dtype does not fit, or a whole number would be truncated.
        """
        dtype = self.dtype
        if type(came) is np.ndarray and came.dtype == dtype and came.shape == self.shape:
            return came
        value = unmasked(came, self._path, self._expected)
        fits = value.dtype.kind in _KIND_ORDER and _rank(value.dtype.kind) <= self._rank
        if value.shape != self.shape or not (fits or value.dtype == dtype):
            raise Mismatch(self._path, f"{value.dtype} {list(value.shape)}", self._expected)
        if value.dtype == dtype:
            return value
        with np.errstate(over="ignore", invalid="ignore"):
            cast = value.astype(dtype)
        if dtype.kind in "bui" and (cast != value).any():
            raise Mismatch(self._path, str(came), f"a number that fits {self._expected}")
        return cast


def _rank(kind: str) -> int:
    """Returns the place of a kind of dtype in the order of kinds; booleans and unsigned numbers share one."""
    return max(_KIND_ORDER.find(kind), 1)


def _limits(dtype: np.dtype[Any]) -> dict[type, tuple[float, float]]:
    """Returns, by type of a number, between which limits NumPy records it in this dtype as it is."""
    match dtype.kind:
        case "f" if dtype.itemsize <= 8:
            most = float(np.finfo(dtype).max)
            # Not `numpy.float32` and `float16`: NumPy would compare them with limits of that type.
            floats = {float: (-most, most), np.float64: (-most, most)}
            exact = min(_EXACT, int(most))
            return floats | dict.fromkeys(_WHOLE, (-exact, exact))
        case "i" | "u":
            return dict.fromkeys(_WHOLE, (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)))
    return {}


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
            new = made[id(value)] = value.copy() if type(value) is dict else copy.copy(value)
            for key, part in value.items():
                if type(part) not in _UNCHANGING:
                    new[key] = _copied(part, made)
        case list() | deque():
            new = made[id(value)] = copy.copy(value)
            for index, part in enumerate(value):
                if type(part) not in _UNCHANGING:
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
