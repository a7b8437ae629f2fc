"""What headrace needs to know of Gymnasium spaces: null values, recording observations, handing over actions.

Box, Discrete (with `start`), MultiDiscrete (with `start`), MultiBinary, and Dict and Tuple of them, to any depth.
"""

from __future__ import annotations

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
    "action_decoder",
    "array_in",
    "described",
    "encoded_action",
    "null_value",
    "observation_writer",
    "random_action",
    "unmasked",
    "vector_action_decoder",
]

#: Writes one observation into row `b` of a tree of `[n, ...]`; raises `Mismatch` when it is not what the space says.
ObservationWriter = Callable[[Tree, int, Any], None]


class Mismatch(Exception):
    """What an environment or an agent answered is not what was agreed on; who knows which one makes an error of it.

    row: of the batch row, where one is to blame.
    """

    def __init__(self, path: str, came: str, expected: str, row: int | None = None) -> None:
        super().__init__(path, came, expected, row)
        self.path, self.came, self.expected, self.row = path, came, expected, row


def null_value(space: spaces.Space[Any]) -> Tree:
    """Zeros of one element of `space`: a tree of arrays `[...]`, Dict as dict and Tuple as tuple."""
    match space:
        case spaces.Dict():
            return {key: null_value(child) for key, child in space.spaces.items()}
        case spaces.Tuple():
            return tuple(null_value(child) for child in space.spaces)
        case spaces.Discrete():
            return np.zeros((), np.int64)
        case spaces.Box() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return np.zeros(space.shape, space.dtype)
    raise _refused(space)


def _refused(space: spaces.Space[Any]) -> EnvContractError:
    return EnvContractError(
        f"{type(space).__name__} spaces have no fixed shape, so they cannot be rows of a batch: {space}. "
        "Wrap the environment (gymnasium.ObservationWrapper or ActionWrapper) so that it uses Box, Discrete, "
        "MultiDiscrete, MultiBinary, or a Dict or Tuple of them; padding to a maximum length is the usual way."
    )


def observation_writer(space: spaces.Space[Any], on_cast: Callable[[], None], path: str = "") -> ObservationWriter:
    """The function that records observations of `space`; shape and dtype must be the space's own, nothing is broadcast.

    float64 where the space says float32 is cast, and `on_cast` is called: many classic environments do it.
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
    raise _refused(space)


def _array_writer(space: spaces.Space[Any], on_cast: Callable[[], None], path: str) -> ObservationWriter:
    shape, dtype = space.shape, space.dtype
    assert shape is not None  # Box, MultiDiscrete and MultiBinary have both
    assert dtype is not None
    may_cast = dtype == np.float32
    expected = f"a numpy array of {dtype} {list(shape)}"

    def explain(array: np.ndarray) -> None:
        if array.shape != shape:
            raise Mismatch(path, described(array), f"shape {list(shape)}")
        if array.dtype != dtype:
            if not (may_cast and array.dtype == np.float64):
                raise Mismatch(path, described(array), f"dtype {dtype}")
            on_cast()

    def write(to: np.ndarray, b: int, observation: Any) -> None:
        # Only of a plain array shape and dtype can be believed.
        if type(observation) is not ndarray:
            observation = array_in(observation, path, expected)
        if observation.shape != shape or observation.dtype is not dtype:
            explain(observation)
        to[b] = observation

    return write


def array_in(value: Any, path: str, expected: str) -> np.ndarray:
    """The plain array in a subclass of it, in a NumPy scalar, or in an object that acts like one (LazyFrames).

    Such an object has an `__array__`, and a `dtype` of NumPy's. Raises Mismatch for others, and for masked arrays.
    """
    if not isinstance(value, np.ndarray | np.generic) and not isinstance(getattr(value, "dtype", None), np.dtype):
        raise Mismatch(path, described(value), expected)
    return unmasked(value, path, expected)


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


def _dict_writer(space: spaces.Dict, on_cast: Callable[[], None], path: str) -> ObservationWriter:
    writers = {key: observation_writer(child, on_cast, f"{path}[{key!r}]") for key, child in space.spaces.items()}

    def write(to: dict[str, Tree], b: int, observation: Any) -> None:
        if not isinstance(observation, dict) or observation.keys() != writers.keys():
            raise Mismatch(path, described(observation), f"a dict with the keys {sorted(writers)}")
        for key, writer in writers.items():
            writer(to[key], b, observation[key])

    return write


def _tuple_writer(space: spaces.Tuple[Any], on_cast: Callable[[], None], path: str) -> ObservationWriter:
    writers = [observation_writer(child, on_cast, f"{path}[{index}]") for index, child in enumerate(space.spaces)]

    def write(to: tuple[Tree, ...], b: int, observation: Any) -> None:
        if not isinstance(observation, tuple) or len(observation) != len(writers):
            raise Mismatch(path, described(observation), f"a tuple of {len(writers)}")
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


def action_decoder(space: spaces.Space[Any]) -> Callable[[Tree], Sequence[Any]]:
    """The function that turns recorded actions, a tree of `[n, ...]`, into `n` actions for environments: copies.

    Recorded discrete actions are indices from 0, so `start` is added; recorded Box actions are the agent's own, so
    the environment gets them clipped.
    """
    match space:
        case spaces.Dict():
            decoders = {key: action_decoder(child) for key, child in space.spaces.items()}

            def decode_dict(actions: dict[str, Tree]) -> Sequence[Any]:
                columns = [decoder(actions[key]) for key, decoder in decoders.items()]
                return [dict(zip(decoders, values, strict=True)) for values in zip(*columns, strict=True)]

            return decode_dict
        case spaces.Tuple():
            children = [action_decoder(child) for child in space.spaces]

            def decode_tuple(actions: tuple[Tree, ...]) -> Sequence[Any]:
                return list(zip(*(child(column) for child, column in zip(children, actions, strict=True)), strict=True))

            return decode_tuple
        case spaces.Discrete() if space.start == 0 and space.dtype == np.int64:
            return list  # scalars are copies
    decode = vector_action_decoder(space)
    if isinstance(space, spaces.Box) and space.shape == ():
        # Rows of a vector would be scalars, and the space holds 0-d arrays.
        return lambda actions: [np.asarray(action) for action in decode(actions)]
    # NumPy integers of the space's dtype, as `space.sample()` gives: Gymnasium checks them faster than ints.
    return lambda actions: list(decode(actions))


def vector_action_decoder(space: spaces.Space[Any]) -> Callable[[Tree], Tree]:
    """The same for a vector environment: one tree of `[n, ...]`, in memory of its own."""
    match space:
        case spaces.Dict():
            decoders = {key: vector_action_decoder(child) for key, child in space.spaces.items()}
            return lambda actions: {key: decoder(actions[key]) for key, decoder in decoders.items()}
        case spaces.Tuple():
            children = [vector_action_decoder(child) for child in space.spaces]
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
    raise _refused(space)


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
