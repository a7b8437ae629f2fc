"""Statistics of episodes: the `TrajInfo` that users get, and the running columns from which it is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat
from operator import itemgetter
from typing import Any, overload

import numpy as np
from typing_extensions import override

from headrace import compiled

__all__ = ["EpisodeColumns", "Episodes", "TrajInfo", "TrajInfos"]


@dataclass
class TrajInfo:
    """Statistics of one episode. Runners log the fields in CamelCase; a subclass may add more and override `step`.

    Args:
        Length: number of steps.
        Return: sum of rewards.
        DiscountedReturn: sum of discount^t · reward.
        NonzeroRewards: number of nonzero rewards.
        env_id: global number of the environment.
        finished: False for an evaluation episode cut by `eval_max_steps`.
        info: a copy of the last info dict of the episode.
        discount: discount factor, from `traj_info_kwargs`.
    """

    Length: int = 0
    Return: float = 0.0
    DiscountedReturn: float = 0.0
    NonzeroRewards: int = 0
    env_id: int = -1
    finished: bool = True
    info: dict[str, Any] = field(default_factory=dict)
    discount: float = 1.0

    def step(
        self, observation: Any, action: Any, reward: float, terminated: bool, truncated: bool, env_info: dict[str, Any]
    ) -> None:
        """Updates the statistics with one step of the episode; override it in subclasses.

        The sampler calls it only in subclasses that override it, because it costs one Python call per step. Observation
        and action are those of time step t, and the other arguments are what `env.step` returned. All are copies that
        the method may keep and modify. In `env_info`, containers and arrays are copied; other objects belong to the
        environment.
        """


_BASE_FIELDS = frozenset(base.name for base in fields(TrajInfo))


@dataclass
class Episodes:
    """Finished episodes of one slice in (time, column) order, as columns `[N]`; workers send these to the sampler.

    Args:
        time: row of the batch in which the episode ended.
        env_id: global number of the environment.
        length: `TrajInfo.Length`.
        ret: `TrajInfo.Return`.
        discounted: `TrajInfo.DiscountedReturn`.
        nonzero: `TrajInfo.NonzeroRewards`.
        finished: `TrajInfo.finished`.
        infos: the last info dict of each episode.
        own: the fields that a `TrajInfo` subclass added, if it overrides `step`; else None. They are dicts because
            pickle cannot find a class defined in a script by name in a spawned worker.
    """

    time: np.ndarray
    env_id: np.ndarray
    length: np.ndarray
    ret: np.ndarray
    discounted: np.ndarray
    nonzero: np.ndarray
    finished: np.ndarray
    infos: list[dict[str, Any]]
    own: list[dict[str, Any]] | None

    @property
    def is_plain(self) -> bool:
        """Whether the numbers are all there is."""
        return self.own is None and not any(self.infos)

    def write(self, numbers: np.ndarray) -> None:
        """Writes all numbers into one array, int64 `[7, N]`."""
        numbers[:5] = self.time, self.env_id, self.length, self.nonzero, self.finished
        numbers[5:].view(np.float64)[:] = self.ret, self.discounted

    @staticmethod
    def of(numbers: np.ndarray, infos: list[dict[str, Any]] | None = None) -> Episodes:
        """Returns the episodes whose numbers `write` wrote; they are views of the array.

        Args:
            numbers: int64 `[7, N]`.
            infos: the last info dict of each episode. Default: empty ones.
        """
        time, env_id, length, nonzero, finished = numbers[:5]
        ret, discounted = numbers[5:].view(np.float64)
        infos = [{} for _ in time] if infos is None else infos
        return Episodes(time, env_id, length, ret, discounted, nonzero, finished.astype(np.bool_), infos, None)

    def __getstate__(self) -> tuple[bytearray, list[dict[str, Any]] | None, list[dict[str, Any]] | None]:
        """Returns all numbers in one piece, because each array takes 5 µs to pickle and 5 to unpickle."""
        numbers = np.empty((7, len(self.time)), np.int64)
        self.write(numbers)
        return bytearray(numbers.data), self.infos if any(self.infos) else None, self.own

    def __setstate__(self, state: tuple[bytearray, list[dict[str, Any]] | None, list[dict[str, Any]] | None]) -> None:
        data, infos, own = state
        vars(self).update(vars(Episodes.of(np.frombuffer(data, np.int64).reshape(7, -1), infos)), own=own)


class EpisodeColumns:
    """Statistics of the running episodes of `n` environments, in float64; updated once per batch.

    Sums are taken per episode and batch, so they do not depend on which environments share a slice.

    Args:
        env_ids: global numbers of the environments.
        cls: the `TrajInfo` class.
        kwargs: arguments of the class.
        gap: number of rows after each episode end that belong to no episode: 1 where environments need an extra step to
            reset.
    """

    def __init__(self, env_ids: Sequence[int], cls: type[TrajInfo], kwargs: Mapping[str, Any], gap: int = 0) -> None:
        n = len(env_ids)
        self._gap = gap
        self._first = np.zeros(n, np.int64)  # the first row of the next batch that belongs to an episode
        self._env_ids = np.asarray(env_ids, np.int64)
        self._cls, self._kwargs = cls, kwargs
        self._discount = self._new().discount
        self._length = np.zeros(n, np.int64)
        self._return = np.zeros(n)
        self._discounted = np.zeros(n)
        self._nonzero = np.zeros(n, np.int64)
        #: The running `TrajInfo`s, on which the loop calls `step`; None if the class does not override it.
        self.objects: list[TrajInfo] | None = None if cls.step is TrajInfo.step else [self._new() for _ in range(n)]

    def _new(self) -> TrajInfo:
        return self._cls(**self._kwargs)

    def restart(self) -> None:
        """Discards the running episodes."""
        for column in (self._length, self._return, self._discounted, self._nonzero, self._first):
            column[:] = 0
        if self.objects is not None:
            self.objects = [self._new() for _ in self.objects]

    def add(
        self,
        reward: np.ndarray,
        stepped: np.ndarray,
        times: Sequence[int],
        columns: Sequence[int],
        infos: list[dict[str, Any]],
        objects: list[TrajInfo],
        offset: np.ndarray | None = None,
    ) -> Episodes:
        """Adds a batch and returns the episodes that it finished.

        Args:
            reward: rewards, float `[T, n]`.
            stepped: int `[n]`; each environment took its steps in rows 0 to stepped − 1.
            times: `[N]`, rows in which episodes ended, in (time, column) order.
            columns: `[N]`, columns in which they ended.
            infos: `[N]`, last info dicts of the ended episodes.
            objects: `[N]`, `TrajInfo`s of the ended episodes; empty if the class does not override `step`.
            offset: int `[n]`, number of rows at the beginning in which the environment did not step. Default: none.
        """
        begin = self._first if offset is None else np.maximum(self._first, offset)
        end_time, end_column = np.asarray(times, np.int64), np.asarray(columns, np.int64)
        add = self._add if compiled.batch is None else self._add_natively
        length, ret, discounted, nonzero = add(reward, stepped, end_time, end_column, begin)
        return Episodes(
            end_time,
            self._env_ids[end_column],
            length,
            ret,
            discounted,
            nonzero,
            np.ones(len(end_time), np.bool_),
            infos,
            [_own_fields(traj_info) for traj_info in objects] if self.objects is not None else None,
        )

    def _add_natively(
        self, reward: np.ndarray, stepped: np.ndarray, end_time: np.ndarray, end_column: np.ndarray, begin: np.ndarray
    ) -> Sequence[np.ndarray]:
        """Does the same as `_add`, up to rounding."""
        assert compiled.batch is not None
        ended: Sequence[np.ndarray] = compiled.batch.add_episodes(
            reward,
            stepped,
            end_time,
            end_column,
            begin,
            self._gap,
            self._discount,
            self._first,
            self._length,
            self._return,
            self._discounted,
            self._nonzero,
        )
        return ended

    def _add(
        self, reward: np.ndarray, stepped: np.ndarray, end_time: np.ndarray, end_column: np.ndarray, begin: np.ndarray
    ) -> Sequence[np.ndarray]:
        """Returns length, return, discounted return and nonzero rewards of the ended episodes; updates the running."""
        n_rows = len(reward)
        order = np.argsort(end_column, kind="stable")  # segments below are sorted by (column, time)
        after_end = begin.copy()
        after_end[end_column] = end_time + 1 + self._gap  # times ascend, so the last end of a column wins
        running = np.flatnonzero(stepped > after_end)

        stop = np.concatenate([end_time[order] + 1, stepped[running]])
        column = np.concatenate([end_column[order], running])
        start = np.concatenate([self._starts(end_time[order], end_column[order], begin), after_end[running]])
        sums, discounted, nonzero = self._sum(reward, column * n_rows + start, column * n_rows + stop)
        first = start == begin[column]  # these segments continue episodes of earlier batches
        self._first = np.maximum(after_end - n_rows, 0)
        discounted *= np.where(first, self._discount ** self._length[column], 1.0)
        length = stop - start + np.where(first, self._length[column], 0)
        sums += np.where(first, self._return[column], 0.0)
        discounted += np.where(first, self._discounted[column], 0.0)
        nonzero += np.where(first, self._nonzero[column], 0)

        n_ends = len(order)
        back = np.empty(n_ends, np.int64)
        back[order] = np.arange(n_ends)
        for total, values in (
            (self._length, length),
            (self._return, sums),
            (self._discounted, discounted),
            (self._nonzero, nonzero),
        ):
            total[end_column] = 0
            total[running] = values[n_ends:]
        return [values[:n_ends][back] for values in (length, sums, discounted, nonzero)]

    def unfinished(self, time: int) -> Episodes:
        """Returns the running episodes with `finished=False`, without those that have no step yet."""
        columns = np.flatnonzero(self._length)
        return Episodes(
            np.full(len(columns), time),
            self._env_ids[columns],
            self._length[columns],
            self._return[columns],
            self._discounted[columns],
            self._nonzero[columns],
            np.zeros(len(columns), np.bool_),
            [{} for _ in columns],
            None if self.objects is None else [_own_fields(self.objects[column]) for column in columns],
        )

    def running(self, row: int) -> tuple[int, float, float, int, TrajInfo | None]:
        """Returns the statistics of one column's running episode: length, return, discounted return, nonzero rewards,
        object.
        """
        columns = (self._length, self._return, self._discounted, self._nonzero)
        length, ret, discounted, nonzero = (column[row].item() for column in columns)
        return length, ret, discounted, nonzero, None if self.objects is None else self.objects[row]

    def restore(self, row: int, running: tuple[int, float, float, int, TrajInfo | None]) -> None:
        """Restores what `running` returned."""
        self._length[row], self._return[row], self._discounted[row], self._nonzero[row] = running[:4]
        if self.objects is not None and running[4] is not None:
            self.objects[row] = running[4]

    def end(self, row: int) -> TrajInfo:
        """Returns the `TrajInfo` of an ended episode and starts a new one."""
        assert self.objects is not None
        finished, self.objects[row] = self.objects[row], self._new()
        return finished

    def _starts(self, times: np.ndarray, columns: np.ndarray, begin: np.ndarray) -> np.ndarray:
        """Returns where each ended segment begins: after the previous end in its column, or where the column begins.

        Sorted by (column, time).
        """
        starts: np.ndarray = begin[columns]
        same_column = columns[1:] == columns[:-1]
        starts[1:][same_column] = times[:-1][same_column] + 1 + self._gap
        return starts

    def _sum(
        self, reward: np.ndarray, start: np.ndarray, stop: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns sums, discounted sums (from each start) and nonzero counts of flat segments [start, stop)."""
        length = stop - start
        flat = np.append(reward.T.astype(np.float64).reshape(-1), 0.0)  # one extra: reduceat needs stop < len
        bounds = np.stack([start, stop], axis=1).reshape(-1)
        sums = np.add.reduceat(flat, bounds)[::2]
        nonzero = np.add.reduceat((flat != 0).astype(np.int64), bounds)[::2]
        if self._discount == 1.0:
            return sums, sums.copy(), nonzero
        begin = np.cumsum(length) - length
        age = np.arange(int(length.sum())) - np.repeat(begin, length)
        weighted = flat[np.repeat(start, length) + age] * (self._discount ** np.arange(reward.shape[0]))[age]
        return sums, np.add.reduceat(weighted, begin), nonzero


