"""Checks what vector environments return, writes it into a batch and splits it into episodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from headrace.buffers.tree import tree_leaves, tree_map
from headrace.envs.infos import EVERY_STEP, InfoField, missing
from headrace.envs.scalar import EnvInfoKeys
from headrace.envs.spaces import Mismatch, OnCast, array_in, fitted, null_value, unmasked
from headrace.types import Tree

__all__ = ["VectorAnswers", "infos_of"]


class VectorAnswers:
    """Checks what `n` environments return: shape and dtype of every array, finiteness of every number.

    `mismatched` is the index of the environment with the last mismatch, None if the mismatch concerns all of them.

    Args:
        n: number of environments.
        observation: observation space of a single environment.
        env_info_keys: the info fields to record.
        on_cast: called for arrays of another dtype, which are cast if nothing is lost.
    """

    def __init__(self, n: int, observation: spaces.Space[Any], env_info_keys: EnvInfoKeys, on_cast: OnCast) -> None:
        self.mismatched: int | None = None
        self._n = n
        #: For each declared field the field of all environments, and that of a single one.
        self._declared = [
            (InfoField(key, np.dtype(dtype), (n, *shape)), InfoField(key, np.dtype(dtype), tuple(shape)))
            for key, (dtype, shape) in env_info_keys.items()
        ]
        self._on_cast = on_cast
        self._space = observation
        self._nulls = null_value(observation)
        self._leaves = list(_leaf_spaces(observation))

    def of_reset(self, answer: Any) -> tuple[Tree, dict[str, Any]]:
        """Returns (observation, info) of `reset()`; raises Mismatch for any other form."""
        self.mismatched = None
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], dict):
            raise Mismatch("", _described(answer), "(observation, info)")
        return answer[0], answer[1]

    def of_step(self, answer: Any) -> tuple[Tree, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Returns (observation, reward, terminated, truncated, info) of `step()`; raises Mismatch for another form."""
        self.mismatched = None
        if not isinstance(answer, tuple) or len(answer) != 5 or not isinstance(answer[4], dict):
            raise Mismatch("", _described(answer), "(observation, reward, terminated, truncated, info)")
        observation, reward, terminated, truncated, info = answer
        if type(reward) is not np.ndarray:
            reward = unmasked(reward, "reward", f"numbers [{self._n}]")
        if reward.shape != (self._n,) or reward.dtype.kind not in "fiub":
            raise Mismatch("reward", _described(reward), f"numbers [{self._n}]")
        ends = self._truth_values(terminated, "terminated"), self._truth_values(truncated, "truncated")
        return observation, reward, *ends, info

    def _truth_values(self, came: Any, path: str) -> np.ndarray:
        if type(came) is np.ndarray and came.dtype == np.bool_ and came.shape == (self._n,):
            return came
        ends = came if type(came) is np.ndarray else array_in(came, path, f"a numpy array of bool [{self._n}]")
        known = ends.dtype == np.bool_ or (ends.dtype.kind in "iuf" and np.isin(ends, (0, 1)).all())
        if ends.shape != (self._n,) or not known:
            raise Mismatch(path, _described(came), f"a numpy array of bool [{self._n}]")
        if ends.dtype != np.bool_:
            self._on_cast(path, ends.dtype, "bool")
        return ends.astype(np.bool_, copy=False)

    def write(self, to: Tree, observation: Tree, mask: np.ndarray | None = None) -> None:
        """Checks an observation and copies it into a tree of `[n, ...]`, all of it or the columns in a mask.

        Args:
            to: the tree to write into.
            observation: what the environment returned, a tree of `[n, ...]`.
            mask: the columns to write, bool `[n]`; None: all.

        Raises:
            Mismatch: the observation does not fit its space or is not finite.
        """
        came = _space_paths(self._space, observation, "observation")
        for recorded, (path, leaf), (space, null) in zip(tree_leaves(to), came, self._leaves, strict=True):
            leaf = self._checked(leaf, path, space, null, (self._n, *null.shape))
            if mask is None:
                recorded[...] = leaf
            else:
                recorded[mask] = leaf[mask]
            self.check_finite(recorded, path)  # not `leaf`: too large numbers are infinite as float32

    def final(self, info: dict[str, Any], columns: np.ndarray) -> Tree:
        """Returns the observations before the resets, a tree of `[k, ...]`, from the info of SAME_STEP environments.

        Args:
            info: info dict of the step.
            columns: indices of the `k` environments whose episodes ended.

        Raises:
            Mismatch: an observation is missing or does not fit its space.
        """
        self.mismatched = None
        if "final_obs" not in info:
            raise missing("final_obs", info, "the last observations where episodes ended (autoreset mode SAME_STEP)")
        came = info["final_obs"]
        if _is_stacked(self._space, came, self._n):
            return self._stacked_final(came, columns)
        return self._separate_final(came, columns)

    def _stacked_final(self, came: Tree, columns: np.ndarray) -> Tree:
        """Returns the rows `columns` of arrays of `[n, ...]`."""
        taken = tree_map(lambda leaf: np.empty((len(columns), *leaf.shape), leaf.dtype), self._nulls)
        leaves = _space_paths(self._space, came, "final_obs")
        try:
            for to, (path, leaf), (space, null) in zip(tree_leaves(taken), leaves, self._leaves, strict=True):
                to[...] = self._checked(leaf[columns], path, space, null, to.shape)
                self.check_finite(to, path)
        except Mismatch:
            self.mismatched = int(columns[self.mismatched or 0])
            raise
        return taken

    def _separate_final(self, came: Any, columns: np.ndarray) -> Tree:
        """Returns the observations of `columns` from arrays of objects, one for each environment."""
        found = []
        for column in columns.tolist():
            self.mismatched = column
            try:
                value = _column_of(came, column, self._space)
            except (IndexError, KeyError, TypeError):
                raise Mismatch(
                    "final_obs", _described(came), "the last observation of each ended environment"
                ) from None
            one = tree_map(np.empty_like, self._nulls)
            leaves = _space_paths(self._space, value, "final_obs")
            for to, (path, leaf), (space, null) in zip(tree_leaves(one), leaves, self._leaves, strict=True):
                to[...] = self._checked(leaf, path, space, null, null.shape)
                if to.dtype.kind == "f" and not np.isfinite(to).all():
                    raise Mismatch(path, str(to[~np.isfinite(to)][0]), "finite numbers")
            found.append(one)
        self.mismatched = None
        return tree_map(lambda *leaves: np.stack(leaves), found[0], *found[1:])

    def write_infos(
        self, to: Tree, info: dict[str, Any], resetting: np.ndarray, ended: np.ndarray, last: Sequence[dict[str, Any]]
    ) -> None:
        """Records the declared fields of info.

        Args:
            to: arrays `[n, ...]` by field.
            info: info dict of the step.
            resetting: columns that are reset in this step, bool `[n]`; they get the field if present, else zeros.
            ended: indices of the columns whose episodes ended; they get the fields of their last info dicts.
            last: the last info dict of each ended episode.

        Raises:
            Mismatch: a field is missing or does not fit.
        """
        self.mismatched = None
        asked = ~resetting
        asked[ended] = False
        for every, single in self._declared:
            key, own = every.key, to[every.key]
            if key in info:
                present = info.get(f"_{key}")
                if isinstance(present, np.ndarray):
                    absent = np.greater(asked, self._truth_values(present, f"info['_{key}']"))
                    if _any_true(absent, None):
                        self.mismatched = int(np.flatnonzero(absent)[0])
                        raise _without(key, info)
                own[...] = every.array(info[key])
            elif _any_true(asked, None):
                raise _without(key, info)
            else:
                own[resetting] = 0
            for column, one in zip(ended, last, strict=True):
                self.mismatched = int(column)
                if key not in one:
                    raise _without(key, one)
                single.write(own, column, one)
            self.mismatched = None
            self.check_finite(own, f"info[{key!r}]")

    def check_finite(self, array: np.ndarray, path: str) -> None:
        """Raises Mismatch for NaN and infinity in an array `[n, ...]`."""
        if array.dtype.kind == "f" and not _all_true(np.isfinite(array), None):
            place = tuple(np.argwhere(~np.isfinite(array))[0])
            self.mismatched = int(place[0])
            raise Mismatch(path, str(array[place]), "finite numbers")

    def _checked(
        self, came: Any, path: str, space: spaces.Space[Any], null: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Returns an array of the space's shape and dtype; integers of a Discrete space may have any integer dtype."""
        if not isinstance(space, spaces.Discrete):
            if type(came) is np.ndarray and came.shape == shape and came.dtype == null.dtype:
                return came
            return fitted(came, space, shape, self._on_cast, path)
        leaf = came if type(came) is np.ndarray else array_in(came, path, _array_of(null.dtype, shape))
        if leaf.shape != shape:
            raise Mismatch(path, _described(leaf), _array_of(null.dtype, shape))
        outside = (leaf < space.start) | (leaf >= space.start + space.n)
        if leaf.dtype.kind not in "iu" or np.any(outside):
            if shape and np.any(outside):
                self.mismatched = int(np.flatnonzero(outside)[0])
            came = _described(leaf) if leaf.dtype.kind not in "iu" else str(leaf[outside].flat[0])
            raise Mismatch(path, came, f"integers in [{space.start}, {space.start + space.n})")
        return leaf


def _without(key: str, info: dict[str, Any]) -> Mismatch:
    """Returns the error for a declared key that is missing; keys that begin with "_" are masks, and not named."""
    return missing(key, {name: value for name, value in info.items() if not str(name).startswith("_")}, EVERY_STEP)


# What `array.all()` and `array.any()` call, two frames deeper.
_all_true, _any_true = np.logical_and.reduce, np.logical_or.reduce


def _array_of(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    """Describes an array for a message; formatting a dtype takes longer than checking an array."""
    return f"a numpy array of {dtype} {list(shape)}"


def _leaf_spaces(space: spaces.Space[Any]) -> Iterator[tuple[spaces.Space[Any], np.ndarray]]:
    """Yields the leaf spaces and their null values, in the order of the leaves."""
    match space:
        case spaces.Dict():
            for child in space.spaces.values():
                yield from _leaf_spaces(child)
        case spaces.Tuple():
            for child in space.spaces:
                yield from _leaf_spaces(child)
        case _:
            yield space, null_value(space)


def _space_paths(space: spaces.Space[Any], value: Any, path: str) -> Iterable[tuple[str, Any]]:
    """Yields (path, leaf) in the order of the space's own leaves; raises Mismatch for another structure."""
    match space:
        case spaces.Dict():
            if not isinstance(value, dict) or value.keys() != space.spaces.keys():
                raise Mismatch(path, _described(value), f"a dict with the keys {sorted(map(str, space.spaces))}")
            for key, child in space.spaces.items():
                yield from _space_paths(child, value[key], f"{path}[{key!r}]")
        case spaces.Tuple():
            if not isinstance(value, tuple) or len(value) != len(space.spaces):
                raise Mismatch(path, _described(value), f"a tuple of {len(space.spaces)}")
            for index, child in enumerate(space.spaces):
                yield from _space_paths(child, value[index], f"{path}[{index}]")
        case _:
            yield path, value


def _column_of(values: Any, column: int, space: spaces.Space[Any]) -> Any:
    """Returns one environment's part of stacked values or of an array of objects."""
    match space:
        case spaces.Dict() if isinstance(values, dict):
            return {key: _column_of(values[key], column, child) for key, child in space.spaces.items()}
        case spaces.Tuple() if isinstance(values, tuple):
            return tuple(_column_of(part, column, child) for part, child in zip(values, space.spaces, strict=True))
    return values[column]


def _is_stacked(space: spaces.Space[Any], values: Any, n: int) -> bool:
    """Returns whether every leaf is an array over all `n` environments, and not of objects."""
    match space:
        case spaces.Dict():
            return (
                isinstance(values, dict)
                and values.keys() == space.spaces.keys()
                and all(_is_stacked(child, values[key], n) for key, child in space.spaces.items())
            )
        case spaces.Tuple():
            return (
                isinstance(values, tuple)
                and len(values) == len(space.spaces)
                and all(_is_stacked(child, part, n) for child, part in zip(space.spaces, values, strict=True))
            )
    return type(values) is np.ndarray and values.dtype != np.object_ and values.ndim > 0 and len(values) == n


def infos_of(info: dict[str, Any], columns: Iterable[int]) -> list[dict[str, Any]]:
    """Splits an info dict of a vector environment into dicts of single environments.

    Args:
        info: arrays by field, with a mask under `_key` if not every environment has the field.
        columns: indices of the environments to return.
    """
    found = []
    for column in columns:
        one: dict[str, Any] = {}
        for key, values in info.items():
            mask = info.get(f"_{key}")
            if (isinstance(key, str) and key.startswith("_") and key[1:] in info) or (
                isinstance(mask, np.ndarray) and not mask[column]
            ):
                continue
            if isinstance(values, dict):
                one[key] = infos_of(values, [column])[0]
            elif isinstance(values, np.ndarray | list | tuple) and len(values) > column:
                one[key] = values[column]
        found.append(one)
    return found


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"{type(value).__name__} {value!r}"[:80]
