"""`MinibatchRl` and `MinibatchRlEval`: one process collects a batch, learns from it, and repeats."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from headrace.agents.base import Agent
from headrace.algos.base import Algo
from headrace.config import settings_in
from headrace.processes.affinity import AffinityLike
from headrace.runners.base import Runner
from headrace.runners.callbacks import Callback
from headrace.runners.config import RunnerConfig
from headrace.runners.logging.logger import Logger
from headrace.runners.ranks import BatchReport, over_ranks, values_of
from headrace.runners.run_folder import RunRecord
from headrace.samplers.base import BaseSampler
from headrace.samplers.traj_info import TrajInfo
from headrace.schema import alike, each, fields, real

__all__ = ["MinibatchRl", "MinibatchRlEval"]


@settings_in(RunnerConfig, first=False)
class MinibatchRl(Runner):
    """Logs the last `config.log_traj_window` training episodes. For the arguments, see `Runner`."""

    def __init__(
        self,
        algo: Algo,
        agent: Agent,
        sampler: BaseSampler,
        config: RunnerConfig,
        affinity: AffinityLike = None,
        *,
        log_dir: str | Path | None = None,
        logger: Logger | None = None,
        callbacks: Sequence[Callback] = (),
        resume_from: str | Path | None = None,
        record: RunRecord | None = None,
    ) -> None:
        super().__init__(
            algo,
            agent,
            sampler,
            config,
            affinity,
            log_dir=log_dir,
            logger=logger,
            callbacks=callbacks,
            resume_from=resume_from,
            record=record,
        )
        self._window: deque[TrajInfo] = deque(maxlen=config.log_traj_window)

    def _on_episodes(self, traj_infos: Sequence[TrajInfo]) -> float:
        self._window.extend(traj_infos)
        return _mean_return(self._window)

    def _episodes(self, itr: int) -> tuple[Sequence[TrajInfo], dict[str, float]]:
        return list(self._window), {"StepsInTrajWindow": sum(info.Length for info in self._window)}

    def _own_state(self) -> dict[str, Any]:
        return {"window": [values_of(info) for info in self._window]}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        fields({"window": each(alike(vars(self.sampler.traj_info({}))))})(state, "runner.own")
        self._window.extend(self.sampler.traj_info(values) for values in state["window"])


class MinibatchRlEval(Runner):
    """Evaluates before the first batch and at every log row, and logs the evaluation episodes.

    The sampler must have `eval_n_envs`. The time that training waits for evaluation counts in `CumTime` and
    `CumEvalTime`, but not in `StepsPerSecond`. For the arguments, see `Runner`.
    """

    _log_at_start = True
    _eval_seconds = 0.0
    _eval_return = math.nan

    def _on_episodes(self, traj_infos: Sequence[TrajInfo]) -> float:
        return self._eval_return

    def _episodes(self, itr: int) -> tuple[Sequence[TrajInfo], dict[str, float]]:
        begin = perf_counter()
        own = BatchReport(self.sampler.evaluate_agent(itr))
        infos = over_ranks(self._ranks, self.sampler, own).traj_infos
        self._eval_seconds += perf_counter() - begin
        return infos, self._evaluated(infos)

    def _evaluated(self, infos: Sequence[TrajInfo]) -> dict[str, float]:
        """Records the episodes of an evaluation; returns the columns about it."""
        self._eval_return = _mean_return(infos)
        return {
            "StepsInEval": sum(info.Length for info in infos),
            "TrajsInEval": len(infos),
            "CumEvalTime": self._eval_seconds,
        }

    def _own_state(self) -> dict[str, Any]:
        return {"eval_seconds": self._eval_seconds, "eval_return": float(self._eval_return)}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        fields({"eval_seconds": real(0, 1e15), "eval_return": real(nan=True)})(state, "runner.own")
        self._eval_seconds, self._eval_return = state["eval_seconds"], state["eval_return"]


def _mean_return(infos: Sequence[TrajInfo] | deque[TrajInfo]) -> float:
    return sum(info.Return for info in infos) / len(infos) if infos else math.nan
