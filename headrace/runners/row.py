"""A row of the log before it is written, and how far a run has come."""

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
    """Since the start of training: batches, environment steps, ended episodes, seconds collecting and optimizing; rows
    of the log, the best mean return of a row (−inf before the first), and how many rows with a return came since.
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
    """What is known of a row when it is due; its episodes may come later.

    counters: at that moment; learned: statistics of what the optimizer said since the row before; agent: the checkpoint
    of the agent the row is about, with the sampler's; None: as everything is when the row is written.
    """

    counters: Counters
    learned: Mapping[str, float]
    agent: tuple[Mapping[str, Any], SamplerState] | None = None

    @staticmethod
    def of(counters: Counters, opt_infos: Mapping[str, list[float]]) -> Row:
        """As of now; what the optimizer said begins anew."""
        learned: dict[str, float] = {}
        for name, values in opt_infos.items():
            learned |= statistics(name, values)
            values.clear()
        return Row(replace(counters), learned)

    def columns(
        self, then: Counters, seconds: float, infos: Sequence[TrajInfo], own: Mapping[str, float]
    ) -> dict[str, float]:
        """The whole row. then: the counters of the row before; seconds: since the start; infos: its episodes, own:
        columns of the runner.
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
    """The names of the fields to log: CamelCase ones that hold a number in each of the episodes; the return first."""
    if not infos:
        return []
    names = [
        name
        for name in vars(infos[0])
        if name[:1].isupper() and all(isinstance(vars(info).get(name), int | float) for info in infos)
    ]
    return sorted(names, key=lambda name: name != "Return")


def statistics(name: str, values: Iterable[float]) -> dict[str, float]:
    """`{nameAverage, nameStd, nameMedian, nameMin, nameMax}` of the values that are not NaN; all NaN if none are."""
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
