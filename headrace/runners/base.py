"""The training loop: collect, optimize, log, checkpoint, stop."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from headrace.agents.base import Agent
from headrace.agents.description import described
from headrace.agents.device import device_here
from headrace.algos.base import Algo
from headrace.algos.ranks import ALONE, Ranks, same_buffers
from headrace.checkpoints.resume import Resumed, folder_of, reading, resumed
from headrace.checkpoints.run_settings import settings_of
from headrace.checkpoints.store import CheckpointStore
from headrace.config import settings_in
from headrace.processes.affinity import Affinity, AffinityLike
from headrace.processes.start_method import end_if_imported
from headrace.processes.status import Phase, Status
from headrace.runners.arguments import require_arguments
from headrace.runners.callbacks import Callback
from headrace.runners.config import RunnerConfig
from headrace.runners.hooks import RunnerHooks
from headrace.runners.logging.console import ConsoleLogger
from headrace.runners.logging.csv_file import CsvLogger
from headrace.runners.logging.logger import Logger, Loggers
from headrace.runners.ranks import BatchReport, any_rank, others_first, over_ranks, same_agent
from headrace.runners.row import Counters, Row
from headrace.runners.run_folder import RunFolder, RunRecord
from headrace.runners.saves import Saves
from headrace.runners.seeding import torch_seeded
from headrace.runners.threads import learner_threads, place_learner
from headrace.samplers.base import BaseSampler
from headrace.samplers.traj_info import TrajInfo

__all__ = ["Runner"]

_log = logging.getLogger("headrace.runners")


@settings_in(RunnerConfig, first=False)
class Runner(RunnerHooks):
    """Trains an agent: `runner.train()` runs until the last step, an error, Ctrl-C or `runner.stop()`.

    However it ends, the sampler is closed, the log is flushed and a checkpoint of the last update is written.

    Args:
        algo, agent, sampler: what to train with, not initialized yet.
        config: how long to train, and how often to log and save. If it has no seed, one is drawn: `runner.seed`.
        affinity: where processes run (`Affinity`, or rlpyt's dict). This process is pinned to `master_cpus` after the
            workers have started, and stays pinned; `master_torch_threads` applies while training; the agent learns on
            `cuda_idx`. If threads are not given and `torch.set_num_threads` was not called, a small model gets one:
            more threads spend their time waiting for each other, a hundred times as long if workers need the same
            cores. The log says what was chosen.
        log_dir: folder of the run (`RunFolder`) for settings, versions, `progress.csv`, checkpoints and, if training
            took at least 5 s, the learning curve; created if missing. None: nothing is written.
        logger: receives progress in addition to the CSV file. Default: a `ConsoleLogger`; `Logger()` logs nothing.
        callbacks: called during training, and may stop it; see `Callback`.
        resume_from: folder of the run to resume from its newest intact checkpoint, or a checkpoint file; the log is
            continued there. Algorithm, agent, sampler and seed must be unchanged; the rest of `config`, and where and
            how fast the sampler works (workers, timeouts), may change. If environments can be pickled, all episodes
            continue and training ends as if it had never been interrupted; otherwise new episodes begin, and the log
            says so.
        record: contents of `config.json` and `run.json`. Default: the settings of these arguments, and `sys.argv`.
    """

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
        require_arguments(type(self).__name__, (algo, agent, sampler, config), callbacks)
        self.algo = algo
        self.agent = agent
        self.sampler = sampler
        self.config = config
        self.seed = config.seed
        self._affinity = self._placed(affinity)
        self._ranks: Ranks = ALONE
        self._status = Status()
        self._batch_steps = sampler.batch_spec.size * self.world_size
        self.n_itr = math.ceil(config.n_steps / self._batch_steps)
        self.counters = Counters()
        self._log_itrs = self._in_batches(config.log_interval_steps)
        self._save_itrs = self._in_batches(config.checkpoint_interval_steps or config.log_interval_steps)
        if self._affinity.device is not None:
            device_here(self._affinity.device, "the GPU of affinity cuda_idx")
        self._resume_from = None if resume_from is None else Path(resume_from).absolute()
        folder = folder_of(log_dir, self._resume_from)
        self._store = None if folder is None else CheckpointStore(folder)
        self._folder = None if folder is None else RunFolder(folder)  # ranks other than 0 have a store alone
        self._console = ConsoleLogger() if logger is None else logger
        self._callbacks = tuple(callbacks)
        self._record = record
        self._between = True  # no batch is partly collected or partly learned from
        self._saves = Saves()
        self._logged = Counters()
        self._opt_infos: dict[str, list[float]] = defaultdict(list)
        self._last_infos: list[TrajInfo] = []

    def train(self) -> list[TrajInfo]:
        """Trains the agent; returns the episodes of the last log row.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            OSError: if the last checkpoint cannot be written (for earlier ones a warning is logged).
            CheckpointError: with `resume_from`, if there is no intact checkpoint or settings have changed.
            Exception: what the sampler or the algorithm raises, after everything is closed.
        """
        end_if_imported()  # before the lock, which the program itself holds
        failure: BaseException | None = None
        try:
            with self._store.opened() if self._store is not None else nullcontext():
                before = self._resumed()
                with self._open_logger(before) as self._logger:
                    self._train(before)
                if self._folder is not None and (self._record is None or self._record.draws):
                    self._folder.draw()
        except KeyboardInterrupt as error:
            # Without the frames below: a person who pressed Ctrl-C knows why training ended.
            failure = error
            raise KeyboardInterrupt(self._interrupted()) from None
        except BaseException as error:
            failure = error
            raise
        finally:
            for callback in self._callbacks:
                callback.on_end(self, failure)
        return self._last_infos

    def stop(self) -> None:
        """Ends training in good order after the current batch. May be called from a signal handler."""
        self._stopping = True

    def become_rank(self, ranks: Ranks, affinity: Affinity, status: Status) -> None:
        """Makes this runner that of one learner; call it before `train`. Rank 0 alone logs and calls callbacks.

        Args:
            ranks: all learners.
            affinity: where this one and its sampler run.
            status: where this process records what it is doing.
        """
        self._ranks, self._affinity, self._status = ranks, affinity, status
        self.sampler.move_here(status)
        if ranks.rank:
            self._console, self._callbacks, self._folder = Logger(), (), None
            if self._store is not None:
                self._store = CheckpointStore(self._store.folder / f"rank-{ranks.rank}")

    # ---- the loop ----

    def _train(self, before: Resumed | None) -> None:
        algo, agent, sampler = self.algo, self.agent, self.sampler
        self._before_start()
        with (
            ExitStack() as stack,
            sampler.initialize(
                agent,
                affinity=self._affinity,
                seed=self.seed,
                bootstrap_value=algo.bootstrap_value,
                traj_info_kwargs={"discount": algo.discount},
                rank=self._ranks.rank,
                world_size=self.world_size,
                resumable=self._store is not None,
                resume=None if before is None else before.sampler,
            ),
        ):
            self.seed = sampler.seed
            place_learner(self._affinity, agent)
            threads = stack.enter_context(learner_threads(self._affinity, agent))
            same_agent(agent, self._ranks)
            algo.initialize(agent, n_itr=self.n_itr, batch_spec=sampler.batch_spec, seed=sampler.seed)
            algo.join(self._ranks)
            self._began = perf_counter()
            if before is not None:
                with reading(before.path):
                    self._restore(before)
            record = self._record or RunRecord.of(self)
            if self._folder is not None:  # only now, so that a refused run changes nothing
                self._folder.note_start(record.command, record.config)
            self._logger.settings(record.config)
            self._logger.start(self.n_itr * self._batch_steps)
            if before is not None:
                self._logger.message(before.sentence)
            if threads:
                self._logger.message(threads)
            try:
                if self._row_is_due():
                    self._log()
                while not self._finished():
                    self._iterate()
                    # Save before logging: a resumed run begins with this row, and its evaluation may take long.
                    if self.counters.itr % self._save_itrs == 0 and not self._finished():
                        self._settle()
                        self._save_or_warn("training continues without it")
                    if self._row_is_due():
                        self._log()
                self._settle()
            except BaseException:
                if self.world_size == 1:  # ranks save together, and one that failed cannot
                    self._save_or_warn("training ends without it")
                raise
            # Save before logging an extra last row: a run resumed from here, after a stop or to train longer, must not
            # have that row.
            try:
                self._save()
            finally:
                if self._logged.itr != self.counters.itr or not self.counters.rows:
                    self._log()
                    self._settle()

    def _finished(self) -> bool:
        return any_rank(self._ranks, self._asked_to_stop()) or self.counters.itr >= self.n_itr

    def _row_is_due(self) -> bool:
        itr = self.counters.itr
        if not itr:
            return self._log_at_start and not self.counters.rows
        return itr % self._log_itrs == 0 and self._logged.itr != itr

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Marks a section that leaves sampler or agent inconsistent if it is interrupted."""
        self._between = False
        yield
        self._between = True

    def _iterate(self) -> None:
        """Collects one batch and learns from it."""
        counters, begin = self.counters, perf_counter()
        itr = counters.itr
        with self._at_work():
            samples, traj_infos = self.sampler.obtain_samples(itr)
            collected = perf_counter()
            steps = int(samples.env.valid.sum())  # padding does not count as experience
            for callback in self._callbacks:
                callback.on_batch(self, itr, samples, traj_infos)
            heard = perf_counter()
            self._status.enter(Phase.LEARNING)
            with (
                torch_seeded(self.seed, itr, self.agent.device, self._ranks.rank),
                same_buffers(self.agent.model, self._ranks),
            ):
                opt_info = self.algo.optimize_agent(itr, samples)
            own = BatchReport(traj_infos, steps, {**opt_info, **self.agent.exploration(itr, samples)})
            report = over_ranks(self._ranks, self.sampler, own)
            counters.sample_seconds += collected - begin
            counters.optimize_seconds += perf_counter() - heard
            counters.itr, counters.steps = itr + 1, counters.steps + report.steps
            counters.trajs += len(report.traj_infos)
            for name, value in report.opt_info.items():
                self._opt_infos[name].append(float(value))
            mean_return = self._on_episodes(report.traj_infos)
        self._logger.progress(counters.steps, mean_return)
        for callback in self._callbacks:
            callback.on_optimize(self, itr, opt_info)

    def _log(self) -> None:
        """Logs a row: counters, then statistics of episodes and of the optimizer."""
        row = Row.of(self.counters, self._opt_infos)
        with self._at_work():
            infos, columns = self._episodes(self.counters.itr)
        self._write(row, infos, columns)

    def _write(self, row: Row, infos: Sequence[TrajInfo], own: Mapping[str, float]) -> None:
        """Writes a log row after its episodes are known. own: columns that only this runner has."""
        columns = row.columns(self._logged, perf_counter() - self._began, infos, own)
        self._last_infos = list(infos)
        self._logger.row(columns)
        self.counters.rows += 1
        self._logged = row.counters
        self._note_return(columns.get("ReturnAverage", math.nan), row)
        for callback in self._callbacks:
            callback.on_eval(self, infos, columns)

    def _note_return(self, mean_return: float, row: Row) -> None:
        """Saves the best agent so far as a checkpoint of its own."""
        counters = self.counters
        if mean_return > counters.best_return:
            counters.best_return, counters.rows_since_best = mean_return, 0
            if self._store is not None and row.counters.itr and self._ranks.rank == 0:
                try:
                    self._store.save_best(*row.agent or (self._state(), self.sampler.state(environments=False)))
                except OSError as error:
                    _log.warning("%s", error.strerror)
        elif not math.isnan(mean_return):
            counters.rows_since_best += 1

    # ---- checkpoints ----

    def _save(self) -> None:
        """Saves a checkpoint of the current state, unless it was saved already."""
        if self._store is None or not self._saves.due(self.counters):
            return
        between, self._between = self._between, False
        sampler = self._saves.sampler_state(self.sampler, between, self._logger)
        self._between = between
        with others_first(self._ranks):  # then each has a checkpoint of the batch of rank 0's
            # First: the checkpoint records how much belongs to it.
            self.algo.save_contents(self._store.folder / "replay")
            self._store.save(self._state(), sampler)
        self._saves.note(self.counters, sampler)
        for callback in self._callbacks:
            callback.on_checkpoint(self, self._store.newest)

    def _save_or_warn(self, consequence: str) -> None:
        try:
            self._save()
        except OSError as error:
            _log.warning("%s; %s", error.strerror, consequence)

    def _state(self) -> dict[str, Any]:
        """Returns the current state of agent, algorithm and runner: tensors and plain values."""
        assert self.agent.spaces is not None
        return {
            "agent": self.agent.state_dict(),
            "algo": self.algo.state_dict(),
            "itr": self.counters.itr,
            "steps": self.counters.steps,
            "seed": self.seed,
            "about": described(self.agent),
            "settings": settings_of(self),
            "runner": {
                "counters": asdict(self.counters),
                "logged": asdict(self._logged),
                "seconds": perf_counter() - self._began,
                "opt_infos": {name: list(values) for name, values in self._opt_infos.items()},
                "own": self._own_state(),
            },
        }

    def _resumed(self) -> Resumed | None:
        """Returns the checkpoint to resume from; None for a new run."""
        if self._resume_from is None:
            if self._store is not None:
                self._store.require_empty()
            if self._folder is not None:
                self._folder.make_room()
            return None
        before = self._checkpoint(self._resume_from)
        if self.seed is None:
            self.seed = before.seed
        before.require(settings_of(self), self.n_itr)
        return before

    def _checkpoint(self, path: Path) -> Resumed:
        """Returns the checkpoint to resume from."""
        assert self._store is not None
        return resumed(self._store, path)

    def _restore(self, before: Resumed) -> None:
        """Restores everything; the agent's model and the optimizer must have been built."""
        before.require_spaces(self.agent)
        before.restore(self.agent)
        if self._store is not None:
            self.algo.load_contents(self._store.folder / "replay", before.state["algo"])
        self.algo.load_state_dict(before.state["algo"])
        if before.sampler.ahead or not before.sampler.train:
            self.algo.cut()
        own = before.state["runner"]
        self.counters, self._logged = Counters(**own["counters"]), Counters(**own["logged"])
        for name, values in own["opt_infos"].items():
            self._opt_infos[name] = list(values)
        self._began -= own["seconds"]
        self._load_own_state(own["own"])
        self._saves.restore(before, self.counters)

    def _interrupted(self) -> str:
        text = f"interrupted after {self.counters.steps:,} of {self.n_itr * self._batch_steps:,} steps"
        return text if self._store is None else text + self._saves.sentence(self._store.newest)

    # ---- setup ----

    def _in_batches(self, steps: float) -> int:
        return max(1, int(steps) // self._batch_steps)

    def _open_logger(self, before: Resumed | None) -> Logger:
        if self._folder is None:
            return self._console
        path = self._folder.path / "progress.csv"
        return Loggers(CsvLogger(path, keep_rows=None if before is None else before.rows), self._console)
