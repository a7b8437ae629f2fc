"""Checks of the fields of a batch of episodes, with errors that say what came and what was expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from headrace.buffers.tree import tree_paths
from headrace.envs.spaces import described, limits, null_value
from headrace.samplers.episodes.steps import EnvSpec, StepType
from headrace.types import Tree

if TYPE_CHECKING:
    from headrace.samplers.episodes.batch import EpisodeBatch

__all__ = ["check"]


def check(episodes: EpisodeBatch, name: str = "episodes") -> None:
    """Checks every field of a batch.

    Numbers of Box spaces may be outside of the bounds, since agents' actions and observations of many environments are.

    Args:
        episodes: the batch.
        name: what it is called in errors.

    Raises:
        TypeError: for a value of another type.
        ValueError: for any other wrong value.
    """
    if not isinstance(episodes.env_spec, EnvSpec):
        raise TypeError(f"{name}.env_spec is {described(episodes.env_spec)}, expected an EnvSpec")
    lengths = _vector(episodes.lengths, f"{name}.lengths", None, "iu")
    limit = episodes.env_spec.max_episode_length
    wrong = np.flatnonzero((lengths < 1) | (lengths > (np.inf if limit is None else limit)))
    if len(wrong):
        expected = "at least 1" if limit is None else f"1 to {limit}, the max_episode_length of env_spec"
        raise ValueError(f"{name}.lengths[{wrong[0]}] is {lengths[wrong[0]]}, expected {expected}")
    N, S = len(lengths), int(lengths.sum())

    _vector(episodes.rewards, f"{name}.rewards", S, "f")
    _vector(episodes.versions, f"{name}.versions", S, "i")
    _check_step_types(_vector(episodes.step_types, f"{name}.step_types", S, "u"), lengths, f"{name}.step_types")
    for field, count in (("env_ids", N), ("numbers", N), ("starts", N)):
        _vector(getattr(episodes, field), f"{name}.{field}", count, "iu")

    spec = episodes.env_spec
    _check_elements(spec.observation_space, episodes.observations, f"{name}.observations", S, recorded=False)
    _check_elements(spec.observation_space, episodes.last_observations, f"{name}.last_observations", N, recorded=False)
    _check_elements(spec.action_space, episodes.actions, f"{name}.actions", S, recorded=True)
    if not isinstance(episodes.env_infos, dict):
        raise TypeError(f"{name}.env_infos is {described(episodes.env_infos)}, expected a dict of arrays")
    for field in ("env_infos", "agent_infos"):
        for path, leaf in tree_paths(getattr(episodes, field), f"{name}.{field}"):
            _array(leaf, path, S)
    for field in ("episode_infos", "last_infos"):
        infos = getattr(episodes, field)
        if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
            raise TypeError(f"{name}.{field} is {described(infos)}, expected a list of dicts")
        if len(infos) != N:
            raise ValueError(f"{name}.{field} has {len(infos)} dicts, expected one for each of {N} episodes")


def _array(value: Any, name: str, n: int | None) -> np.ndarray:
    """Returns `value` if it is an array of n rows (of any number if None)."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is {described(value)}, expected a NumPy array")
    if value.ndim == 0 or (n is not None and len(value) != n):
        rows = "a leading dimension" if n is None else f"{n} rows, as the lengths of the episodes say"
        raise ValueError(f"{name} is {described(value)}, expected {rows}")
    return value


def _vector(value: Any, name: str, n: int | None, kinds: str) -> np.ndarray:
    array = _array(value, name, n)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        expected = {"f": "floats", "u": "unsigned integers (uint8)"}.get(kinds, "integers")
        raise ValueError(f"{name} is {described(array)}, expected one dimension of {expected}")
    return array


def _check_step_types(step_types: np.ndarray, lengths: np.ndarray, name: str) -> None:
    if step_types.max(initial=0) > max(StepType):
        raise ValueError(f"{name} has the value {step_types.max()}, expected values of StepType, 0 to {max(StepType)}")
    ends = np.cumsum(lengths)
    is_first, is_last = np.zeros((2, len(step_types)), np.bool_)
    is_first[ends - lengths] = is_last[ends - 1] = True
    wrong = np.flatnonzero(
        ((step_types == StepType.FIRST) & ~is_first) | ((step_types >= StepType.TERMINAL) & ~is_last)
    )
    if len(wrong):
        episode = int(np.searchsorted(ends, wrong[0], side="right"))
        step = wrong[0] - (ends - lengths)[episode]
        raise ValueError(
            f"{name}[{wrong[0]}] is {StepType(step_types[wrong[0]]).name}, step {step} of {lengths[episode]} in "
            f"episode {episode}; expected FIRST only for first steps, TERMINAL and TIMEOUT only for last steps"
        )


def _check_elements(space: spaces.Space[Any], tree: Tree, name: str, n: int, recorded: bool) -> None:
    """Checks n elements of a space.

    Args:
        space: the space.
        tree: tree of `[n, ...]`.
        name: what the tree is called in errors.
        n: number of elements.
        recorded: whether discrete values are indices from 0, like recorded actions, and not elements of the space.
    """
    match space:
        case spaces.Dict():
            if not isinstance(tree, dict) or tree.keys() != space.spaces.keys():
                raise ValueError(f"{name} is {_kind(tree)}, expected a dict with the keys {sorted(space.spaces)}")
            for key, child in space.spaces.items():
                _check_elements(child, tree[key], f"{name}[{key!r}]", n, recorded)
        case spaces.Tuple():
            if not isinstance(tree, tuple) or len(tree) != len(space.spaces):
                raise ValueError(f"{name} is {_kind(tree)}, expected a tuple of {len(space.spaces)}")
            for index, child in enumerate(space.spaces):
                _check_elements(child, tree[index], f"{name}[{index}]", n, recorded)
        case _:
            _check_leaf(space, _array(tree, name, n), name, recorded)


def _kind(tree: Tree) -> str:
    return f"a tuple of {len(tree)}" if isinstance(tree, tuple) else described(tree)


def _check_leaf(space: spaces.Space[Any], array: np.ndarray, name: str, recorded: bool) -> None:
    example = null_value(space, name)
    if array.shape[1:] != example.shape or not np.can_cast(array.dtype, example.dtype, "same_kind"):
        raise ValueError(
            f"{name} is {described(array)}, expected shape {(len(array), *example.shape)} and dtype {example.dtype}"
        )
    if isinstance(space, spaces.Box):
        return
    low, high = limits(space)
    if recorded and isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        low, high = low - space.start, high - space.start
    wrong = np.argwhere((array < low) | (array > high))
    if len(wrong):
        place = tuple(wrong[0])
        allowed = (np.broadcast_to(bound, example.shape)[place[1:]] for bound in (low, high))
        came = f"{name}{[int(index) for index in place]} is {array[place]}"
        raise ValueError(f"{came}, expected {' to '.join(map(str, allowed))}")
