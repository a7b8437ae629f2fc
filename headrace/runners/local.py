"""`LocalRunner`: trains algorithms that ask for whole episodes."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np

from headrace.checkpoints.snapshots import SnapshotConfig, Snapshots
from headrace.envs.factory import EnvFactory
from headrace.rng import draw_seed
from headrace.runners.logging.console import ConsoleLogger
from headrace.runners.logging.csv_file import CsvLogger
from headrace.runners.logging.logger import Logger, Loggers
from headrace.runners.row import statistics
from headrace.samplers.episodes.base import EpisodeSampler
from headrace.samplers.episodes.batch import EpisodeBatch
from headrace.samplers.episodes.local import LocalSampler
from headrace.samplers.episodes.updates import EnvUpdate
from headrace.samplers.episodes.worker import DefaultWorker, Worker

__all__ = ["EpisodeLearner", "LocalRunner", "NotSetupError", "TrainArgs", "Trainer"]


class NotSetupError(RuntimeError):
    """Raised if a runner is asked to train or save before `setup`, or to resume before `restore`."""


class EpisodeLearner(Protocol):
    """What `LocalRunner` trains: the contract of garage's algorithms. It may be pickled in snapshots.

    Args:
        policy: an agent, or a policy with garage's interface.
    """

    policy: Any

    def train(self, runner: LocalRunner) -> Any:
        """Trains, in a loop over `runner.step_epochs()`; what it returns is returned by `runner.train`."""


@runtime_checkable
class _Explores(Protocol):
    exploration_policy: Any


@runtime_checkable
class _ChoosesSampler(Protocol):
    sampler_cls: type[EpisodeSampler]


@runtime_checkable
class _LimitsPaths(Protocol):
    max_path_length: int | None


@runtime_checkable
class _LimitsEpisodes(Protocol):
    max_episode_length: int | None


@dataclass(frozen=True)
class TrainArgs:
    """The arguments of `train`.

    Args:
        n_epochs: number of epochs.
        batch_size: least number of steps of `obtain_episodes`; None: the algorithm says it.
        start_epoch: number of the first epoch.
    """

    n_epochs: int
    batch_size: int | None = None
    start_epoch: int = 0


@dataclass
class _Setup:
    """The arguments of `setup`."""

    algo: Any
    env: Any
    sampler_cls: type[EpisodeSampler] | None
    sampler_args: dict[str, Any]
    n_workers: int | None
    worker_class: type[Worker]
    worker_args: dict[str, Any]
    seed: int


class LocalRunner:
    """Trains algorithms that ask for whole episodes::

        runner = LocalRunner("runs/vpg")
        algo = EpisodeAlgo(VPG(), CategoricalPgAgent())
        runner.setup(algo, "CartPole-v1", sampler_cls=RaySampler, n_workers=4, worker_class=VecWorker)
        runner.train(n_epochs=100, batch_size=4000)

    The algorithm drives: it takes epochs from `step_epochs`, asks for episodes and learns from them. Between epochs the
    runner logs and saves.

    Args:
        snapshot_config: folder of the run, for snapshots and `progress.csv`, or `SnapshotConfig`. None: nothing is
            saved.
        seed: seed of all randomness. Default: drawn from the operating system and kept in `runner.seed`.
        logger: receives a row per epoch. Default: a `ConsoleLogger`; `Logger()` logs nothing.
    """

    def __init__(
        self,
        snapshot_config: SnapshotConfig | str | Path | None = None,
        *,
        seed: int | None = None,
        logger: Logger | None = None,
    ) -> None:
        if isinstance(snapshot_config, str | Path):
            snapshot_config = SnapshotConfig(snapshot_config)
        self._config = snapshot_config
        self._snapshots = None if snapshot_config is None else Snapshots(snapshot_config)
        self._given_logger = ConsoleLogger() if logger is None else logger
        self._logger = self._given_logger
        #: Seed of all randomness.
        self.seed = draw_seed() if seed is None else int(seed)
        self._setup: _Setup | None = None
        self._sampler: EpisodeSampler | None = None
        self._args: TrainArgs | None = None
        self._began = 0.0
        self._returns: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._recorded: dict[str, list[float]] = defaultdict(list)
        self._logged_steps, self._logged_seconds = 0, 0.0
        self._restored = False
        #: Number of environment steps in the episodes obtained so far.
        self.total_env_steps = 0
        #: Number of calls of `obtain_episodes`, which the algorithm moves forward.
        self.step_itr = 0
        #: Episodes of this epoch, set by the algorithm; the runner clears it.
        self.step_episode: Any = None

    def setup(
        self,
        algo: EpisodeLearner,
        env: Any,
        sampler_cls: type[EpisodeSampler] | None = None,
        sampler_args: Mapping[str, Any] | None = None,
        n_workers: int | None = None,
        worker_class: type[Worker] | None = None,
        worker_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Sets what to train; the sampler starts in `train`.

        Args:
            algo: the algorithm.
            env: what the sampler takes as `envs`.
            sampler_cls: class of the sampler. Default: the algorithm's `sampler_cls`, else `LocalSampler`.
            sampler_args: further arguments of the sampler.
            n_workers: number of workers. Default: one per usable core.
            worker_class: class of the workers. Default: `DefaultWorker`.
            worker_args: further arguments of the workers.
        """
        if sampler_cls is None and isinstance(algo, _ChoosesSampler):
            sampler_cls = algo.sampler_cls
        self._setup = _Setup(
            algo,
            env,
            sampler_cls,
            dict(sampler_args or {}),
            n_workers,
            DefaultWorker if worker_class is None else worker_class,
            dict(worker_args or {}),
            self.seed,
        )

    def train(self, n_epochs: int, batch_size: int | None = None) -> Any:
        """Trains from the first epoch; returns what the algorithm returns.

        Args:
            n_epochs: number of epochs.
            batch_size: least number of steps of each `obtain_episodes`; None: the algorithm says it.

        Raises:
            NotSetupError: before `setup`.
        """
        return self._train(TrainArgs(n_epochs, batch_size))

    def step_epochs(self) -> Iterator[int]:
        """Yields the number of each epoch; after each, logs a row and saves a snapshot."""
        args = self._require_training()
        for epoch in range(args.start_epoch, args.n_epochs):
            yield epoch
            self.step_episode = None
            self._log(epoch)
            if self._snapshots is not None:
                self.save(epoch)

    @property
    def algo(self) -> Any:
        """What is trained; raises NotSetupError before `setup` and `restore`."""
        return self._require_setup().algo

    @property
    def n_epochs(self) -> int:
        """Number of epochs of this training."""
        return self._require_training().n_epochs

    def obtain_episodes(
        self, itr: int | None = None, batch_size: int | None = None, agent_update: Any = None, env_update: Any = None
    ) -> EpisodeBatch:
        """Returns whole episodes of the current policy.

        Args:
            itr: number of the call, for schedules. Default: `step_itr`.
            batch_size: least number of steps. Default: that of `train`.
            agent_update: see `EpisodeSampler`.
            env_update: see `EpisodeSampler`.

        Raises:
            ValueError: if there is no batch size.
        """
        args = self._require_training()
        assert self._sampler is not None
        size = args.batch_size if batch_size is None else batch_size
        if size is None:
            raise ValueError("batch_size is missing; pass it to train() or to obtain_episodes()")
        itr = self.step_itr if itr is None else itr
        episodes = self._sampler.obtain_samples(itr, size, agent_update, env_update)
        self.total_env_steps += len(episodes.rewards)
        self._returns.append(episodes.returns)
        self._lengths.append(episodes.lengths)
        self._logger.progress(self.total_env_steps, float(episodes.returns.mean()))
        return episodes

    def obtain_trajectories(
        self, itr: int | None = None, batch_size: int | None = None, agent_update: Any = None, env_update: Any = None
    ) -> EpisodeBatch:
        """Calls `obtain_episodes`; the name of July 2020."""
        return self.obtain_episodes(itr, batch_size, agent_update, env_update)

    def obtain_samples(
        self, itr: int | None = None, batch_size: int | None = None, agent_update: Any = None, env_update: Any = None
    ) -> list[dict[str, Any]]:
        """Returns the same as `obtain_episodes`, as a list of one dict per episode."""
        return self.obtain_episodes(itr, batch_size, agent_update, env_update).to_list()

    def record(self, values: Mapping[str, float]) -> None:
        """Adds values of an update to the log row of this epoch, which has their statistics."""
        for name, value in values.items():
            self._recorded[name].append(float(value))

    def get_env_copy(self) -> gymnasium.Env[Any, Any]:
        """Returns a copy of the environment, or a new one where `setup` was given a way to make it."""
        env = self._require_setup().env
        env = env[0] if isinstance(env, list) else env
        if isinstance(env, gymnasium.Env):
            return copy.deepcopy(env)
        made: gymnasium.Env[Any, Any] = env() if isinstance(env, EnvUpdate) else EnvFactory.of(env, None, "env")()
        return made

    # ---- snapshots ----

    def save(self, epoch: int) -> None:
        """Saves a snapshot of algorithm, environment and counters, if this epoch has one.

        Raises:
            NotSetupError: before `setup`.
            ValueError: if the runner has no folder.
        """
        setup = self._require_setup()
        if self._snapshots is None:
            raise ValueError("the runner has no folder; LocalRunner(snapshot_config=...) names it")
        counters = {"total_env_steps": self.total_env_steps, "step_itr": self.step_itr}
        self._snapshots.save(epoch, {"setup": setup, "args": self._args, "counters": counters})

    def restore(self, from_dir: str | Path, from_epoch: int | str = "last") -> TrainArgs:
        """Restores a saved run; `resume` continues it.

        Args:
            from_dir: the folder.
            from_epoch: number of the epoch, "last" or "first".

        Returns:
            The arguments of `train`, with the epoch at which `resume` begins.
        """
        epoch, state = Snapshots(SnapshotConfig(from_dir)).load(from_epoch)
        self._setup = state["setup"]
        self.seed = state["setup"].seed
        self.total_env_steps = self._logged_steps = state["counters"]["total_env_steps"]
        self.step_itr = state["counters"]["step_itr"]
        args = state["args"] or TrainArgs(0)
        self._args = replace(args, start_epoch=epoch + 1)
        self._restored = True
        return self._args

    def resume(self, n_epochs: int | None = None, batch_size: int | None = None) -> Any:
        """Continues a restored run with new episodes; returns what the algorithm returns.

        Args:
            n_epochs: number of epochs. Default: as before.
            batch_size: see `train`. Default: as before.

        Raises:
            NotSetupError: before `restore`.
        """
        if not self._restored or self._args is None:
            raise NotSetupError("there is nothing to resume; call restore(from_dir) first")
        changed = {"n_epochs": n_epochs, "batch_size": batch_size}
        return self._train(replace(self._args, **{name: value for name, value in changed.items() if value is not None}))

    # ---- shared ----

    def _train(self, args: TrainArgs) -> Any:
        setup = self._require_setup()
        algo = setup.algo
        self._args = args
        self._began, self._logged_seconds = perf_counter(), 0.0
        limit = algo.max_path_length if isinstance(algo, _LimitsPaths) else None
        if limit is None and isinstance(algo, _LimitsEpisodes):
            limit = algo.max_episode_length
        policy = algo.exploration_policy if isinstance(algo, _Explores) else None
        sampler_cls: Any = setup.sampler_cls or LocalSampler
        self._logger = self._opened_logger(args.start_epoch)
        with self._logger:
            self._logger.start((args.n_epochs - args.start_epoch) * (args.batch_size or 0))
            self._sampler = sampler_cls(
                algo.policy if policy is None else policy,
                setup.env,
                max_episode_length=limit,
                n_workers=setup.n_workers,
                worker_class=setup.worker_class,
                worker_args=setup.worker_args,
                seed=_seed_from(self.seed, args.start_epoch),
                **setup.sampler_args,
            )
            try:
                with self._sampler:
                    return algo.train(self)
            finally:
                self._sampler = None

    def _opened_logger(self, start_epoch: int) -> Logger:
        if self._config is None:
            return self._given_logger
        folder = Path(self._config.snapshot_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return Loggers(CsvLogger(folder / "progress.csv", keep_rows=start_epoch or None), self._given_logger)

    def _log(self, epoch: int) -> None:
        seconds = perf_counter() - self._began
        row: dict[str, float] = {
            "Iteration": epoch + 1,
            "CumTime": seconds,
            "CumSteps": self.total_env_steps,
            "StepsPerSecond": (self.total_env_steps - self._logged_steps) / (seconds - self._logged_seconds),
        }
        for name, parts in (("Return", self._returns), ("Length", self._lengths)):
            row |= statistics(name, np.concatenate(parts).tolist() if parts else [])
            parts.clear()
        for name, values in self._recorded.items():
            row |= statistics(name, values)
            values.clear()
        self._logged_steps, self._logged_seconds = self.total_env_steps, seconds
        self._logger.row(row)

    def _require_setup(self) -> _Setup:
        if self._setup is None:
            raise NotSetupError("the runner does not know what to train; call setup(algo, env) first")
        return self._setup

    def _require_training(self) -> TrainArgs:
        if self._args is None or self._sampler is None:
            raise NotSetupError("the runner is not training; call train(n_epochs, batch_size) after setup(algo, env)")
        return self._args


def _seed_from(seed: int, start_epoch: int) -> int:
    """Returns the sampler's seed: a resumed run must not repeat the episodes of its beginning."""
    if not start_epoch:
        return seed
    state = np.random.SeedSequence(seed, spawn_key=(start_epoch,)).generate_state(1)
    return int(state[0]) & 0x7FFFFFFF


#: The later name of `LocalRunner`.
Trainer = LocalRunner
