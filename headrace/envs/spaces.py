"""Operations on Gymnasium spaces: null values, recording of observations, conversion of actions.

Supports Box, Discrete (with `start`), MultiDiscrete (with `start`), MultiBinary, and Dict and Tuple of them, nested to
any depth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from headrace.errors import EnvContractError
from headrace.types import Tree

__all__ = [
    "Mismatch",
    "ObservationWriter",
    "OnCast",
    "action_decoder",
    "array_in",
    "cast_note",
    "described",
    "encoded_action",
    "fitted",
    "is_text",
    "limits",
    "null_value",
    "observation_writer",
    "unmasked",
    "vector_action_decoder",
]

#: Writes one observation into column `b` of a tree of `[n, ...]`; raises `Mismatch` if it does not fit the space.
ObservationWriter = Callable[[Tree, int, Any], None]


#: Called with (path, what came, dtype) for a value that was cast without loss.
OnCast = Callable[[str, Any, Any], None]


class Mismatch(Exception):
    """A returned value does not fit; callers that have the context turn this into an error.

    Raised for what environments and agents return.

    Args:
        path: the place in the returned value; empty for all of it.
        came: what was there, in words.
        expected: what should be there, in words.
        column: index of the column in the batch, if one is to blame.
    """

    def __init__(self, path: str, came: str, expected: str, column: int | None = None) -> None:
        super().__init__(path, came, expected, column)
        self.path, self.came, self.expected, self.column = path, came, expected, column

    def __str__(self) -> str:
        return f"{self.path and self.path + ' = '}{self.came}, expected {self.expected}"


def null_value(space: spaces.Space[Any], path: str = "space") -> Tree:
    """Returns zeros for one element of `space`: a tree of arrays `[...]`, Dict as dict and Tuple as tuple.

    Raises EnvContractError, in which the space is called `path`, if the space has no fixed shape.
    """
    match space:
        case spaces.Dict():
            return {key: null_value(child, f"{path}[{key!r}]") for key, child in space.spaces.items()}
        case spaces.Tuple():
            return tuple(null_value(child, f"{path}[{index}]") for index, child in enumerate(space.spaces))
        case spaces.Discrete():
            return np.zeros((), np.int64)
        case spaces.Box() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return np.zeros(space.shape, space.dtype)
    raise _refused(space, path)


def _refused(space: spaces.Space[Any], path: str) -> EnvContractError:
    return EnvContractError(
        f"{path} is {space}: it has no fixed shape, so a batch cannot hold it; {_remedy(space, path)}"
    )


def is_text(space: spaces.Space[Any]) -> bool:
    """Returns whether the elements of a space are strings: Gymnasium's Text and similar spaces of other packages."""
    return space.dtype is not None and space.dtype.kind == "U"


def _remedy(space: spaces.Space[Any], path: str) -> str:
    """Returns the remedy for a space without a fixed shape."""
    keys = re.findall(r"\[(?:'(.*?)'|(\d+))\]", path)
    if path.startswith("observation") and (is_text(space) or isinstance(space, spaces.Sequence)):
        place = ".".join(key or index for key, index in keys)
        of = "characters" if is_text(space) else "elements"
        return (
            f"pass pad={{{place!r}: n}} to the sampler for at most n {of} (command line: --pad {place}=n); it is then "
            "recorded as an array and a length"
        )
    return (
        "wrap the environment so that it uses Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them "
        f"(gymnasium.wrappers.Transform{'Action' if path.startswith('action') else 'Observation'})"
    )


def limits(space: spaces.Space[Any]) -> tuple[Any, Any]:
    """Returns the bounds (low, high), scalars or arrays, of a space other than Dict or Tuple; both inclusive."""
    match space:
        case spaces.Box():
            return space.low, space.high
        case spaces.Discrete():
            return space.start, space.start + space.n - 1
        case spaces.MultiDiscrete():
            return space.start, space.start + space.nvec - 1
    return 0, 1


def observation_writer(space: spaces.Space[Any], on_cast: OnCast, path: str = "observation") -> ObservationWriter:
    """Returns the function that records observations of `space`; nothing is broadcast.

    Shapes must be exactly the space's. Numbers of another dtype and lists of numbers are cast if nothing is lost.
    Rounding float64 to float32 is allowed, because many classic environments need it.

    Args:
        space: the observation space.
        on_cast: called for each cast.
        path: name of the observation for error messages.
    """
    match space:
        case spaces.Dict():
            return _dict_writer(space, on_cast, path)
        case spaces.Tuple():
            return _tuple_writer(space, on_cast, path)
        case spaces.Discrete():
            return _discrete_writer(space, path)
        case spaces.Box() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return _array_writer(space, on_cast, path)
    raise _refused(space, path)


def _array_writer(space: spaces.Space[Any], on_cast: OnCast, path: str) -> ObservationWriter:
    shape, dtype = space.shape, space.dtype
    assert shape is not None  # Box, MultiDiscrete and MultiBinary have both
    assert dtype is not None

    def write(to: np.ndarray, b: int, observation: Any) -> None:
        # The shape and dtype of a subclass of ndarray cannot be trusted.
        if type(observation) is not ndarray or observation.shape != shape or observation.dtype is not dtype:
            observation = fitted(observation, space, shape, on_cast, path)
        to[b] = observation

    return write


