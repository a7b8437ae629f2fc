"""`ScalarEnvs`: single Gymnasium environments, stepped one by one and recorded directly into a batch."""

from __future__ import annotations

import copy
import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any

import gymnasium
import numpy as np

from headrace import compiled
from headrace.buffers.tree import tree_leaves, tree_paths, tree_rows
from headrace.envs import stepping
from headrace.envs.factory import user_code_failed
from headrace.envs.infos import InfoField, info_copy
from headrace.envs.random_actions import random_actions
from headrace.envs.spaces import Mismatch, action_decoder, cast_note, observation_writer, unmasked
from headrace.errors import EnvContractError, SamplerError
from headrace.processes.status import Phase, Status
from headrace.types import Ends, EnvSpaces, StepRow, Timing, Tree

__all__ = ["EnvInfoKeys", "ScalarEnvs"]

#: The info fields to record: `{name: (dtype, shape)}`.
EnvInfoKeys = Mapping[str, tuple[Any, tuple[int, ...]]]

#: Types of rewards that compare as numbers do; a subclass of float may define comparison differently.
_NUMBERS = frozenset((float, int, np.float64))
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_all_true = np.logical_and.reduce  # what `array.all()` calls, two frames deeper


class _NotUnpacked(Exception):
    """The answer of an environment is not a tuple of the expected length; carries Python's error."""


