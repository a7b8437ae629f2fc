"""The collection loop, shared by all samplers; it is independent of agents, processes, devices and semaphores."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np

from headrace.buffers.samples import FinalRegion, SlotSpec
from headrace.buffers.tree import allocate_like, tree_copy_into, tree_leaves, tree_map, tree_rows
from headrace.processes.status import Phase, Status
from headrace.rng import Stream, env_keys, uniforms
from headrace.samplers.collection.resets import ResetMode
from headrace.samplers.collection.slot_view import SlotView
from headrace.samplers.traj_info import EpisodeColumns, Episodes, TrajInfo
from headrace.types import Ends, EnvBatch, StepRow, Timing, Tree

__all__ = ["CollectionLoop", "null_rows", "private_array"]


def private_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Allocates a zeroed array in this process's private memory."""
    return np.zeros(shape, dtype)


def null_rows(example: Tree, *leading: int) -> Tree:
    """Allocates zeros `[*leading, ...]` in this process's private memory."""
    return allocate_like(example, leading, private_array)


_NO_COLUMNS = np.empty(0, np.intp)
_DETAILED = 61  # one row in so many is timed in detail; a prime, so it is not the same row of each batch


def _copy(leaf: Any) -> Any:
    """Copies an array or a scalar; `numpy.copy` would turn a scalar into an array."""
    return leaf.copy()


def _either(some: np.ndarray | None, others: np.ndarray | None) -> np.ndarray | None:
    """Returns the union of two masks as a new array."""
    if others is None:
        return some
    return others.copy() if some is None else some | others


@dataclass
class _Ended:
    """The episodes that ended in a batch so far, in (time, column) order."""

    times: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    observations: list[Tree] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    objects: list[TrajInfo] = field(default_factory=list)

    def add(self, t: int, ends: Ends, episodes: EpisodeColumns) -> None:
        """Adds the episodes that ended in time step t."""
        columns = ends.columns.tolist()
        self.times += [t] * len(columns)
        self.columns += columns
        self.observations.append(ends.observation)
        self.infos += ends.infos
        if episodes.objects is not None:
            self.objects += [episodes.end(column) for column in columns]


