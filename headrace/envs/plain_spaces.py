"""Spaces as plain data (numbers, strings, lists and arrays), so that they can be stored in files, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

__all__ = ["plain_space", "space_of"]

#: Maximum number of numbers in one element of a space. Bounds hold two arrays of them, and a file of a few bytes could
#: otherwise request more memory than there is.
_MOST_NUMBERS = 2**24


def plain_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """Returns a space as plain data, with bounds exact to the bit.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them.

    Raises:
        TypeError: any other space.
    """
    match space:
        case spaces.Dict():
            return {"kind": "Dict", "spaces": [[key, plain_space(child)] for key, child in space.spaces.items()]}
        case spaces.Tuple():
            return {"kind": "Tuple", "spaces": [plain_space(child) for child in space.spaces]}
        case spaces.Box():
            low, high = _array(space.low), _array(space.high)
            return {"kind": "Box", "low": low, "high": high, "shape": list(space.shape), "dtype": space.dtype.str}
        case spaces.Discrete():
            return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": space.dtype.str}
        case spaces.MultiDiscrete():
            nvec, start = _array(space.nvec), _array(space.start)
            return {
                "kind": "MultiDiscrete",
                "nvec": nvec,
                "start": start,
                "shape": list(space.shape),
                "dtype": space.dtype.str,
            }
        case spaces.MultiBinary():
            return {"kind": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    raise TypeError(f"{type(space).__name__} spaces cannot be saved as plain data: {space}")


def space_of(plain: dict[str, Any]) -> spaces.Space[Any]:
    """Returns the space for plain data; the inverse of `plain_space`.

    The data may be forged, so nothing is allocated for a space of more than 2**24 numbers.

    Args:
        plain: what `plain_space` returned.

    Raises:
        ValueError: the space is too large, or the data is not that of a space.
        KeyError: a key is missing.
        TypeError: a value has the wrong type.
    """
    n_numbers = _n_numbers(plain)
    if n_numbers > _MOST_NUMBERS:
        raise ValueError(f"the space has {n_numbers:,} numbers, expected at most {_MOST_NUMBERS:,}")
    return _space_of(plain)


def _n_numbers(plain: dict[str, Any]) -> int:
    match plain["kind"]:
        case "Dict":
            return sum(_n_numbers(child) for _, child in plain["spaces"])
        case "Tuple":
            return sum(map(_n_numbers, plain["spaces"]))
        case "Box" | "MultiDiscrete":
            return math.prod(plain["shape"])
        case "MultiBinary":
            return plain["n"] if isinstance(plain["n"], int) else math.prod(plain["n"])
    return 1


def _space_of(plain: dict[str, Any]) -> spaces.Space[Any]:
    match plain["kind"]:
        case "Dict":
            return spaces.Dict([(key, _space_of(child)) for key, child in plain["spaces"]])
        case "Tuple":
            return spaces.Tuple([_space_of(child) for child in plain["spaces"]])
        case "Box":
            dtype, shape = np.dtype(plain["dtype"]), tuple(plain["shape"])
            low, high = (_restored(plain[name], dtype, shape) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        case "Discrete":
            return spaces.Discrete(plain["n"], start=plain["start"], dtype=np.dtype(plain["dtype"]).type)
        case "MultiDiscrete":
            dtype, shape = np.dtype(plain["dtype"]), tuple(plain["shape"])
            nvec, start = (_restored(plain[name], dtype, shape) for name in ("nvec", "start"))
            return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)
        case "MultiBinary":
            return spaces.MultiBinary(plain["n"] if isinstance(plain["n"], int) else tuple(plain["n"]))
    raise ValueError(f"{plain['kind']!r} is not a kind of space")


def _array(values: np.ndarray) -> np.ndarray:
    """Returns the bytes of an array, uint8 `[n]`; only those of one value if all are equal, as bounds of images are."""
    flat = np.ascontiguousarray(values).reshape(-1)
    raw = flat.view(np.uint8).reshape(len(flat), flat.itemsize)
    return raw[0].copy() if len(raw) and (raw == raw[0]).all() else raw.reshape(-1).copy()


def _restored(raw: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    if math.prod(raw.shape) > dtype.itemsize * math.prod(shape):  # a view of one byte may have any size
        raise ValueError(f"the values of a space have {list(raw.shape)} bytes, too many for the shape {list(shape)}")
    values = np.asarray(raw, np.uint8).view(dtype)
    return np.full(shape, values[0], dtype) if values.size == 1 else values.reshape(shape).copy()
