"""A row of the log before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.runners.counters import Counters
from headrace.runners.logging.summary import statistics
from headrace.samplers.snapshot import SamplerState
from headrace.samplers.traj_info import TrajInfo

__all__ = ["Row"]


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