class CollectionLoop:
    """Steps the environments of one slice through batches and records what the environments return.

    `collect` is a generator: it yields t when row t is ready, and continues after the caller has written the actions of
    row t into the slot. The caller decides where the actions come from::

        for t in loop.collect(view):
            actor.act(t)

    The loop owns the environments, their current row and the statistics of the running episodes.
    """

    def __init__(
        self,
        envs: EnvBatch,
        spec: SlotSpec,
        *,
        status: Status,
        traj_info: tuple[type[TrajInfo], Mapping[str, Any]],
        reset_mode: ResetMode,
        phase: Phase = Phase.STEPPING,
    ) -> None:
        n = len(envs.env_ids)
        self.envs = envs
        self.status = status
        self.timing = Timing()
        self.episodes = EpisodeColumns(envs.env_ids, *traj_info, gap=int(envs.resetting is not None))
        self._reset_mode = reset_mode
        self._phase = phase
        self._observation = null_rows(spec.observation, n)
        self._is_first = np.ones(n, np.bool_)
        self._prev_action = null_rows(spec.action, n)
        self._prev_reward = np.zeros(n, np.float32)
        current = (self._observation, self._is_first, self._prev_action, self._prev_reward)
        self._current: list[np.ndarray] = tree_leaves(current)
        self._env_info = null_rows(spec.env_info, n)  # receives the infos of decorrelation steps
        self._infos: list[dict[str, Any]] = [{} for _ in range(n)]  # those of the last step, for `episodes.objects`

    def start(self, seed: int, max_decorrelation_steps: int, incarnation: int = 0) -> None:
        """Resets the environments, then takes 1 to `max_decorrelation_steps` random actions in each (0: none).

        Decorrelation prevents all environments of a batch from being at the start of an episode. Its steps count in the
        statistics of the running episodes; for the agent, row 0 starts an episode: `is_first`, null previous inputs,
        zero state.
        """
        self._reset_all()
        if max_decorrelation_steps:
            draws = uniforms(env_keys(seed, Stream.DECORRELATION, self.envs.env_ids), incarnation, 1, 1)[0, :, 0]
            counts = 1 + (draws * max_decorrelation_steps).astype(np.int64)
            if not self.envs.holds:
                counts[:] = max_decorrelation_steps  # environments that cannot be held all take the same number
            self._decorrelate(counts)
        self.envs.allow(self._reset_mode.resets)
        self.status.enter(Phase.WAITING)

    def row(self, row: int) -> tuple[Tree, Any]:
        """Returns the current inputs of a column and the statistics of its running episode.

        The inputs are observation, is_first, previous action, previous reward, and whether the environment waits.
        """
        columns = (self._observation, self._is_first, self._prev_action, self._prev_reward, self.envs.waiting)
        return tree_map(np.copy, tree_rows(columns, row)), self.episodes.running(row)

    def restore(self, rows: Sequence[Tree], running: Sequence[Any]) -> None:
        """Restores every column from what `row` returned; called instead of `start`."""
        for index, (observation, is_first, prev_action, prev_reward, _) in enumerate(rows):
            self.episodes.restore(index, running[index])
            tree_copy_into(tree_rows(self._observation, (index, ...)), observation)
            tree_copy_into(tree_rows(self._prev_action, (index, ...)), prev_action)
            self._is_first[index], self._prev_reward[index] = is_first, prev_reward
        self.envs.hold(np.array([waiting for *_, waiting in rows], np.bool_), self._observation)
        self.envs.allow(self._reset_mode.resets)

    def restart(self, reset_mode: ResetMode | None = None) -> None:
        """Resets every environment, even within an episode, and its number of further resets.

        Environments that run no episode in this mode wait as they are, unless they move while they are held.

        Args:
            reset_mode: when ended environments are reset from now on. Default: as before.
        """
        self._reset_mode = mode = reset_mode or self._reset_mode
        held = np.broadcast_to(0 if mode.resets is None else mode.resets, len(self.envs.env_ids)) < 0
        self._reset_all(np.flatnonzero(~held).tolist() if held.any() and not self.envs.moves_while_held else None)
        self.envs.allow(mode.resets)
        self.envs.hold(held, self._observation)

    def reset_waiting(self) -> None:
        """Resets the environments that waited for the end of the last batch."""
        if not (self._reset_mode.between_batches and self.envs.waiting.any()):
            return
        columns = np.flatnonzero(self.envs.waiting).tolist()
        self.status.enter(Phase.RESETTING)
        self.envs.reset(columns, self._observation)
        self._null_inputs(columns)
        self.envs.allow(self._reset_mode.resets)
        self.status.enter(Phase.WAITING)

    def collect(
        self, view: SlotView, n_rows: int, until_idle: bool = False, reads_previous: bool = True
    ) -> Generator[int, bool | None, None]:
        """Collects rows 0 to n_rows − 1: a whole batch, or fewer rows at the end of an evaluation; see the class.

        A caller that sends True, in place of the actions of row t, ends the batch before row t. Afterwards the episodes
        that ended are in `finished` and in the slot's final region.

        Args:
            view: the slice of the slot to fill.
            n_rows: number of rows.
            until_idle: whether to stop early when all environments wait.
            reads_previous: whether the caller reads more of a row than the observation: previous inputs and `is_first`.
                If not, they are written at the end.
        """
        slot, envs, timing, line, phase = view.slot, self.envs, self.timing, self.status.line, self._phase
        begin = perf_counter_ns()
        for to, value in zip(view.row(0), self._current, strict=True):
            to[...] = value
        view.begin()
        ended = _Ended()
        stepped = np.full(len(envs.env_ids), n_rows)
        stepped[envs.waiting] = 0
        may_wait, objects = self._reset_mode.waits, self.episodes.objects
        idle = envs.waiting.copy() if envs.waiting.any() else None  # columns that do not take step t
        resetting, n_resets = envs.resetting, 0
        if resetting is not None:
            slot.valid[0, resetting] = slot.is_first[0, resetting] = False
            n_resets = int(resetting.sum())
        by_row = reads_previous or may_wait or resetting is not None
        silent, beginning = None, _NO_COLUMNS
        until_detail = -timing.rows % _DETAILED
        self.status.enter(phase)
        for t in range(n_rows):
            if until_idle and envs.waiting.all():
                n_rows = t
                break
            line[Status.PHASE], line[Status.STEP] = Phase.ACTING, t
            line[Status.PROGRESS] += 1
            detail = timing if t == until_detail else None
            if detail:
                until_detail += _DETAILED
                row_begin = perf_counter_ns()
            if (yield t):
                n_rows = t
                break
            if detail:
                row_begin = max(row_begin, detail.turned_to_ns)
                detail.acting_ns += perf_counter_ns() - row_begin
            line[Status.PHASE], line[Status.STEP] = phase, t  # set again: loops of several slices share the line
            line[Status.PROGRESS] += 1
            out = view.step_rows[t]
            if resetting is not None:
                beginning = resetting.nonzero()[0]
            if objects is not None:
                silent, out.infos = _either(idle, resetting), self._infos
            ends = envs.step(view.actions[t], out, detail)
            if by_row:
                for to, action in zip(view.prev_action_leaves[t + 1], view.action_leaves[t], strict=True):
                    to[...] = action
                view.prev_rewards[t + 1][...] = view.rewards[t]
            if objects is not None:
                self._step_objects(tree_rows(slot.observation, t), view.actions[t], out, silent)
            if len(beginning):
                self._start_episodes(view, t, beginning)
            if len(ends.columns):
                ended.add(t, ends, self.episodes)
                if by_row:
                    self._start_episodes(view, t, ends.columns)
                if may_wait:
                    self._pad(view, t, ends.columns[envs.waiting[ends.columns]], stepped)
                if resetting is not None:
                    n_resets += self._skip(view, t, resetting.nonzero()[0])
            if may_wait and (idle is not None or envs.waiting.any()):
                self._blank(view, t, idle)
                idle = envs.waiting.copy()
            if detail:
                detail.row_ns += perf_counter_ns() - row_begin
                detail.detailed_rows += 1
        if not by_row:
            view.write_previous(n_rows, ended.times, ended.columns)
        for to, value in zip(self._current, view.row(n_rows), strict=True):
            to[...] = value
        self.n_final = len(ended.times)
        self.overflow = view.write_finals(ended.times, ended.columns, ended.observations)
        self.finished = self.episodes.add(
            slot.reward[:n_rows], stepped, ended.times, ended.columns, ended.infos, ended.objects
        )
        timing.rows += n_rows
        timing.steps += int(stepped.sum()) - n_resets
        timing.batch_ns += perf_counter_ns() - begin
        self.status.enter(Phase.WAITING)

    #: The episodes that ended in the last `collect`: their statistics, their number, and the final entries that did not
    #: fit into the slot's region (None if all did).
    finished: Episodes
    n_final: int
    overflow: FinalRegion | None

    def _start_episodes(self, view: SlotView, t: int, columns: np.ndarray) -> None:
        """Marks row t + 1 as the start of an episode in these columns, whose episodes ended in step t."""
        for leaf in view.prev_action_leaves[t + 1]:
            leaf[columns] = 0
        view.prev_rewards[t + 1][columns] = 0
        view.is_first[t + 1][columns] = True

    def _pad(self, view: SlotView, t: int, columns: np.ndarray, stepped: np.ndarray) -> None:
        """Marks the rest of the batch as padding in these columns, which stopped in step t and wait."""
        view.is_first[t + 1][columns] = False
        view.slot.valid[t + 1 :, columns] = False
        stepped[columns] = t + 1

    def _skip(self, view: SlotView, t: int, columns: np.ndarray) -> int:
        """Marks step t + 1 as padding in these columns, which spend it on a reset; the next row starts an episode.

        Returns the number of these padded rows that lie in this batch; the next batch handles its own row 0.
        """
        view.is_first[t + 1][columns] = False
        view.slot.valid[t + 1 : t + 2, columns] = False
        return len(columns) if t + 1 < len(view.slot.valid) else 0

    def _blank(self, view: SlotView, t: int, idle: np.ndarray | None) -> None:
        """Zeros the fields that waiting environments do not write: inputs of row t + 1 and env_info of row t."""
        waiting = self.envs.waiting
        for leaf in (*tree_leaves(view.step_rows[t].observation), *view.prev_action_leaves[t + 1]):
            leaf[waiting] = 0
        view.prev_rewards[t + 1][waiting] = 0
        if idle is not None:
            for leaf in tree_leaves(view.step_rows[t].env_info):
                leaf[idle] = 0

    def _step_objects(self, observation: Tree, action: Tree, out: StepRow, idle: np.ndarray | None) -> None:
        """Calls the overridden `TrajInfo.step` of each environment that took this step, with copies it may keep."""
        objects, infos = self.episodes.objects, self._infos
        assert objects is not None
        for index, traj_info in enumerate(objects):
            if idle is None or not idle[index]:
                traj_info.step(
                    tree_map(_copy, tree_rows(observation, index)),
                    tree_map(_copy, tree_rows(action, index)),
                    float(out.reward[index]),
                    bool(out.terminated[index]),
                    bool(out.truncated[index]),
                    infos[index],
                )

    def _decorrelate(self, counts: np.ndarray) -> None:
        """Steps environment b `counts[b]` times with random actions; the next row starts an episode for the agent.

        Environments that move while they are held restart when their steps begin, so they take their steps at the end.
        """
        n_rows, n = int(counts.max()), len(counts)
        offsets = n_rows - counts if self.envs.moves_while_held else np.zeros(n, np.int64)
        reward = np.zeros((n_rows, n), np.float32)
        floats = [leaf for leaf in tree_leaves(self._observation) if leaf.dtype.kind == "f"]
        ended = _Ended()
        self.status.enter(Phase.DECORRELATING)
        for t in range(n_rows):
            self.status.line[Status.STEP] = t
            self.status.line[Status.PROGRESS] += 1
            held = (t < offsets) | (t >= offsets + counts)
            self.envs.hold(held, self._observation)
            infos = None if self.episodes.objects is None else self._infos
            terminated, truncated = np.zeros((2, n), np.bool_)
            out = StepRow(self._observation, reward[t], terminated, truncated, self._env_info, floats, infos)
            before = tree_map(np.copy, self._observation) if self.episodes.objects is not None else None
            silent = _either(held, self.envs.resetting)
            actions = self.envs.random_actions(self._observation)
            ends = self.envs.step(actions, out)
            if self.episodes.objects is not None:
                self._step_objects(before, actions, out, silent)
            if len(ends.columns):
                ended.add(t, ends, self.episodes)
        self.envs.hold(np.zeros(n, np.bool_), self._observation)
        stepped = offsets + counts
        self.episodes.add(reward, stepped, ended.times, ended.columns, ended.infos, ended.objects, offsets)

    def _reset_all(self, columns: Sequence[int] | None = None) -> None:
        """Resets every environment, or only these columns, with null previous inputs and empty statistics for all."""
        self.status.enter(Phase.RESETTING)
        self.envs.reset(columns, self._observation)
        self._null_inputs(slice(None))
        self.episodes.restart()

    def _null_inputs(self, columns: Any) -> None:
        """Sets the previous inputs of columns that start an episode."""
        self._is_first[columns] = True
        self._prev_reward[columns] = 0
        for leaf in tree_leaves(self._prev_action):
            leaf[columns] = 0
