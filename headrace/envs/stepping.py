"""The twin of `headrace._native.stepping` in pure Python, for where that module is not built."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from headrace.envs.infos import InfoField
from headrace.types import Tree

__all__ = ["Fields", "Row", "Stepper", "leaf_of"]


def leaf_of(space: gymnasium.Space[Any], to: Tree) -> None:
    """Returns what writes observations by itself: nothing; `record` writes them all."""


class Fields:
    """Where the declared fields of info dicts are written.

    Args:
        fields: the fields.
        to: arrays `[n, ...]` by key.
    """

    def __init__(self, fields: Sequence[InfoField], to: dict[str, np.ndarray]) -> None:
        self._places = [(field.write, to[field.key]) for field in fields]

    def write(self, column: int, info: Any) -> None:
        """Records the fields of one environment's info dict; raises Mismatch for one that is missing or unfit."""
        for write, to in self._places:
            write(to, column, info)


class Row:
    """Where the answers of one time step are written."""

    def __init__(
        self, leaf: None, fields: Fields | None, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> None:
        self.fields, self.reward = fields, reward


class Stepper:
    """Steps and resets environments; an answer is recorded before the next call, because environments may share it.

    Args:
        env_ids: env ids by column.
        resets: functions without arguments that reset an environment, by column.
        env_cell: index of the cell of the status line that names the environment being called.
    """

    def __init__(self, env_ids: list[int], resets: list[Callable[[], Any]], env_cell: int) -> None:
        self._env_ids, self._resets, self._env_cell = env_ids, resets, env_cell

    def step(
        self,
        row: Row,
        columns: list[int] | None,
        steps: Sequence[Callable[[Any], Any]],
        actions: Sequence[Any],
        rewards: array[float],
        line: memoryview,
        record: Callable[[int, Any], None],
        keep_info: Callable[[int, Any], None] | None,
        last_info: Callable[[Any], dict[str, Any]],
        ended: list[int],
        infos: list[dict[str, Any]],
    ) -> bool:
        """Steps columns; returns whether everything that was written here is finite.

        Args:
            row: where the answers are written.
            columns: the columns to step; None: all.
            steps: functions by column.
            actions: actions by column.
            rewards: receives the rewards, `[n]`; those of columns that are not stepped must be 0.
            line: the status line.
            record: called as record(column, answer) with an answer that is not written here.
            keep_info: called as keep_info(column, info) with the info dict of an answer that is written here; or None.
            last_info: called as last_info(info) with the last info dict of an episode; returns a copy.
            ended: receives the columns whose episodes ended.
            infos: receives the last info dicts of these episodes.
        """
        cell, env_ids = self._env_cell, self._env_ids
        for column in range(len(steps)) if columns is None else columns:
            line[cell] = env_ids[column]
            record(column, steps[column](actions[column]))
        row.reward[:] = np.frombuffer(rewards)
        return False

    def reset(self, row: Row, columns: list[int], line: memoryview, record: Callable[[int, Any], None]) -> bool:
        """Resets columns; returns whether everything that was written here is finite.

        Args:
            row: where the first observations are written.
            columns: the columns.
            line: the status line.
            record: called as record(column, answer) with an answer that is not written here.
        """
        for column in columns:
            line[self._env_cell] = self._env_ids[column]
            record(column, self._resets[column]())
        return False
