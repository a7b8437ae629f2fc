"""The training loop: collect, optimize, log, checkpoint, stop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from headrace.agents.base import Agent
from headrace.algos.base import Algo
from headrace.processes.affinity import Affinity, pin
from headrace.runners.checkpoint import save_checkpoint
from headrace.runners.config import RunnerConfig
from headrace.runners.logging.console import ConsoleLogger
from headrace.runners.logging.csv_file import CsvLogger
from headrace.runners.logging.logger import Logger, Loggers
from headrace.runners.logging.summary import statistics
from headrace.samplers.base import BaseSampler
from headrace.samplers.traj_info import TrajInfo

__all__ = ["Runner"]


@dataclass
class Counters:
    """Since the start of training: batches, environment steps, ended episodes, seconds collecting and optimizing."""

    itr: int = 0
    steps: int = 0
    trajs: int = 0
    sample_seconds: float = 0.0
    optimize_seconds: float = 0.0


class Runner(ABC):
    """Trains an agent: `runner.train()` runs to the end, to an error, to Ctrl-C or to `runner.stop()`.

    Whichever way it ends, the sampler is closed, the log is flushed and a checkpoint of the last update is written.

    Args:
        algo, agent, sampler: not initialized yet.
        config: how long to train, how often to log and save; `runner.seed` tells the seed drawn if it has none.
        affinity: where processes run (`Affinity`, or rlpyt's dict). Its `master_cpus` and `master_torch_threads` are
            set for this process, after the workers have started, and stay. For small models one thread is best: more
            spend their time waiting for each other, a hundredfold where workers want the same cores.
        log_dir: where `progress.csv` and `checkpoint.pt` go, made if it is not there; None: neither is written.
        logger: hears of progress besides the CSV; default a `ConsoleLogger`, `Logger()` for silence.
    """

    def __init__(
        self,
        algo: Algo,
        agent: Agent,
        sampler: BaseSampler,
        config: RunnerConfig,
        affinity: Affinity | Mapping[str, Any] | None = None,
        *,
        log_dir: str | Path | None = None,
        logger: Logger | None = None,
    ) -> None:
        if not isinstance(config, RunnerConfig):
            raise TypeError(f"config must be a RunnerConfig, got {type(config).__name__} {config!r}")
        batch_size = sampler.batch_spec.size
        self.algo = algo
        self.agent = agent
        self.sampler = sampler
        self.config = config
        self.seed = config.seed
        self.n_itr = math.ceil(config.n_steps / batch_size)
        self._log_interval_itrs = max(1, int(config.log_interval_steps) // batch_size)
        self._affinity = Affinity.of(affinity)
        self._log_dir = None if log_dir is None else Path(log_dir)
        self._console = ConsoleLogger() if logger is None else logger
        self._stopping = False
        self._counters = Counters()
        self._logged = Counters()
        self._opt_infos: dict[str, list[float]] = defaultdict(list)
        self._last_infos: list[TrajInfo] = []

    def train(self) -> list[TrajInfo]:
        """Trains; returns the episodes of the last row of the log.

        Raises what the sampler or the algorithm raises, after closing everything; KeyboardInterrupt after Ctrl-C.
        """
        try:
            with self._open_logger() as self._logger:
                self._train()
        except KeyboardInterrupt:
            # The frames below are ours: a person who pressed Ctrl-C knows why.
            raise KeyboardInterrupt(self._interrupted()) from None
        return self._last_infos

    def stop(self) -> None:
        """Ends training after the batch at hand, in good order. May be called from a signal handler."""
        self._stopping = True

    # ---- what differs between runners ----

    #: Whether a row is logged before the first batch.
    _log_at_start = False

    @abstractmethod
    def _heard(self, traj_infos: Sequence[TrajInfo]) -> float:
        """Takes the episodes of a batch; returns the mean return to show."""

    @abstractmethod
    def _episodes(self, itr: int) -> tuple[Sequence[TrajInfo], dict[str, float]]:
        """The episodes a row of the log is about, and columns of its own."""

    # ---- the loop ----

    def _train(self) -> None:
        algo, agent, sampler = self.algo, self.agent, self.sampler
        with sampler.initialize(
            agent,
            affinity=self._affinity,
            seed=self.seed,
            bootstrap_value=algo.bootstrap_value,
            traj_info_kwargs={"discount": algo.discount},
        ):
            self.seed = sampler.seed
            self._place_master()
            algo.initialize(agent, n_itr=self.n_itr, batch_spec=sampler.batch_spec, seed=sampler.seed)
            self._logger.start(self.n_itr * sampler.batch_spec.size)
            self._began = perf_counter()
            try:
                if self._log_at_start:
                    self._log()
                while not self._finished():
                    self._iterate()
                    if self._counters.itr % self._log_interval_itrs == 0 and not self._finished():
                        self._log()
                        self._save()
                self._log()
            finally:
                self._save()

    def _finished(self) -> bool:
        return self._stopping or self._counters.itr >= self.n_itr

    def _iterate(self) -> None:
        """One batch: collect and optimize."""
        counters, begin = self._counters, perf_counter()
        itr = counters.itr
        samples, traj_infos = self.sampler.obtain_samples(itr)
        collected = perf_counter()
        steps = int(samples.env.valid.sum())  # padding is not experience
        opt_info = self.algo.optimize_agent(itr, samples)
        counters.sample_seconds += collected - begin
        counters.optimize_seconds += perf_counter() - collected
        counters.itr, counters.steps = itr + 1, counters.steps + steps
        counters.trajs += len(traj_infos)
        for name, value in opt_info.items():
            self._opt_infos[name].append(value)
        self._logger.progress(counters.steps, self._heard(traj_infos))

    def _log(self) -> None:
        """One row: counters, then statistics of episodes and of the optimizer."""
        now, then = self._counters, self._logged
        infos, columns = self._episodes(now.itr)
        seconds = now.sample_seconds + now.optimize_seconds - then.sample_seconds - then.optimize_seconds
        row: dict[str, float] = {
            "Iteration": now.itr,
            "CumTime": perf_counter() - self._began,
            "CumSteps": now.steps,
            "StepsPerSecond": (now.steps - then.steps) / seconds if seconds else 0.0,
            "CumSampleTime": now.sample_seconds,
            "CumOptimizeTime": now.optimize_seconds,
            "CumCompletedTrajs": now.trajs,
            "NewCompletedTrajs": now.trajs - then.trajs,
            **columns,
        }
        for name in _logged_fields(infos):
            row |= statistics(name, [vars(info)[name] for info in infos])
        for name, values in self._opt_infos.items():
            row |= statistics(name, values)
            values.clear()
        self._logged = replace(now)
        self._last_infos = list(infos)
        self._logger.row(row)

    def _save(self) -> None:
        """The agent and the algorithm as they are now."""
        if self._log_dir is not None:
            state = {
                "agent": self.agent.state_dict(),
                "algo": self.algo.state_dict(),
                "itr": self._counters.itr,
                "steps": self._counters.steps,
                "seed": self.seed,
            }
            save_checkpoint(self._log_dir / "checkpoint.pt", state)

    def _interrupted(self) -> str:
        text = f"interrupted after {self._counters.steps:,} of {self.n_itr * self.sampler.batch_spec.size:,} steps"
        if self._log_dir is None or not self._counters.itr:
            return text
        return f"{text}; checkpoint: {self._log_dir / 'checkpoint.pt'}"

    def _open_logger(self) -> Logger:
        if self._log_dir is None:
            return self._console
        self._log_dir.mkdir(parents=True, exist_ok=True)
        return Loggers(CsvLogger(self._log_dir / "progress.csv"), self._console)

    def _place_master(self) -> None:
        """Pins this process, if asked. Only now: workers forked from a pinned process would inherit its CPUs."""
        affinity = self._affinity
        if affinity.master_cpus is not None and affinity.set_affinity:
            pin(affinity.master_cpus)
        if affinity.master_torch_threads is not None:
            torch.set_num_threads(affinity.master_torch_threads)


def _logged_fields(infos: Sequence[TrajInfo]) -> list[str]:
    """The names of the fields to log: CamelCase ones that hold a number."""
    if not infos:
        return []
    return [name for name, value in vars(infos[0]).items() if name[0].isupper() and isinstance(value, int | float)]
