"""Episodes in the order in which they were started: which of them a call returns, and which are carried over."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from headrace.buffers.tree import tree_map
from headrace.samplers.episodes.batch import EPISODE_FIELDS, INFO_LISTS, STEP_FIELDS, EpisodeBatch

__all__ = ["Discarded", "StartedEpisodes", "order_of_starts"]

_NEVER = np.iinfo(np.int64).max
_LARGE_ROW = 1024  # bytes


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
        ended: the same with the row in which it ended.
        version: oldest version of its steps.
        env_id: global number of the environment.
    """

    batch: np.ndarray
    number: np.ndarray
    first: np.ndarray
    length: np.ndarray
    order: np.ndarray
    ended: np.ndarray
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
            order_of_starts(batch.starts + batch.lengths, batch.env_ids),
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

    @property
    def mean_length(self) -> int:
        """Mean length of ended episodes, rounded up; 0 without any."""
        return math.ceil(self.n_steps / max(len(self._ended.length), 1))

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
        chosen = np.argsort(ended.ended if by_arrival else ended.order, kind="stable")
        if not (by_arrival or unsettled):
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
        """Returns these episodes in one batch."""
        batches = {index: self._batches[index] for index in np.unique(entries.batch).tolist()}
        place = {index: number for number, index in enumerate(batches)}
        numbers = [place[index] for index in entries.batch.tolist()]
        parts = list(batches.values())
        steps = _Pieces(numbers, entries.first, entries.length, [len(part.rewards) for part in parts])
        whole = _Pieces(numbers, entries.number, np.ones_like(entries.number), [len(part) for part in parts])
        values: dict[str, Any] = {
            name: tree_map(steps.joined, *(getattr(part, name) for part in parts)) for name in STEP_FIELDS
        }
        values |= {name: tree_map(whole.joined, *(getattr(part, name) for part in parts)) for name in EPISODE_FIELDS}
        for name in INFO_LISTS:
            lists = [getattr(part, name) for part in parts]
            values[name] = [lists[part][number] for part, number in zip(numbers, entries.number.tolist(), strict=True)]
        return EpisodeBatch(env_spec=parts[0].env_spec, **values)


class _Pieces:
    """Pieces of several arrays that are joined to one.

    Args:
        numbers: for each piece, which array it is in.
        first: for each piece, its first row there, int64 `[N]`.
        length: for each piece, its number of rows, int64 `[N]`.
        sizes: number of rows of each array.
    """

    def __init__(self, numbers: Sequence[int], first: np.ndarray, length: np.ndarray, sizes: Sequence[int]) -> None:
        self._slices = [
            (number, slice(start, start + n))
            for number, start, n in zip(numbers, first.tolist(), length.tolist(), strict=True)
        ]
        offset = np.cumsum(sizes) - sizes
        begin = np.cumsum(length) - length
        self._rows = np.arange(int(length.sum())) + np.repeat(offset[list(numbers)] + first - begin, length)

    def joined(self, *arrays: np.ndarray) -> np.ndarray:
        """Returns the pieces one after another. Small rows are copied twice, in fewer calls; large ones once."""
        if arrays[0].itemsize * math.prod(arrays[0].shape[1:]) > _LARGE_ROW:
            return np.concatenate([arrays[number][rows] for number, rows in self._slices])
        whole = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        chosen: np.ndarray = whole[self._rows]
        return chosen
