"""`Padded`: texts and sequences in observations as fixed-size arrays with a length."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from headrace.buffers.tree import allocate_like, tree_leaves, tree_map, tree_rows
from headrace.envs.spaces import Mismatch, ObservationWriter, described, is_text, limits, null_value, observation_writer
from headrace.errors import EnvContractError
from headrace.types import Tree

__all__ = ["Padded"]


class Padded(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Gives observations a fixed shape: a text or a sequence of up to n elements becomes `{"array": ..., "length": k}`.

    The array of a text is `[n]`: the index of each character, counted from 1 in the sorted characters of the space (of
    `string.printable` if the space does not declare its characters), and 0 after the end. The array of a sequence is
    `[n, ...]` of its elements, or a Dict or Tuple of such arrays if its elements are Dicts or Tuples, and 0 after the
    end.

    Samplers wrap environments themselves if they are given `pad`. To act with a trained agent, wrap the environment.

    Args:
        env: the environment.
        pad: the maximum length n, by path in the observation: the key of a Dict or the index in a Tuple, joined by dots
            where they are nested, "" for the observation itself: `{"mission": 48, "goal.steps": 10}`.

    Raises:
        EnvContractError: there is no text or sequence at that path. A longer observation makes the sampler raise
            EnvContractError.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], pad: Mapping[str, int]) -> None:
        super().__init__(env)
        space: spaces.Space[Any] = env.observation_space
        self._converts: list[Callable[[Any], Any]] = []
        for place, n in pad.items():
            space, convert = _padded(space, place.split(".") if place else [], n, "observation")
            self._converts.append(convert)
        self.observation_space = space

    def observation(self, observation: Any) -> Any:
        """Returns the observation with its texts and sequences padded."""
        for convert in self._converts:
            observation = convert(observation)
        return observation


def _padded(
    space: spaces.Space[Any], keys: Sequence[str], n: int, path: str
) -> tuple[spaces.Space[Any], Callable[[Any], Any]]:
    """Returns the space with one part padded, and the function that pads that part of an observation. keys: path of the
    part.
    """
    if not keys:
        return _fixed(space, n, path)
    key, *rest = keys
    match space:
        case spaces.Dict() if key in space.spaces:
            part, convert = _padded(space.spaces[key], rest, n, f"{path}[{key!r}]")
            return spaces.Dict([*{**space.spaces, key: part}.items()]), partial(_in_dict, key, convert)
        case spaces.Tuple() if key in map(str, range(len(space.spaces))):
            index, parts = int(key), list(space.spaces)
            parts[index], convert = _padded(parts[index], rest, n, f"{path}[{index}]")
            return spaces.Tuple(parts), partial(_in_tuple, index, convert)
    raise EnvContractError(f"pad has the key {key!r}, but {path} has no such part: it is {space}")


# Observations that lack the part are returned unchanged: the recorder reports them.


def _in_dict(key: str, convert: Callable[[Any], Any], observation: Any) -> Any:
    if not isinstance(observation, dict) or key not in observation:
        return observation
    return {**observation, key: convert(observation[key])}


def _in_tuple(index: int, convert: Callable[[Any], Any], observation: Any) -> Any:
    if not isinstance(observation, tuple) or index >= len(observation):
        return observation
    return *observation[:index], convert(observation[index]), *observation[index + 1 :]


def _fixed(space: spaces.Space[Any], n: int, path: str) -> tuple[spaces.Space[Any], Callable[[Any], Any]]:
    """Returns the space of an array and a length, and the function that makes them."""
    if is_text(space):
        characters = sorted(space.character_set if isinstance(space, spaces.Text) else string.printable)
        numbers = {character: number for number, character in enumerate(characters, 1)}
        empty = np.zeros(n, np.uint8 if len(numbers) < 256 else np.int32)
        array: spaces.Space[Any] = spaces.Box(0, len(numbers), (n,), empty.dtype.type)
        convert: Callable[[Any], Any] = partial(_text, path, numbers, empty)
    elif isinstance(space, spaces.Sequence):
        element = space.feature_space
        empty = allocate_like(null_value(element, f"{path}[i]"), (n,), np.zeros)
        array = _stacked(element, n)
        convert = partial(_sequence, path, space.stack, observation_writer(element, _ignore_cast, f"{path}[i]"), empty)
    else:
        raise EnvContractError(f"pad is for texts and sequences, but {path} is {space}; leave it out of pad")
    return spaces.Dict({"array": array, "length": spaces.Discrete(n + 1)}), convert


def _stacked(space: spaces.Space[Any], n: int) -> spaces.Space[Any]:
    """Returns the space of n elements of a space with a fixed shape, where each is an element or zeros."""
    match space:
        case spaces.Dict():
            return spaces.Dict([(key, _stacked(child, n)) for key, child in space.spaces.items()])
        case spaces.Tuple():
            return spaces.Tuple([_stacked(child, n) for child in space.spaces])
    zeros = null_value(space)
    low, high = (np.broadcast_to(limit, (n, *zeros.shape)) for limit in limits(space))
    return spaces.Box(np.minimum(low, 0), np.maximum(high, 0), dtype=zeros.dtype.type)


def _text(path: str, numbers: Mapping[str, int], empty: np.ndarray, text: Any) -> dict[str, Any]:
    if not isinstance(text, str):
        raise Mismatch(path, described(text), "a str")
    _require_length(path, text, len(text), len(empty))
    array = empty.copy()
    try:
        array[: len(text)] = [numbers[character] for character in text]
    except KeyError as error:
        raise Mismatch(path, f"the character {error} in {described(text)}", "characters of the space") from None
    return {"array": array, "length": len(text)}


def _sequence(path: str, stacked: bool, write: ObservationWriter, empty: Tree, sequence: Any) -> dict[str, Any]:
    if stacked:  # a tree of arrays, whose first axis is the element
        elements: Sequence[Any] = [tree_rows(sequence, index) for index in range(len(tree_leaves(sequence)[0]))]
    elif isinstance(sequence, tuple | list):
        elements = sequence
    else:
        raise Mismatch(path, described(sequence), "a tuple")
    _require_length(path, sequence, len(elements), len(tree_leaves(empty)[0]))
    array = tree_map(np.copy, empty)
    for index, element in enumerate(elements):
        write(array, index, element)
    return {"array": array, "length": len(elements)}


def _require_length(path: str, value: Any, length: int, most: int) -> None:
    if length > most:
        raise Mismatch(path, f"{described(value)} of length {length}", f"a length of at most {most}, as set by pad")


def _ignore_cast(path: str, came: Any, dtype: Any) -> None:
    """Casts of elements are not logged: sequences are made by hand, from whatever numbers the environment has."""
