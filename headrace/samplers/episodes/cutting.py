"""Cuts the rows of a slot into whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.buffers.samples import FinalRegion, Slot
from headrace.buffers.tree import tree_leaves, tree_map, tree_rows
from headrace.envs.infos import info_copy
from headrace.samplers.episodes.batch import EpisodeBatch
from headrace.samplers.episodes.steps import EnvSpec, StepType
from headrace.samplers.traj_info import Episodes
from headrace.types import Tree

__all__ = ["Counts", "EpisodeCutter"]

#: Steps of one column: the arrays of the recorded fields, `[n, ...]` each.
_Piece = list[np.ndarray]


@dataclass
class Counts:
    """What a worker has done, over all agents and environments that it was given.

    Args:
        row: number of the next row.
        steps: steps of each environment, int64 `[n]`.
        numbers: number of the last episode that each environment started, int64 `[n]`; -1 before the first.
    """

    row: int
    steps: np.ndarray
    numbers: np.ndarray

    @staticmethod
    def new(n: int, restarts: int) -> Counts:
        """Returns the counts of `n` environments of a new worker.

        Args:
            n: number of environments.
            restarts: how many times the worker was started again: it must not use a number, or noise, that it has used.
        """
        return Counts(0, np.full(n, restarts << 40), np.full(n, (restarts << 32) - 1))


class EpisodeCutter:
    """Collects the steps of running episodes, and returns the episodes that ended.

    Every recorded field is copied: once when the episode ends in the same rows in which it started, and once more for
    every time that the slot is overwritten before.

    Args:
        slot: the slot that is overwritten repeatedly; one column per environment.
        env_ids: global numbers of the environments.
        env_spec: of the batches that are returned.
        new_infos: for each environment, the infos of resets whose episodes have not ended; the last one is the newest.
        counts: updated with every row.
    """

    def __init__(
        self,
        slot: Slot,
        env_ids: Sequence[int],
        env_spec: EnvSpec,
        new_infos: Sequence[list[dict[str, Any]]],
        counts: Counts,
    ) -> None:
        n = len(env_ids)
        self._slot = slot
        self._env_ids = np.asarray(env_ids, np.int64)
        self._env_spec = env_spec
        self._new_infos = new_infos
        self._steps = (
            slot.observation,
            slot.action,
            slot.reward,
            slot.env_info or {},
            slot.agent_info,
            slot.version,
        )
        self._leaves: _Piece = tree_leaves(self._steps)
        self._open: list[list[_Piece]] = [[] for _ in env_ids]
        self._counts = counts
        self._numbers = counts.numbers
        self._cut = np.zeros(n, np.bool_)  # whether steps of the running episode were returned as a fragment
        #: Rows in which the running episodes started, int64 `[n]`.
        self.starts = np.zeros(n, np.int64)

    @property
    def n_open(self) -> int:
        """Number of steps of running episodes that are kept."""
        return sum(len(piece[0]) for pieces in self._open for piece in pieces)

    def restart(self, waiting: np.ndarray) -> None:
        """Drops the running episodes; new ones start in all environments that do not wait.

        Args:
            waiting: bool `[n]`, environments without an episode.
        """
        self._open = [[] for _ in self._open]
        self._numbers[~waiting] += 1
        self._cut[:] = False
        self.starts[~waiting] = self._counts.row
        for infos in self._new_infos:
            del infos[:-1]

    def cut(
        self, n_rows: int, finished: Episodes, final: FinalRegion, gap: int, waiting: np.ndarray
    ) -> EpisodeBatch | None:
        """Takes the rows of the slot; returns the episodes that ended in them, by column and time, or None.

        Args:
            n_rows: number of rows.
            finished: the episodes that ended.
            final: their final entries, in the same order.
            gap: 1 where an environment takes another row to reset.
            waiting: bool `[n]`, environments whose last episode ended.
        """
        times, columns = finished.time, finished.env_id - self._env_ids[0]
        order = np.argsort(columns, kind="stable")
        by_column: dict[int, list[int]] = {}
        for time, column in zip(times[order].tolist(), columns[order].tolist(), strict=True):
            by_column.setdefault(column, []).append(time)
        valid = self._slot.valid[:n_rows]
        whole = bool(valid.all())
        pieces: list[_Piece] = []
        lengths: list[int] = []
        firsts: list[bool] = []
        numbers: list[int] = []
        starts: list[int] = []
        infos: list[dict[str, Any]] = []
        for column, opened in enumerate(self._open):
            counts = None if whole else np.cumsum(valid[:, column])
            begin = 0
            for index, time in enumerate(by_column.get(column, ())):
                length = time + 1 - begin if counts is None else int(counts[time] - (counts[begin - 1] if begin else 0))
                if index == 0:
                    length += sum(len(piece[0]) for piece in opened)
                lengths.append(length)
                firsts.append(not self._cut[column])
                numbers.append(int(self._numbers[column]))
                starts.append(int(self.starts[column]))
                infos.append(self._new_infos[column].pop(0) if self._new_infos else {})
                begin = time + 1
                self._cut[column] = False
                self._numbers[column] += 1
                self.starts[column] = self._counts.row + begin + gap
            if begin:
                pieces += [*opened, self._piece(column, 0, begin, whole)]
                opened.clear()
                if waiting[column]:
                    self._numbers[column] -= 1  # no other episode has started
            if begin < n_rows and not waiting[column]:
                piece = self._piece(column, begin, n_rows, whole)
                if len(piece[0]):
                    opened.append([leaf.copy() for leaf in piece] if whole else piece)
        self._counts.row += n_rows
        if not whole:  # up to the last row in which an environment stepped: the noise of a row is never used again
            self._counts.steps += np.where(valid.any(axis=0), n_rows - np.argmax(valid[::-1], axis=0), 0)
        else:
            self._counts.steps += n_rows
        if not lengths:
            return None
        terminated = self._slot.terminated[times[order], columns[order]]
        return self._batch(
            pieces,
            np.array(lengths),
            np.array(firsts),
            np.where(terminated, np.uint8(StepType.TERMINAL), np.uint8(StepType.TIMEOUT)),
            {
                "last_observations": tree_rows(final.observation, order),
                "env_ids": finished.env_id[order],
                "numbers": np.array(numbers),
                "starts": np.array(starts),
                "episode_infos": infos,
                "last_infos": [finished.infos[index] for index in order.tolist()],
            },
        )

    def fragments(self, observation: Tree) -> EpisodeBatch | None:
        """Returns the steps of running episodes that were not returned yet, as episodes that go on; None without any.

        Args:
            observation: observations of the next row, tree of `[n, ...]`.
        """
        columns = [column for column, pieces in enumerate(self._open) if pieces]
        if not columns:
            return None
        infos = self._new_infos
        batch = self._batch(
            [piece for column in columns for piece in self._open[column]],
            np.array([sum(len(piece[0]) for piece in self._open[column]) for column in columns]),
            ~self._cut[columns],
            np.full(len(columns), StepType.MID, np.uint8),
            {
                "last_observations": tree_rows(observation, np.array(columns)),
                "env_ids": self._env_ids[columns],
                "numbers": self._numbers[columns].copy(),
                "starts": self.starts[columns].copy(),
                "episode_infos": [info_copy(infos[column][0]) if infos else {} for column in columns],
                "last_infos": [{} for _ in columns],
            },
        )
        for column in columns:
            self._open[column].clear()
        self._cut[columns] = True
        self.starts[columns] = self._counts.row
        return batch

    def _piece(self, column: int, begin: int, end: int, whole: bool) -> _Piece:
        """Returns the steps of a column in rows [begin, end): views, or without padding copies."""
        if whole:
            return [leaf[begin:end, column] for leaf in self._leaves]
        rows = begin + np.flatnonzero(self._slot.valid[begin:end, column])
        return [leaf[rows, column] for leaf in self._leaves]

    def _batch(
        self,
        pieces: Sequence[_Piece],
        lengths: np.ndarray,
        firsts: np.ndarray,
        last_types: np.ndarray,
        episodes: dict[str, Any],
    ) -> EpisodeBatch:
        """Returns a batch from the steps of its episodes in order.

        Args:
            pieces: the steps.
            lengths: int `[N]`.
            firsts: bool `[N]`, whether the steps begin with the first of the episode.
            last_types: uint8 `[N]`, types of the last steps.
            episodes: the other fields with one entry per episode.
        """
        joined = iter([np.concatenate(leaves) for leaves in zip(*pieces, strict=True)])
        observations, actions, rewards, env_infos, agent_infos, versions = tree_map(lambda _: next(joined), self._steps)
        ends = np.cumsum(lengths)
        step_types = np.full(ends[-1], StepType.MID, np.uint8)
        step_types[(ends - lengths)[firsts]] = StepType.FIRST
        step_types[ends - 1] = np.where(
            (last_types == StepType.MID) & (lengths == 1) & firsts, np.uint8(StepType.FIRST), last_types
        )
        return EpisodeBatch(
            env_spec=self._env_spec,
            observations=observations,
            actions=actions,
            rewards=rewards,
            step_types=step_types,
            lengths=lengths,
            env_infos=env_infos,
            agent_infos=agent_infos,
            versions=versions,
            **episodes,
        )
