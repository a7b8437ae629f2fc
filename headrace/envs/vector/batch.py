"""Vector environments: many environments behind one `step`, recorded with one copy per time step."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from headrace.buffers.tree import tree_copy_into, tree_map, tree_rows
from headrace.envs.factory import user_code_failed
from headrace.envs.infos import info_copy
from headrace.envs.random_actions import random_action, random_actions
from headrace.envs.scalar import EnvInfoKeys
from headrace.envs.spaces import Mismatch, cast_note, encoded_action, vector_action_decoder
from headrace.envs.vector.answers import VectorAnswers, infos_of
from headrace.errors import EnvContractError, SamplerError
from headrace.processes.status import Phase, Status
from headrace.types import ACTION_MASK, Ends, EnvSpaces, StepRow, Timing, Tree

__all__ = ["VectorBatch"]


class VectorBatch:
    """An `EnvBatch` around a vector environment. Columns that wait are stepped along, and their results are ignored.

    It checks shapes, dtypes and finiteness of everything returned, for all columns at once, as strictly as for single
    environments.

    Args:
        env: the vector environment.
        env_ids: env ids of the columns.
        seeds: for each column the seed of the environment and that of its action space. Gymnasium's SyncVectorEnv and
            AsyncVectorEnv, and ale-py's, take one per column. One with a single generator gets the first column's, and
            its batches are the same only for the same slices.
        name: name of the environments for error messages.
        status: marks the call in progress.
        env_info_keys: the info fields to record.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        env_ids: Sequence[int],
        seeds: Sequence[tuple[int, int]],
        *,
        name: str,
        status: Status,
        env_info_keys: EnvInfoKeys | None = None,
    ) -> None:
        n = len(env_ids)
        self.env_ids: Sequence[int] = list(env_ids)
        self.spaces = EnvSpaces(env.single_observation_space, env.single_action_space)
        self.waiting = np.zeros(n, np.bool_)
        self.notes: list[tuple[int, str]] = []
        self._env = env
        self._name = name
        self._status = status
        self._mode = self._autoreset_mode()
        self.holds = self._mode is AutoresetMode.DISABLED
        self.moves_while_held = True
        #: Columns whose next step is their reset; `resetting` contains those of them that do not wait.
        self._due = np.zeros(n, np.bool_)
        self.resetting: np.ndarray | None = None
        if self._mode is AutoresetMode.NEXT_STEP:
            self.resetting = np.zeros(n, np.bool_)
        self._moved = np.zeros(n, np.bool_)  # stepped while they were held
        self._seeds = [env_seed for env_seed, _ in seeds]
        self._started = False
        self._seed_as: Callable[[Sequence[int], np.ndarray], Any] | None = None
        self._allowance: np.ndarray | None = None
        self._info: dict[str, Any] = {}
        self._seen_keys = set(env_info_keys or {})
        self._noted_casts: set[str] = set()
        self._decode = vector_action_decoder(self.spaces.action)
        self._answers = VectorAnswers(n, self.spaces.observation, env_info_keys or {}, self._note_cast)
        #: The latest action mask of every column, also of waiting columns, whose observations the batch does not show.
        self._mask: np.ndarray | None = None
        self._idle_space = copy.deepcopy(self.spaces.action)
        self._idle_space.seed(seeds[0][1])
        self._action_spaces = []
        for _, space_seed in seeds:
            self._action_spaces.append(copy.deepcopy(self.spaces.action))
            self._action_spaces[-1].seed(space_seed)

    def hold(self, columns: np.ndarray, observation: Tree) -> None:
        """See `EnvBatch.hold`."""
        again = self._moved & ~columns
        self.waiting[:] = columns
        if again.any() and self.holds:
            self._reset_masked(again, observation, self._seeds)
            self._moved[again] = False

    def allow(self, resets: int | Sequence[int] | None) -> None:
        """Sets how often each column may still be reset in `step`; None: without limit."""
        self._allowance = None if resets is None else np.full(len(self.env_ids), resets)

    def reset(self, columns: Sequence[int] | None, observation: Tree) -> None:
        """Resets columns (None: all) and writes their first observations into the tree of `[n, ...]`."""
        if columns is None:
            self._reset_all(observation)
            return
        mask = np.zeros(len(self.env_ids), np.bool_)
        mask[list(columns)] = True
        self._reset_masked(mask, observation, None)
        self.waiting[mask] = False

    def step(self, actions: Tree, out: StepRow, timing: Timing | None = None) -> Ends:
        """Steps every column that is not waiting; see `EnvBatch.step`."""
        self._status.line[Status.ENV] = -1
        actions = self._decode(self._allowed(actions))
        begin = perf_counter_ns()
        answer = self._guarded("step()", partial(self._env.step, actions))
        if timing is not None:
            timing.env_ns += perf_counter_ns() - begin
        return self._record_step(answer, out, timing)

    def random_actions(self, observation: Tree) -> Tree:
        """Samples an action for every column that is not waiting; see `EnvBatch.random_actions`."""
        return random_actions(self._action_spaces, observation, self.waiting)

    def _allowed(self, actions: Tree) -> Tree:
        """Returns the actions, with those of waiting columns replaced by actions that their own action masks allow."""
        if self._mask is None or not self.waiting.any():
            return actions
        actions = tree_map(np.copy, actions)
        for column in np.flatnonzero(self.waiting):
            action = encoded_action(
                self.spaces.action, random_action(self._idle_space, {ACTION_MASK: self._mask[column]})
            )
            tree_copy_into(tree_rows(actions, (column, ...)), action)
        return actions

    def call(self, columns: Sequence[int], name: str, args: Sequence[Any]) -> list[Any]:
        """Calls the vector environment's method once; if it returns a sequence of n, each column gets its own element.

        Gymnasium's SyncVectorEnv and AsyncVectorEnv pass the call on to each environment.
        """
        self._status.enter(Phase.CALLING, self.env_ids[columns[0]] if columns else -1)
        value = self._guarded(f"{name}()", partial(self._called, name, args))
        each = isinstance(value, tuple | list | np.ndarray) and len(value) == len(self.env_ids)
        return [value[column] if each else value for column in columns]

    def _called(self, name: str, args: Sequence[Any]) -> Any:
        env: Any = self._env
        while env is not None:
            value = getattr(env, name, None)
            if value is not None:
                return value(*args) if callable(value) else value
            if isinstance(env, SyncVectorEnv | AsyncVectorEnv):
                return env.call(name, *args)
            env = env.env if isinstance(env, VectorWrapper) else None
        raise AttributeError(f"neither the vector environment nor its wrappers have an attribute {name!r}")

    def close(self) -> None:
        """Closes the environment."""
        self._status.enter(Phase.CLOSING, -1)
        self._guarded("close()", self._env.close)

    def _record_step(self, answer: Any, out: StepRow, timing: Timing | None) -> Ends:
        try:
            observation, reward, terminated, truncated, self._info = self._answers.of_step(answer)
            self._answers.write(out.observation, observation)
            self._note_masks(observation)
            out.reward[:] = reward
            out.terminated[:] = terminated
            out.truncated[:] = truncated
            ended = terminated | truncated  # as returned by the environment, also for columns whose ends are ignored
            quiet = self._due | self.waiting
            if quiet.any():
                out.reward[quiet] = 0.0
                out.terminated[quiet] = out.truncated[quiet] = False
                (columns,) = np.greater(ended, quiet).nonzero()
            else:
                (columns,) = ended.nonzero()
            self._answers.check_finite(out.reward, "reward")
            last_infos = self._last_infos(columns) if self._info else [{} for _ in columns]
            self._answers.write_infos(out.env_info, self._info, self._due, columns, last_infos)
            if out.infos is not None:
                out.infos[:] = infos_of(info_copy(self._info), range(len(self.env_ids)))
                for column, info in zip(columns, last_infos, strict=True):
                    out.infos[column] = info_copy(info)
        except Mismatch as mismatch:
            raise self._contract_error(mismatch, "step()") from mismatch
        if self.holds:
            self._moved |= self.waiting
        elif self._mode is AutoresetMode.NEXT_STEP:
            np.greater(ended, self._due, out=self._due)  # episodes that ended, except by the reset that was due
        again = self.holds and ended.any()
        if not len(columns) and not again:
            self._after_step(columns)
            return _NO_ENDS
        begin = perf_counter_ns()
        ends = self._ends(columns, out, last_infos)
        if again:
            self._reset_masked(ended, out.observation, None)
        if timing is not None:
            timing.reset_ns += perf_counter_ns() - begin
        self._after_step(columns)
        return ends

    def _ends(self, columns: np.ndarray, out: StepRow, infos: list[dict[str, Any]]) -> Ends:
        if self._mode is AutoresetMode.SAME_STEP:
            try:
                observation = self._answers.final(self._info, columns)
            except Mismatch as mismatch:
                raise self._contract_error(mismatch, "step()") from mismatch
        else:
            observation = tree_rows(out.observation, columns)
        return Ends(columns, observation, infos)

    def _after_step(self, columns: np.ndarray) -> None:
        """Makes ended columns wait that have no resets left, and updates `resetting`."""
        if self._allowance is not None and len(columns):
            stopped = columns[self._allowance[columns] <= 0]
            self._allowance[columns] -= 1
            self.waiting[stopped] = True
        if self.resetting is not None:
            np.greater(self._due, self.waiting, out=self.resetting)

    def _last_infos(self, columns: np.ndarray) -> list[dict[str, Any]]:
        """Returns copies of the last info dict of each ended episode."""
        info = {key: value for key, value in self._info.items() if key not in _FINAL_KEYS}
        last = infos_of(info, columns)
        found = self._info.get("final_info") if self._mode is AutoresetMode.SAME_STEP else None
        if isinstance(found, dict):
            last = infos_of(found, columns)
        elif found is not None:
            for index, column in enumerate(columns.tolist()):
                if not isinstance(found[column], dict):
                    raise Mismatch(
                        "final_info", repr(found[column])[:60], "the last info dict of each ended environment"
                    )
                last[index] = found[column]
        unknown = {key for one in last for key in one} - self._seen_keys
        if unknown:
            self._seen_keys |= unknown
            sentence = (
                f"{self._name}: info has keys that are not recorded per step: {', '.join(sorted(map(str, unknown)))} "
                "(declare them with env_info_keys; the last info of an episode is in its TrajInfo.info)"
            )
            self.notes.append((logging.INFO, sentence))
        return [info_copy(one) for one in last]

    def _reset_all(self, observation: Tree) -> None:
        answer = self._guarded("reset()", self._env.reset) if self._started else self._first_reset()
        self._record_reset(answer, observation, np.ones(len(self.env_ids), np.bool_))
        self._started = True
        for mask in (self.waiting, self._due, self._moved):
            mask[:] = False
        if self.resetting is not None:
            self.resetting[:] = False

    def _first_reset(self) -> Any:
        """Makes the first reset, with seeds in the form that the environment accepts: a list, an array, or one number.

        Errors about the seed are ignored for a list and an array; whatever a single number raises is reported.
        """
        everyone = np.ones(len(self.env_ids), np.bool_)
        reset: Callable[..., Any] = self._env.reset  # Gymnasium's type annotation allows one number only
        if isinstance(self._env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            self._seed_as = _seed_list
            return self._guarded("reset()", partial(reset, seed=_seed_list(self._seeds, everyone)))
        for form in (_seed_list, _seed_array):
            try:
                answer = reset(seed=form(self._seeds, everyone))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                about_seeds = isinstance(error, TypeError | ValueError | gymnasium.error.Error) and "seed" in str(error)
                if about_seeds or "Seed" in str(error):
                    continue  # try the next form
                raise user_code_failed(error, f"{self._name}: reset()", self._status) from error
            self._seed_as = form
            return answer
        self._seed_as = _one_seed
        return self._guarded("reset()", partial(reset, seed=self._seeds[0]))

    def _reset_masked(self, mask: np.ndarray, observation: Tree, seeds: Sequence[int] | None) -> None:
        """Resets the columns in a mask and writes only their observations."""
        reset = partial(self._env.reset, options={"reset_mask": mask.copy()})
        if seeds is not None and self._seed_as is not None:
            reset = partial(reset, seed=self._seed_as(seeds, mask))
        answer = self._guarded("reset()", reset)
        self._record_reset(answer, observation, mask)

    def _record_reset(self, answer: Any, observation: Tree, mask: np.ndarray) -> None:
        try:
            first, _ = self._answers.of_reset(answer)
            self._answers.write(observation, first, None if mask.all() else mask)
            self._note_masks(first)
        except Mismatch as mismatch:
            raise self._contract_error(mismatch, "reset()") from mismatch

    def _note_masks(self, observation: Tree) -> None:
        if isinstance(observation, dict) and ACTION_MASK in observation:
            self._mask = np.array(observation[ACTION_MASK])

    def _autoreset_mode(self) -> AutoresetMode:
        mode = self._env.metadata.get("autoreset_mode")
        if isinstance(mode, AutoresetMode):
            return mode
        raise EnvContractError(
            f'{self._name}: metadata["autoreset_mode"] is {mode!r}, not a gymnasium.vector.AutoresetMode; set '
            "it, because it determines which observation belongs to which episode"
        )

    def _guarded(self, call: str, function: Callable[[], Any]) -> Any:
        """Calls the environment; an exception becomes `EnvFailed`."""
        try:
            return function()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise user_code_failed(error, f"{self._name}: {call}", self._status) from error

    def _contract_error(self, mismatch: Mismatch, call: str) -> SamplerError:
        column = self._answers.mismatched
        self._status.line[Status.ENV] = -1 if column is None else self.env_ids[column]
        return EnvContractError(
            f"{self._name}: {call} returned {mismatch}; correct the environment or its declared spaces",
            self._status.where(),
        )

    def _note_cast(self, path: str, came: Any, dtype: Any) -> None:
        if path not in self._noted_casts:
            self._noted_casts.add(path)
            self.notes.append((logging.WARNING, cast_note(self._name, path, came, dtype)))


_NO_ENDS = Ends()
#: Fields that SAME_STEP environments add when an episode ended; their other fields belong to the next episode.
_FINAL_KEYS = {"final_obs", "_final_obs", "final_info", "_final_info"}


def _seed_list(seeds: Sequence[int], mask: np.ndarray) -> list[int | None]:
    return [seed if chosen else None for seed, chosen in zip(seeds, mask, strict=True)]


def _seed_array(seeds: Sequence[int], mask: np.ndarray) -> np.ndarray:
    array: np.ndarray = np.asarray(seeds)[mask]
    return array


def _one_seed(seeds: Sequence[int], mask: np.ndarray) -> int:
    return seeds[int(np.flatnonzero(mask)[0])]