def fitted(value: Any, space: spaces.Space[Any], shape: tuple[int, ...], on_cast: OnCast, path: str) -> np.ndarray:
    """Returns `value` as an array of this shape and of the dtype of a Box, MultiDiscrete or MultiBinary.

    An array of another dtype or a list of numbers is cast if this changes no number, and `on_cast` is called. Floats
    may be rounded to float32, but not to a shorter type.

    Args:
        value: what was returned.
        space: the space.
        shape: the shape, with a leading axis for vector environments.
        on_cast: called for each cast.
        path: name of the value for error messages.

    Raises:
        Mismatch: the shape differs or the cast would lose something.
    """
    dtype = space.dtype
    assert dtype is not None
    listed, expected = _is_numbers(value), f"a numpy array of {dtype} {list(shape)}"
    array = array_in(value, path, expected)
    if array.shape != shape:
        came, expected = (value, expected) if listed else (array, f"shape {list(shape)}")
        raise Mismatch(path, described(came), expected)
    if listed or array.dtype != dtype:
        cast = _cast_without_loss(array, space, path)
        on_cast(path, type(value).__name__ if listed else array.dtype, dtype)
        return cast
    return array


def _cast_without_loss(array: np.ndarray, space: spaces.Space[Any], path: str) -> np.ndarray:
    dtype = space.dtype
    assert dtype is not None
    if array.dtype.kind not in "biuf":
        raise Mismatch(path, described(array), f"dtype {dtype}")
    convert = (
        f"dtype {dtype}; to round or to scale, use gymnasium.wrappers.TransformObservation(env, lambda observation: "
        f"observation.astype(np.{dtype}), env.observation_space)"
    )
    if array.dtype.kind == "f" and dtype.kind != "f" and isinstance(space, spaces.Box):
        # Floats where integers are expected mean that scaling was forgotten, also if the values happen to be 0.0.
        raise Mismatch(path, described(array), convert)
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if array.dtype.kind == dtype.kind == "f" and dtype.itemsize >= 4:
            return cast
        lost = (cast != array) | (cast.astype(array.dtype) != array)  # both: NumPy compares int64 and float64 rounded
    if lost.any():
        raise Mismatch(path, f"{array[lost][0]} in {described(array)}", convert)
    return cast


def cast_note(name: str, path: str, came: Any, dtype: Any) -> str:
    """Returns the log message about a cast, which is logged once."""
    return f"{name}: {path} is {came}, expected {dtype}; it is cast"


def _is_numbers(value: Any) -> bool:
    """Returns whether a value is a Python number, list or tuple; `numpy.float64`, which is a `float`, is not."""
    return isinstance(value, list | tuple | int | float) and not isinstance(value, np.generic)


def array_in(value: Any, path: str, expected: str) -> np.ndarray:
    """Returns a list of numbers, a subclass of ndarray, a NumPy scalar or an array-like as a plain array.

    An array-like, such as LazyFrames, has an `__array__` and a NumPy `dtype`. Raises Mismatch for other values
    and for masked arrays.
    """
    known = _is_numbers(value) or isinstance(value, np.ndarray | np.generic)
    if not known and not isinstance(getattr(value, "dtype", None), np.dtype):
        raise Mismatch(path, described(value), expected)
    array = unmasked(value, path, expected)
    if _is_numbers(value) and array.dtype.kind not in "biuf":
        raise Mismatch(path, described(value), expected)
    return array


def unmasked(value: Any, path: str, expected: str) -> np.ndarray:
    """Returns `numpy.asarray(value)`.

    Raises Mismatch for lists of different lengths and for masked arrays, whose values under the mask `asarray` would
    take for numbers.
    """
    try:
        array = np.asanyarray(value)
    except ValueError:
        if not isinstance(value, list | tuple):  # then the error comes from the object's own `__array__`
            raise
        raise Mismatch(path, described(value), expected) from None
    if isinstance(array, np.ma.MaskedArray):
        came = f"a masked array of {array.dtype} {list(array.shape)}"
        raise Mismatch(path, came, "an array without a mask; array.filled(value) replaces the masked entries")
    return np.asarray(array)


def _discrete_writer(space: spaces.Discrete, path: str) -> ObservationWriter:
    low, high = int(space.start), int(space.start + space.n)

    def write(to: np.ndarray, b: int, observation: Any) -> None:
        try:
            value = index(observation)  # a plain int, however the observation's class defines comparison
        except TypeError:
            raise Mismatch(path, described(observation), f"an integer in [{low}, {high})") from None
        if not low <= value < high or isinstance(observation, np.ma.MaskedArray):
            raise Mismatch(path, described(observation), f"an integer in [{low}, {high})")
        to[b] = value

    return write


