"""Episodes in the order in which they were started: which of them a call returns, and which are carried over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from headrace.buffers.tree import tree_leaves, tree_map
from headrace.samplers.episodes.batch import EPISODE_FIELDS, INFO_LISTS, STEP_FIELDS, EpisodeBatch
from headrace.types import Tree

__all__ = ["Discarded", "StartedEpisodes", "order_of_starts"]

_NEVER = np.iinfo(np.int64).max


def order_of_starts(rows: np.ndarray, env_ids: np.ndarray) -> np.ndarray:
    """Returns numbers that sort episodes by (row of the worker in which they started, env id).

    Args:
        rows: int64 `[N]`, below 2^32.
        env_ids: int64 `[N]`, below 2^31.
    """
    order: np.ndarray = (rows << 31) + env_ids
    return order


@dataclass
class Discarded:
    """What was collected and not returned.

    Args:
        episodes: number of whole episodes.
        steps: number of steps, also of episodes that were broken off.
    """

    episodes: int = 0
    steps: int = 0


@dataclass
class _Entries:
    """Ended episodes, one entry each, int64 `[N]`.

    Args:
        batch: index of the batch.
        number: number of the episode in the batch.
        first: its first step in the batch.
        length: number of steps.
        order: see `order_of_starts`.
        version: oldest version of its steps.
        env_id: global number of the environment.
    """

    batch: np.ndarray
    number: np.ndarray
    first: np.ndarray
    length: np.ndarray
    order: np.ndarray
    version: np.ndarray
    env_id: np.ndarray

    @staticmethod
    def of(index: int, batch: EpisodeBatch) -> _Entries:
        first = np.cumsum(batch.lengths) - batch.lengths
        return _Entries(
            np.full(len(batch), index),
            np.arange(len(batch)),
            first,
            batch.lengths,
            order_of_starts(batch.starts, batch.env_ids),
            np.minimum.reduceat(batch.versions, first),
            batch.env_ids,
        )

    @staticmethod
    def joined(parts: Sequence[_Entries]) -> _Entries:
        names = [field.name for field in fields(_Entries)]
        return _Entries(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def where(self, index: Any) -> _Entries:
        return _Entries(*(values[index] for values in vars(self).values()))


class StartedEpisodes:
    """The episodes that workers have started, and those of them that ended and were not returned yet.

    The order of starts counts in rows, so it does not depend on how fast a worker is. Taking the first episodes in this
    order does not favour short ones.
    """

    def __init__(self) -> None:
        self._batches: dict[int, EpisodeBatch] = {}
        self._n_batches = 0
        none = np.zeros(0, np.int64)
        self._ended = _Entries(*[none] * len(fields(_Entries)))
        self._earliest = _NEVER  # of the running episodes
        #: What was collected and not returned, over all calls.
        self.discarded = Discarded()

    @property
    def n_steps(self) -> int:
        """Number of steps of ended episodes."""
        return int(self._ended.length.sum())

    def add(self, ended: Sequence[EpisodeBatch], running: np.ndarray) -> None:
        """Adds what the workers returned.

        Args:
            ended: the episodes that ended.
            running: `order_of_starts` of the episodes that are running now, of all workers.
        """
        parts = [self._ended]
        for batch in ended:
            if len(batch):
                self._batches[self._n_batches] = batch
                parts.append(_Entries.of(self._n_batches, batch))
                self._n_batches += 1
        self._ended = _Entries.joined(parts)
        self._earliest = int(running.min(initial=_NEVER))

    def drop_older(self, version: int) -> None:
        """Drops ended episodes that have a step of an older version of the parameters."""
        old = self._ended.version < version
        if old.any():
            self._drop(old)

    def drop_of(self, env_ids: Collection[int]) -> None:
        """Drops ended episodes of some environments."""
        self._drop(np.isin(self._ended.env_id, list(env_ids)))

    def take(self, n_steps: int, *, unsettled: bool = False, by_arrival: bool = False) -> EpisodeBatch | None:
        """Returns the first episodes with at least `n_steps` steps; None while one of them may still run.

        Args:
            n_steps: number of steps.
            unsettled: whether to return what has ended in any case, even if it is less or an earlier episode still
                runs.
            by_arrival: whether to take episodes in the order in which they ended.
        """
        ended = self._ended
        chosen = np.arange(len(ended.length))
        if not by_arrival:
            chosen = np.argsort(ended.order, kind="stable")
            if not unsettled:
                chosen = chosen[ended.order[chosen] < self._earliest]
        enough = np.flatnonzero(np.cumsum(ended.length[chosen]) >= n_steps)
        if not len(chosen) or not (len(enough) or unsettled):
            return None
        chosen = chosen[: enough[0] + 1] if len(enough) else chosen
        taken = self._gathered(ended.where(chosen))
        left = np.ones(len(ended.length), np.bool_)
        left[chosen] = False
        self._keep(left)
        return taken

    def _drop(self, old: np.ndarray) -> None:
        self.discarded.episodes += int(old.sum())
        self.discarded.steps += int(self._ended.length[old].sum())
        self._keep(~old)

    def _keep(self, kept: np.ndarray) -> None:
        self._ended = self._ended.where(kept)
        used = {*self._ended.batch.tolist()}
        self._batches = {index: batch for index, batch in self._batches.items() if index in used}

    def _gathered(self, entries: _Entries) -> EpisodeBatch:
        """Returns these episodes in one batch; each field is copied once."""
        steps = [
            (index, slice(first, first + length))
            for index, first, length in zip(
                entries.batch.tolist(), entries.first.tolist(), entries.length.tolist(), strict=True
            )
        ]
        places = list(zip(entries.batch.tolist(), entries.number.tolist(), strict=True))
        whole = [(index, slice(number, number + 1)) for index, number in places]
        values: dict[str, Any] = {name: self._joined(name, steps) for name in STEP_FIELDS}
        values |= {name: self._joined(name, whole) for name in EPISODE_FIELDS}
        for name in INFO_LISTS:
            values[name] = [getattr(self._batches[index], name)[number] for index, number in places]
        return EpisodeBatch(env_spec=self._batches[steps[0][0]].env_spec, **values)

    def _joined(self, name: str, pieces: Sequence[tuple[int, slice]]) -> Tree:
        """Concatenates pieces of a field of several batches."""
        leaves = {index: tree_leaves(getattr(self._batches[index], name)) for index, _ in pieces}
        example = pieces[0][0]
        joined = iter(
            [
                np.concatenate([leaves[index][number][rows] for index, rows in pieces])
                for number in range(len(leaves[example]))
            ]
        )
        return tree_map(lambda _: next(joined), getattr(self._batches[example], name))