class ScalarEnvs:
    """An `EnvBatch` of single Gymnasium environments, which checks everything that they return before writing it.

    It checks the shape and dtype of every observation, that rewards are numeric scalars, that ends are booleans, and
    that everything is finite: 0.2 µs a step. A failed check raises `EnvContractError`, an exception in an environment's
    code becomes `EnvFailed`; both name the environment.

    Args:
        envs: the environments, one per column.
        env_ids: env ids of the columns.
        seeds: for each environment the seed of its first reset and that of its action space; later resets continue with
            the environment's own generator. None: the environment continues with the generators it has.
        name: name of the environments for error messages.
        status: marks the environment being called.
        env_info_keys: the info fields to record.
    """

    def __init__(
        self,
        envs: Sequence[gymnasium.Env[Any, Any]],
        env_ids: Sequence[int],
        seeds: Sequence[tuple[int | None, int | None]],
        *,
        name: str,
        status: Status,
        env_info_keys: EnvInfoKeys | None = None,
    ) -> None:
        self.env_ids: Sequence[int] = list(env_ids)
        self.spaces = EnvSpaces(envs[0].observation_space, envs[0].action_space)
        self.waiting = np.zeros(len(envs), np.bool_)
        self.resetting: np.ndarray | None = None
        self.holds = True
        self.moves_while_held = False
        #: (level, message) pairs for the log, each to be logged once: what was cast, what was not recorded.
        self.notes: list[tuple[int, str]] = []
        self._envs = list(envs)
        self._name = name
        self._status = status
        self._seeds: list[int | None] = [env_seed for env_seed, _ in seeds]
        self._fields = [
            InfoField(key, np.dtype(dtype), tuple(shape)) for key, (dtype, shape) in (env_info_keys or {}).items()
        ]
        self._seen_keys = set(env_info_keys or ())
        self._some_wait = False
        self._noted_casts: set[str] = set()
        self._own_action_spaces: list[gymnasium.Space[Any]] = []
        self._allowance: list[int] | None = None
        self._steps = [env.step for env in envs]
        self._rewards = array("d", [0.0] * len(envs))  # of the last step; cells of a NumPy array cost more to set
        self._stepping: Any = compiled.stepping or stepping
        self._stepper = self._stepping.Stepper(list(env_ids), [env.reset for env in envs], Status.ENV)
        self._decode = action_decoder(self.spaces.action)
        self._write = observation_writer(self.spaces.observation, self._note_cast, "observation")
        for env, env_id, (_, space_seed) in zip(envs, env_ids, seeds, strict=True):
            if env.observation_space != self.spaces.observation or env.action_space != self.spaces.action:
                raise EnvContractError(
                    f"{name}: env {env_id} has the spaces {env.observation_space} and {env.action_space}, env "
                    f"{env_ids[0]} has {self.spaces.observation} and {self.spaces.action}; all must be the same"
                )
            if space_seed is not None:
                env.action_space.seed(space_seed)
            # Random actions come from a copy: a space that is a class attribute is shared by all environments.
            self._own_action_spaces.append(copy.deepcopy(env.action_space))
            if space_seed is not None:
                self._own_action_spaces[-1].seed(space_seed)

    def hold(self, columns: np.ndarray, observation: Tree) -> None:
        """Makes the columns in the mask `[n]` wait, and no others."""
        self.waiting[:] = columns
        self._some_wait = bool(columns.any())

    def allow(self, resets: int | Sequence[int] | None) -> None:
        """Sets how often each column may still be reset in `step`; None: without limit."""
        self._allowance = None if resets is None else np.broadcast_to(resets, len(self._envs)).tolist()

    def environment(self, column: int) -> tuple[gymnasium.Env[Any, Any], int | None]:
        """Returns the environment of a column and the seed of its first reset, None if it was reset before."""
        return self._envs[column], self._seeds[column]

    def reset(self, columns: Sequence[int] | None, observation: Tree) -> None:
        """Resets columns (None: all) and writes their first observations into the tree of `[n, ...]`."""
        floats = [leaf for leaf in tree_leaves(observation) if leaf.dtype.kind == "f"]
        for column in range(len(self._envs)) if columns is None else columns:
            self._reset_column(column, observation)
            self.waiting[column] = False
        self._some_wait = bool(self.waiting.any())
        self._check_finite(observation, None, floats, "reset()")

    def step(self, actions: Tree, out: StepRow, timing: Timing | None = None) -> Ends:
        """Steps every column that is not waiting; see `EnvBatch.step`."""
        steps = self._steps if timing is None else [_timed(step, timing) for step in self._steps]
        columns = self._stepped(out) if self._some_wait else None
        ended: list[int] = []
        infos: list[dict[str, Any]] = []
        try:
            finite = self._stepper.step(
                out.prepared or self._prepare(out),
                columns,
                steps,
                self._decode(actions),
                self._rewards,
                self._status.line,
                partial(self._record, out, ended, infos),
                None if out.infos is None else partial(_keep_info, out.infos),
                self._last_info,
                ended,
                infos,
            )
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._explained(error, "step()") from error
        if not finite:
            self._check_finite(out.observation, out.env_info, out.floats, "step()")
        self._status.line[Status.ENV] = -1
        if not ended:
            return _NO_ENDS
        begin = perf_counter_ns()
        ends = self._end(ended, infos, out)
        if timing is not None:
            timing.reset_ns += perf_counter_ns() - begin
        return ends

    def random_actions(self, observation: Tree) -> Tree:
        """Samples an action for every column that is not waiting; see `EnvBatch.random_actions`."""
        return random_actions(self._own_action_spaces, observation, self.waiting)

    def call(self, columns: Sequence[int], name: str, args: Sequence[Any]) -> list[Any]:
        """Calls `env.name(*args)` of each column, found through its wrappers; attributes are returned."""
        return [self._call(column, name, args) for column in columns]

    def _call(self, column: int, name: str, args: Sequence[Any]) -> Any:
        self._status.enter(Phase.CALLING, self.env_ids[column])
        try:
            value = self._envs[column].get_wrapper_attr(name)
            return value(*args) if callable(value) else value
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise user_code_failed(error, f"{self._name}: {name}()", self._status) from error

    def close(self) -> None:
        """Closes every environment; raises the first failure after the last one is closed."""
        failure: BaseException | None = None
        for env, env_id in zip(self._envs, self.env_ids, strict=True):
            self._status.enter(Phase.CLOSING, env_id)
            try:
                env.close()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                failure = failure or user_code_failed(error, f"{self._name}: close()", self._status)
        self._status.line[Status.ENV] = -1
        if failure is not None:
            raise failure

    def _stepped(self, out: StepRow) -> list[int]:
        """Returns the columns that do not wait; gives those that wait a reward of 0 and an empty info."""
        for column in np.flatnonzero(self.waiting).tolist():
            self._rewards[column] = 0.0
            if out.infos is not None:
                out.infos[column] = {}
        stepped: list[int] = np.flatnonzero(~self.waiting).tolist()
        return stepped

    def _prepare(self, out: StepRow) -> Any:
        """Makes what the stepper needs to write to a row, once."""
        leaf = self._stepping.leaf_of(self.spaces.observation, out.observation)
        fields = self._stepping.Fields(self._fields, out.env_info) if self._fields else None
        out.prepared = self._stepping.Row(leaf, fields, out.reward, out.terminated, out.truncated)
        return out.prepared

    def _record(self, out: StepRow, ended: list[int], infos: list[dict[str, Any]], column: int, answer: Any) -> None:
        """Records what one environment's `step` returned, as copies."""
        try:
            next_observation, reward, terminated, truncated, info = answer
        except (TypeError, ValueError) as error:
            raise _NotUnpacked(error) from error
        self._write(out.observation, column, next_observation)
        # Plain Python for each step: NumPy calls made once per time step cost several times their usual time here,
        # because inference between two time steps evicts their code from the caches.
        if type(reward) not in _NUMBERS or not -_FLOAT32_MAX <= reward <= _FLOAT32_MAX:
            reward = _reward(reward)
        self._rewards[column] = reward
        if self._fields:
            out.prepared.fields.write(column, info)
        if out.infos is not None:
            _keep_info(out.infos, column, info)
        if terminated is not False or truncated is not False:
            if terminated is True or self._boolean(terminated, "terminated"):
                out.terminated[column] = True
            if truncated is True or self._boolean(truncated, "truncated"):
                out.truncated[column] = True
            if terminated or truncated:
                ended.append(column)
                infos.append(self._last_info(info))

    def _end(self, ended: list[int], infos: list[dict[str, Any]], out: StepRow) -> Ends:
        """Records the episodes that ended, then resets their environments as far as `allow` permits."""
        columns = np.array(ended)
        ends = Ends(columns, tree_rows(out.observation, columns), infos)
        again = ended if self._allowance is None else self._allowed(ended)
        record = partial(self._record_first, out.observation)
        try:
            finite = self._stepper.reset(out.prepared, again, self._status.line, record)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._explained(error, "reset()") from error
        if not finite:
            self._check_finite(out.observation, None, out.floats, "reset()")
        self._status.line[Status.ENV] = -1
        return ends

    def _allowed(self, ended: list[int]) -> list[int]:
        """Returns the columns that may be reset, and takes that off their allowance; makes the others wait."""
        assert self._allowance is not None
        again = [column for column in ended if self._allowance[column] > 0]
        for column in again:
            self._allowance[column] -= 1
        stopped = [column for column in ended if column not in again]
        if stopped:
            self.waiting[stopped] = True
            self._some_wait = True
        return again

    def _reset_column(self, column: int, observation: Tree) -> None:
        self._status.line[Status.ENV] = self.env_ids[column]
        seed, self._seeds[column] = self._seeds[column], None
        try:
            reset = self._envs[column].reset
            self._record_first(observation, column, reset() if seed is None else reset(seed=seed))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._explained(error, "reset()") from error

    def _record_first(self, observation: Tree, column: int, answer: Any) -> None:
        """Records what one environment's `reset` returned."""
        try:
            first, _ = answer
        except (TypeError, ValueError) as error:
            raise _NotUnpacked(error) from error
        self._write(observation, column, first)

    def _last_info(self, info: Any) -> dict[str, Any]:
        """Returns a copy of the last info dict of an episode."""
        if not isinstance(info, dict):
            raise Mismatch("info", type(info).__name__, "a dict")
        if not info.keys() <= self._seen_keys:
            unknown = sorted(map(str, info.keys() - self._seen_keys))
            self._seen_keys.update(info.keys())
            sentence = (
                f"{self._name}: info has keys that are not recorded per step: {', '.join(unknown)} "
                "(declare them with env_info_keys; the last info of an episode is in its TrajInfo.info)"
            )
            self.notes.append((logging.INFO, sentence))
        copied: dict[str, Any] = info_copy(info)
        return copied

    def _explained(self, error: BaseException, call: str) -> SamplerError:
        """Returns the error of this library for an exception in a call of an environment."""
        if isinstance(error, _NotUnpacked):
            expected = (
                "(observation, info)" if call == "reset()" else "(observation, reward, terminated, truncated, info)"
            )
            return EnvContractError(
                f"{self._name}: {call} must return {expected}, but its return value cannot be unpacked ({error}); "
                "correct the environment, or wrap one with the old gym API: headrace.envs.LegacyGym(env)",
                self._status.where(),
            )
        if isinstance(error, Mismatch):
            return EnvContractError(
                f"{self._name}: {call} returned {error}; correct the environment or its declared spaces",
                self._status.where(),
            )
        no_seed = (
            call == "reset()" and isinstance(error, TypeError) and "unexpected keyword argument 'seed'" in str(error)
        )
        remedy = "; define reset(self, *, seed=None, options=None)" if no_seed else ""
        return user_code_failed(error, f"{self._name}: {call}", self._status, remedy)

    def _check_finite(self, observation: Tree, env_info: Tree, floats: Sequence[np.ndarray], call: str) -> None:
        """Raises for NaN and infinity; `floats` are the floating-point leaves of the two trees."""
        line = self._status.line
        line[Status.ENV] = -1
        for leaf in floats:
            if not _all_true(np.isfinite(leaf), None):
                break
        else:
            return
        for field, tree in (("observation", observation), ("info", env_info)):
            for path, leaf in tree_paths(tree):
                if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                    place = tuple(np.argwhere(~np.isfinite(leaf))[0])
                    line[Status.ENV] = self.env_ids[int(place[0])]
                    mismatch = Mismatch(field + path, str(leaf[place]), "finite numbers")
                    raise self._explained(mismatch, call) from mismatch

    def _boolean(self, value: Any, field: str) -> bool:
        if not isinstance(value, bool | np.bool_):
            if not isinstance(value, int | float | np.number) or value not in (0, 1):
                raise Mismatch(field, f"{type(value).__name__} {value!r}"[:80], "a bool")
            self._note_cast(field, type(value).__name__, "bool")
        return bool(value)

    def _note_cast(self, path: str, came: Any, dtype: Any) -> None:
        if path not in self._noted_casts:
            self._noted_casts.add(path)
            self.notes.append((logging.WARNING, cast_note(self._name, path, came, dtype)))


_NO_ENDS = Ends()


def _keep_info(infos: list[dict[str, Any]], column: int, info: Any) -> None:
    infos[column] = info_copy(info)


def _timed(step: Callable[[Any], Any], timing: Timing) -> Callable[[Any], Any]:
    def timed(action: Any) -> Any:
        begin = perf_counter_ns()
        result = step(action)
        timing.env_ns += perf_counter_ns() - begin
        return result

    return timed


def _reward(came: Any) -> float:
    """Returns a reward that is not a plain Python number within float32: a NumPy scalar or 0-d array; Mismatch for
    others.
    """
    value = unmasked(came, "reward", "one number")
    if value.shape != () or value.dtype.kind not in "fiub":
        raise Mismatch("reward", f"{type(came).__name__} {value.dtype} {list(value.shape)}", "one number")
    if not abs(float(value)) <= _FLOAT32_MAX:
        raise Mismatch("reward", str(float(value)), "a finite float32")
    return float(value)