def _dict_writer(space: spaces.Dict, on_cast: OnCast, path: str) -> ObservationWriter:
    writers = {key: observation_writer(child, on_cast, f"{path}[{key!r}]") for key, child in space.spaces.items()}

    def write(to: dict[str, Tree], b: int, observation: Any) -> None:
        if not isinstance(observation, dict) or observation.keys() != writers.keys():
            raise Mismatch(path, described(observation), f"a dict with the keys {sorted(writers)}")
        for key, writer in writers.items():
            writer(to[key], b, observation[key])

    return write


def _tuple_writer(space: spaces.Tuple[Any], on_cast: OnCast, path: str) -> ObservationWriter:
    writers = [observation_writer(child, on_cast, f"{path}[{index}]") for index, child in enumerate(space.spaces)]

    def write(to: tuple[Tree, ...], b: int, observation: Any) -> None:
        listed = not isinstance(observation, tuple)
        if listed and not (isinstance(observation, list) or (isinstance(observation, ndarray) and observation.ndim)):
            raise Mismatch(path, described(observation), f"a tuple of {len(writers)}")
        if len(observation) != len(writers):
            raise Mismatch(path, described(observation), f"a tuple of {len(writers)}")
        if listed:
            on_cast(path, type(observation).__name__, "tuple")
        for part, writer, value in zip(to, writers, observation, strict=True):
            writer(part, b, value)

    return write


def described(value: Any) -> str:
    """Describes a value in words, never in full: it may be an image."""
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        return f"dict with the keys {sorted(map(str, value))}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def action_decoder(space: spaces.Space[Any], path: str = "action") -> Callable[[Tree], Sequence[Any]]:
    """Returns the function that turns recorded actions, a tree of `[n, ...]`, into copies for `n` environments.

    Recorded discrete actions are indices from 0, so `start` is added. Recorded Box actions are those of the agent, so
    they are clipped for the environment.

    Args:
        space: the action space.
        path: name of the action for error messages.
    """
    match space:
        case spaces.Dict():
            decoders = {key: action_decoder(child, f"{path}[{key!r}]") for key, child in space.spaces.items()}

            def decode_dict(actions: dict[str, Tree]) -> Sequence[Any]:
                columns = [decoder(actions[key]) for key, decoder in decoders.items()]
                return [dict(zip(decoders, values, strict=True)) for values in zip(*columns, strict=True)]

            return decode_dict
        case spaces.Tuple():
            children = [action_decoder(child, f"{path}[{index}]") for index, child in enumerate(space.spaces)]

            def decode_tuple(actions: tuple[Tree, ...]) -> Sequence[Any]:
                return list(zip(*(child(column) for child, column in zip(children, actions, strict=True)), strict=True))

            return decode_tuple
        case spaces.Discrete() if space.start == 0 and space.dtype == np.int64:
            return list  # iterating gives scalars, which are copies
    decode = vector_action_decoder(space, path)
    if isinstance(space, spaces.Box) and space.shape == ():
        # Iterating a vector gives scalars, and the space contains 0-d arrays.
        return lambda actions: [np.asarray(action) for action in decode(actions)]
    # NumPy integers of the space's dtype, as `space.sample()` returns: Gymnasium checks them faster than ints.
    return lambda actions: list(decode(actions))


def vector_action_decoder(space: spaces.Space[Any], path: str = "action") -> Callable[[Tree], Tree]:
    """Returns the same as `action_decoder` for a vector environment: one tree of `[n, ...]`, in memory of its own."""
    match space:
        case spaces.Dict():
            decoders = {key: vector_action_decoder(child, f"{path}[{key!r}]") for key, child in space.spaces.items()}
            return lambda actions: {key: decoder(actions[key]) for key, decoder in decoders.items()}
        case spaces.Tuple():
            children = [vector_action_decoder(child, f"{path}[{index}]") for index, child in enumerate(space.spaces)]
            return lambda actions: tuple(child(column) for child, column in zip(children, actions, strict=True))
        case spaces.Discrete():
            start, dtype = int(space.start), space.dtype
            if start == 0 and dtype == np.int64:
                return lambda actions: actions.copy()
            return lambda actions: (actions + start).astype(dtype)
        case spaces.MultiDiscrete():
            offset = np.asarray(space.start, space.dtype)
            return lambda actions: actions + offset
        case spaces.Box():
            low, high = space.low, space.high
            return lambda actions: np.clip(actions, low, high)
        case spaces.MultiBinary():
            return lambda actions: actions.copy()
    raise _refused(space, path)


def encoded_action(space: spaces.Space[Any], action: Any) -> Tree:
    """Converts one action of an environment to its recorded form, as a copy; the inverse of `action_decoder`."""
    match space:
        case spaces.Dict():
            return {key: encoded_action(child, action[key]) for key, child in space.spaces.items()}
        case spaces.Tuple():
            return tuple(encoded_action(child, value) for child, value in zip(space.spaces, action, strict=True))
        case spaces.Discrete() | spaces.MultiDiscrete():
            return np.asarray(action - space.start)
    return np.array(action)
