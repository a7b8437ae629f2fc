"""What headrace needs to know of Gymnasium spaces: null values, recording observations, handing over actions.

Box, Discrete (with `start`), MultiDiscrete (with `start`), MultiBinary, and Dict and Tuple of them, to any depth.
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
from headrace.types import ACTION_MASK, Tree

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
    "random_action",
    "unmasked",
    "vector_action_decoder",
]

#: Writes one observation into row `b` of a tree of `[n, ...]`; raises `Mismatch` when it is not what the space says.
ObservationWriter = Callable[[Tree, int, Any], None]


#: Told (path, what came, dtype) of what was cast without loss.
OnCast = Callable[[str, Any, Any], None]


class Mismatch(Exception):
    """What an environment or an agent answered is not what was agreed on; who knows which one makes an error of it.

    row: of the batch row, where one is to blame.
    """

    def __init__(self, path: str, came: str, expected: str, row: int | None = None) -> None:
        super().__init__(path, came, expected, row)
        self.path, self.came, self.expected, self.row = path, came, expected, row


def null_value(space: spaces.Space[Any], path: str = "space") -> Tree:
    """Zeros of one element of `space`: a tree of arrays `[...]`, Dict as dict and Tuple as tuple.

    path: what the space is, for the EnvContractError about one without a fixed shape.
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
        f"{path} is {space}: it has no fixed shape, so it cannot be a row of a batch; {_remedy(space, path)}"
    )


def is_text(space: spaces.Space[Any]) -> bool:
    """Whether its elements are strings: Gymnasium's Text, and the like of other packages."""
    return space.dtype is not None and space.dtype.kind == "U"


def _remedy(space: spaces.Space[Any], path: str) -> str:
    """What to do about a space without a fixed shape."""
    keys = re.findall(r"\[(?:'(.*?)'|(\d+))\]", path)
    if path.startswith("observation") and (is_text(space) or isinstance(space, spaces.Sequence)):
        place = ".".join(key or index for key, index in keys)
        of = "characters" if is_text(space) else "elements"
        return (
            f"give the sampler pad={{{place!r}: n}}, n {of} at most (headrace: --pad {place}=n), and it will be an "
            "array and a length"
        )
    return (
        "wrap the environment so that it uses Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them "
        f"(gymnasium.wrappers.Transform{'Action' if path.startswith('action') else 'Observation'})"
    )


def limits(space: spaces.Space[Any]) -> tuple[Any, Any]:
    """The least and the greatest value, of all or of each number, of a space that is no Dict or Tuple."""
    match space:
        case spaces.Box():
            return space.low, space.high
        case spaces.Discrete():
            return space.start, space.start + space.n - 1
        case spaces.MultiDiscrete():
            return space.start, space.start + space.nvec - 1
    return 0, 1


def observation_writer(space: spaces.Space[Any], on_cast: OnCast, path: str = "observation") -> ObservationWriter:
    """The function that records observations of `space`; shapes must be the space's own, nothing is broadcast.

    Numbers of another dtype, and lists of numbers, are cast where nothing is lost (float64 to float32 is rounded: many
    classic environments need it), and `on_cast` is told.
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
        # Only of a plain array shape and dtype can be believed.
        if type(observation) is not ndarray or observation.shape != shape or observation.dtype is not dtype:
            observation = fitted(observation, space, shape, on_cast, path)
        to[b] = observation

    return write


def fitted(value: Any, space: spaces.Space[Any], shape: tuple[int, ...], on_cast: OnCast, path: str) -> np.ndarray:
    """The array of this shape in `value`, as the dtype of a Box, MultiDiscrete or MultiBinary; Mismatch for others.

    An array of another dtype, or a list of numbers, is cast if no number is another one then, and `on_cast` is told.
    Floats may be rounded to float32, but to nothing shorter.
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
        # A fraction in whole numbers is a scale that was forgotten, also where it happens to be 0.0.
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
    """What the log says, once, of what is cast."""
    return f"{name}: {path} arrives as {came} where {dtype} is expected; it is cast"


