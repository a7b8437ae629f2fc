"""The numbers of a log row before it is written, and the progress counters of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headrace.samplers.collection.snapshot import SamplerState
from headrace.samplers.traj_info import TrajInfo

__all__ = ["Counters", "Row", "statistics"]


@dataclass
class Counters:
    """Counters since the start of training.

    Args:
        itr: batches.
        steps: environment steps.
        trajs: completed episodes.
        sample_seconds: seconds spent collecting.
        optimize_seconds: seconds spent optimizing.
        rows: log rows.
        best_return: best mean return of a log row, −inf before the first.
        rows_since_best: log rows with a return since the best one.
    """

    itr: int = 0
    steps: int = 0
    trajs: int = 0
    sample_seconds: float = 0.0
    optimize_seconds: float = 0.0
    rows: int = 0
    best_return: float = -math.inf
    rows_since_best: int = 0


@dataclass(frozen=True)
class Row:
    """The part of a log row that is known when it is due; its episodes may follow later.

    Args:
        counters: counters at that moment.
        learned: statistics of the optimizer's values since the row before.
        agent: checkpoint of the agent that the row is about, and of the sampler. None: the state when the row is
            written.
    """

    counters: Counters
    learned: Mapping[str, float]
    agent: tuple[Mapping[str, Any], SamplerState] | None = None

    @staticmethod
    def of(counters: Counters, opt_infos: Mapping[str, list[float]]) -> Row:
        """Returns a row of the current counters and optimizer values, and clears the latter."""
        learned: dict[str, float] = {}
        for name, values in opt_infos.items():
            learned |= statistics(name, values)
            values.clear()
        return Row(replace(counters), learned)

    def columns(
        self, then: Counters, seconds: float, infos: Sequence[TrajInfo], own: Mapping[str, float]
    ) -> dict[str, float]:
        """Returns all columns of the row.

        Args:
            then: counters of the row before.
            seconds: seconds since the start of training.
            infos: episodes of the row.
            own: columns that only this runner has.

        Returns:
            The numbers by column name.
        """
        now = self.counters
        busy = now.sample_seconds + now.optimize_seconds - then.sample_seconds - then.optimize_seconds
        row: dict[str, float] = {
            "Iteration": now.itr,
            "CumTime": seconds,
            "CumSteps": now.steps,
            "StepsPerSecond": (now.steps - then.steps) / busy if busy else 0.0,
            "CumSampleTime": now.sample_seconds,
            "CumOptimizeTime": now.optimize_seconds,
            "CumCompletedTrajs": now.trajs,
            "NewCompletedTrajs": now.trajs - then.trajs,
            **own,
        }
        for name in _logged_fields(infos):
            row |= statistics(name, [vars(info)[name] for info in infos])
        return row | dict(self.learned)


def _logged_fields(infos: Sequence[TrajInfo]) -> list[str]:
    """Returns the fields to log: those in CamelCase that hold a number in every episode, with the return first."""
    if not infos:
        return []
    names = [
        name
        for name in vars(infos[0])
        if name[:1].isupper() and all(isinstance(vars(info).get(name), int | float) for info in infos)
    ]
    return sorted(names, key=lambda name: name != "Return")


def statistics(name: str, values: Iterable[float]) -> dict[str, float]:
    """Returns `{nameAverage, nameStd, nameMedian, nameMin, nameMax}`, without NaN values; all NaN if none are left."""
    array = np.array([value for value in values if value == value], np.float64)
    if not len(array):
        return {name + kind: float("nan") for kind in ("Average", "Std", "Median", "Min", "Max")}
    return {
        name + "Average": float(array.mean()),
        name + "Std": float(array.std()),
        name + "Median": float(np.median(array)),
        name + "Min": float(array.min()),
        name + "Max": float(array.max()),
    }