def _own_fields(traj_info: TrajInfo) -> dict[str, Any]:
    """Returns the fields that a subclass added."""
    return {name: value for name, value in vars(traj_info).items() if name not in _BASE_FIELDS}


class TrajInfos(Sequence[TrajInfo]):
    """The `TrajInfo`s of finished episodes, sorted by (end time, env id).

    They are made when the first is asked for, because many programs only count them. The sequence owns its data, stays
    valid, can be pickled, and is equal to a list with the same elements.

    Args:
        parts: episodes of each slice.
        cls: the `TrajInfo` class.
        kwargs: arguments of the class.
    """

    def __init__(self, parts: Sequence[Episodes], cls: type[TrajInfo], kwargs: Mapping[str, Any]) -> None:
        self._parts, self._cls, self._kwargs = list(parts), cls, dict(kwargs)
        self._length = sum(len(part.infos) for part in parts)
        self._made: list[TrajInfo] | None = None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> TrajInfo: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrajInfo]: ...
    @override
    def __getitem__(self, index: int | slice) -> TrajInfo | list[TrajInfo]:
        return self._all[index]

    @override
    def __iter__(self) -> Iterator[TrajInfo]:
        return iter(self._all)

    def __eq__(self, other: object) -> bool:
        return self._all == list(other) if isinstance(other, TrajInfos | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._all)

    @property
    def _all(self) -> list[TrajInfo]:
        if self._made is None:
            self._made = _make(self._parts, self._cls, self._kwargs)
            self._parts = []
        return self._made


def _make(parts: Sequence[Episodes], cls: type[TrajInfo], kwargs: Mapping[str, Any]) -> list[TrajInfo]:
    found: list[tuple[int, int, TrajInfo]] = []
    for part in parts:
        columns = zip(
            part.time.tolist(),
            part.length.tolist(),
            part.ret.tolist(),
            part.discounted.tolist(),
            part.nonzero.tolist(),
            part.env_id.tolist(),
            part.finished.tolist(),
            part.infos,
            part.own or repeat({}),
            strict=False,
        )
        for time, length, ret, discounted, nonzero, env_id, finished, info, own in columns:
            traj_info = cls(**kwargs)
            if own:
                vars(traj_info).update(own)
            traj_info.Length, traj_info.Return, traj_info.DiscountedReturn = length, ret, discounted
            traj_info.NonzeroRewards, traj_info.env_id = nonzero, env_id
            traj_info.finished, traj_info.info = finished, info
            found.append((time, env_id, traj_info))
    found.sort(key=itemgetter(0, 1))
    return [info for _, _, info in found]