def _is_numbers(value: Any) -> bool:
    """Whether it is what Python itself has for numbers; `numpy.float64` is a `float`, too."""
    return isinstance(value, list | tuple | int | float) and not isinstance(value, np.generic)


def array_in(value: Any, path: str, expected: str) -> np.ndarray:
    """The plain array in a list of numbers, a subclass of ndarray, a NumPy scalar, or what acts like one (LazyFrames).

    Such an object has an `__array__`, and a `dtype` of NumPy's. Raises Mismatch for others, and for masked arrays.
    """
    known = _is_numbers(value) or isinstance(value, np.ndarray | np.generic)
    if not known and not isinstance(getattr(value, "dtype", None), np.dtype):
        raise Mismatch(path, described(value), expected)
    array = unmasked(value, path, expected)
    if _is_numbers(value) and array.dtype.kind not in "biuf":
        raise Mismatch(path, described(value), expected)
    return array


def unmasked(value: Any, path: str, expected: str) -> np.ndarray:
    """`numpy.asarray(value)`; raises Mismatch for lists of different lengths, and for masked arrays: that would take
    what is under the mask for numbers.
    """
    try:
        array = np.asanyarray(value)
    except ValueError:
        if not isinstance(value, list | tuple):  # then it comes from its own `__array__`
            raise
        raise Mismatch(path, described(value), expected) from None
    if isinstance(array, np.ma.MaskedArray):
        came = f"a masked array of {array.dtype} {list(array.shape)}"
        raise Mismatch(path, came, "an array without a mask: array.filled(value) says what stands where it is masked")
    return np.asarray(array)


def _discrete_writer(space: spaces.Discrete, path: str) -> ObservationWriter:
    low, high = int(space.start), int(space.start + space.n)

    def write(to: np.ndarray, b: int, observation: Any) -> None:
        try:
            value = index(observation)  # a plain int, whatever the class of the observation says of its order
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
        for row, writer, value in zip(to, writers, observation, strict=True):
            writer(row, b, value)

    return write


def described(value: Any) -> str:
    """What came, in words: never the whole value, it may be an image."""
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        return f"dict with the keys {sorted(map(str, value))}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def action_decoder(space: spaces.Space[Any], path: str = "action") -> Callable[[Tree], Sequence[Any]]:
    """The function that turns recorded actions, a tree of `[n, ...]`, into `n` actions for environments: copies.

    Recorded discrete actions are indices from 0, so `start` is added; recorded Box actions are the agent's own, so
    the environment gets them clipped.
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
            return list  # scalars are copies
    decode = vector_action_decoder(space, path)
    if isinstance(space, spaces.Box) and space.shape == ():
        # Rows of a vector would be scalars, and the space holds 0-d arrays.
        return lambda actions: [np.asarray(action) for action in decode(actions)]
    # NumPy integers of the space's dtype, as `space.sample()` gives: Gymnasium checks them faster than ints.
    return lambda actions: list(decode(actions))


def vector_action_decoder(space: spaces.Space[Any], path: str = "action") -> Callable[[Tree], Tree]:
    """The same for a vector environment: one tree of `[n, ...]`, in memory of its own."""
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
    """An environment's action as it is recorded: the inverse of `action_decoder`, for one action. A copy."""
    match space:
        case spaces.Dict():
            return {key: encoded_action(child, action[key]) for key, child in space.spaces.items()}
        case spaces.Tuple():
            return tuple(encoded_action(child, value) for child, value in zip(space.spaces, action, strict=True))
        case spaces.Discrete() | spaces.MultiDiscrete():
            return np.asarray(action - space.start)
    return np.array(action)


def random_action(space: spaces.Space[Any], observation: Tree) -> Any:
    """A random action, one that the observation's mask allows if there is one; see `ACTION_MASK`."""
    if not isinstance(observation, dict) or ACTION_MASK not in observation:
        return space.sample()
    mask = observation[ACTION_MASK].astype(np.int8)
    match space:
        case spaces.Discrete():
            return space.sample(mask)
        case spaces.MultiDiscrete():
            return space.sample(tuple(np.split(mask, np.cumsum(space.nvec)[:-1])))
    return space.sample()
