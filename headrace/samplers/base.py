"""`BaseSampler`: what every sampler is, whoever steps its environments."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from headrace.agents.base import Agent
from headrace.buffers.samples import Samples, Slot, SlotSpec
from headrace.envs.factory import EnvFactory
from headrace.envs.scalar import EnvInfoKeys
from headrace.errors import SamplerClosed, SamplerError
from headrace.processes.affinity import Affinity
from headrace.rng import draw_seed
from headrace.samplers.collector import CollectorConfig, SliceReport
from headrace.samplers.layout import Layout, spread
from headrace.samplers.slots import assembled, slot_spec
from headrace.samplers.snapshot import SamplerState, SliceState
from headrace.samplers.timing import TimingReport
from headrace.samplers.traj_info import Episodes, TrajInfo, make_traj_infos
from headrace.samplers.validate import checked_arguments
from headrace.types import BatchSpec, EnvSpaces, Timing

__all__ = ["BaseSampler"]

_log = logging.getLogger("headrace.samplers")


class BaseSampler(ABC):
    """Collects batches `[batch_T, batch_B]` with an agent. The same calls for every sampler::

        with sampler.initialize(agent, seed=0, bootstrap_value=True):
            samples, traj_infos = sampler.obtain_samples(itr)
            eval_infos = sampler.evaluate_agent(itr)

    Args:
        EnvCls: a Gymnasium id, an `EnvSpec`, "module:callable", "gym:Id-v0" for old gym's registry, or any callable
            that returns a `gymnasium.Env`; environments of old gym are adapted.
        env_kwargs: its arguments.
        batch_T, batch_B: time steps and environments of a batch.
        n_workers: worker processes; None chooses from the machine. At most `batch_B` are started.
        max_decorrelation_steps: each environment first takes a random number (1 to this) of random actions; 0: none.
        TrajInfoCls: statistics of an episode, a subclass of `TrajInfo`.
        eval_n_envs: environments for `evaluate_agent`; 0: none.
        eval_env_kwargs: their arguments, `env_kwargs` if None.
        eval_max_steps: steps of an evaluation over all its environments, default 100 000 per environment.
        eval_max_trajectories: episodes of an evaluation, rounded up to the same number for every environment (so short
            episodes are not favoured); default one per environment.
        reset_mode: "mid_batch": an ended environment is reset at once; "wait": it waits for the end of the batch, its
            rows are padding with `valid=False`.
        env_info_keys: `{name: (dtype, shape)}`, the info fields recorded in `samples.env.env_info`.
        start_method: "fork", "forkserver", "spawn", or "auto": fork on Linux while CUDA is not initialised.
        timeout: seconds without progress (one row of environment steps) after which a worker counts as hung.
        start_timeout: the same for construction, first resets and decorrelation.
        deterministic: infer in fixed blocks of rows, so that batches are equal bit for bit for any number of workers.
    """

    layout: Layout

    def __init__(
        self,
        EnvCls: Any,
        env_kwargs: Mapping[str, Any] | None = None,
        *,
        batch_T: int,
        batch_B: int,
        n_workers: int | None = None,
        max_decorrelation_steps: int = 100,
        TrajInfoCls: type[TrajInfo] = TrajInfo,
        eval_n_envs: int = 0,
        eval_env_kwargs: Mapping[str, Any] | None = None,
        eval_max_steps: int | None = None,
        eval_max_trajectories: int | None = None,
        reset_mode: str = "mid_batch",
        env_info_keys: EnvInfoKeys | None = None,
        start_method: str = "auto",
        timeout: float = 60.0,
        start_timeout: float = 120.0,
        deterministic: bool = False,
    ) -> None:
        checked_arguments(
            env_kwargs=env_kwargs,
            batch_T=batch_T,
            batch_B=batch_B,
            n_workers=n_workers,
            max_decorrelation_steps=max_decorrelation_steps,
            TrajInfoCls=TrajInfoCls,
            eval_n_envs=eval_n_envs,
            eval_env_kwargs=eval_env_kwargs,
            eval_max_steps=eval_max_steps,
            eval_max_trajectories=eval_max_trajectories,
            reset_mode=reset_mode,
            env_info_keys=env_info_keys,
            start_method=start_method,
            timeout=timeout,
            start_timeout=start_timeout,
            deterministic=deterministic,
        )
        self.batch_spec = BatchSpec(int(batch_T), int(batch_B))
        self._factory = EnvFactory.of(EnvCls, env_kwargs)
        self._eval_factory = EnvFactory.of(EnvCls, env_kwargs if eval_env_kwargs is None else eval_env_kwargs)
        self._n_workers = None if n_workers is None else int(n_workers)
        self._max_decorrelation_steps = int(max_decorrelation_steps)
        self._traj_info_cls = TrajInfoCls
        self._eval_n_envs = int(eval_n_envs)
        self._eval_max_steps = eval_max_steps
        self._eval_max_trajectories = eval_max_trajectories
        self._reset_mode = reset_mode
        self._env_info_keys = dict(env_info_keys or {})
        self._start_method = start_method
        self._timeout = float(timeout)
        self._start_timeout = float(start_timeout)
        self._deterministic = bool(deterministic)
        self._state = "new"  # new → open → closed
        self._cause: BaseException | None = None
        self._said: set[str] = set()
        self._timings: list[Timing] = []
        self._seconds = 0.0
        self._slot: Slot | None = None
        self._views: Samples | None = None

    # ---- public ----

    def initialize(
        self,
        agent: Agent,
        affinity: Affinity | Mapping[str, Any] | None = None,
        seed: int | None = None,
        bootstrap_value: bool = False,
        traj_info_kwargs: Mapping[str, Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
        resumable: bool = False,
        resume: SamplerState | None = None,
    ) -> Self:
        """Makes the environments, builds the agent's model from their spaces, starts the workers; returns the sampler.

        agent: built here unless it already is; affinity: where workers run (`Affinity`, or rlpyt's dict); seed: of all
        randomness, None draws one (`sampler.seed` tells); bootstrap_value: record the value of row T;
        traj_info_kwargs: arguments of `TrajInfoCls`, e.g. `{"discount": 0.99}`; rank, world_size: this sampler's place
        among several of the same size, env ids are rank · B + column; resumable: `state()` will be asked for;
        resume: go on from there, with the same seed and settings.
        """
        if self._state != "new":
            self._require_open()
            raise SamplerError("initialize() was called before; make a new sampler for another agent")
        checked_arguments(
            seed=seed,
            rank=rank,
            world_size=world_size,
            agent=agent,
            traj_info_kwargs=traj_info_kwargs,
            bootstrap_value=bootstrap_value,
            resumable=resumable,
        )
        self._traj_info_kwargs = dict(traj_info_kwargs or {})
        try:
            self._traj_info_cls(**self._traj_info_kwargs)
        except TypeError as error:
            raise TypeError(f"traj_info_kwargs are not what {self._traj_info_cls.__name__} takes: {error}") from error
        rank, world_size = int(rank), int(world_size)
        placement = Affinity.of(affinity)
        self.seed = draw_seed() if seed is None else int(seed)
        self._agent = agent
        start = SamplerState(0, 0, 0, 0) if resume is None else resume
        self._n_batches, self._n_evaluations, self._version = start.batches, start.evaluations, start.version
        self._incarnation, self._resumable = start.next_incarnation, resumable
        B = self.batch_spec.B
        env_ids = range(rank * B, rank * B + B)
        start.require(env_ids, self._eval_n_envs)
        try:
            configs = self._configs(env_ids, rank, placement, start)
            spaces = self._start(configs, placement)
            agent.initialize(spaces, seed=self.seed, global_B=world_size * B, env_ids=env_ids)
            widths = tuple(len(config.env_ids) for config in configs)
            self._slot = self._setup(
                slot_spec(agent, spaces, self.batch_spec, widths, self._env_info_keys, bootstrap_value)
            )
            self._views = Samples.of(self._slot)
            self._state = "open"
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        return self

    def obtain_samples(self, itr: int) -> tuple[Samples, list[TrajInfo]]:
        """One batch by the agent as it is now, and the episodes that ended in it, in the order (end time, env id).

        itr: number of the batch, for the agent's schedules. The samples are views of memory that the next call writes
        again; `samples.copy()` keeps them.
        """
        self._require_open()
        checked_arguments(itr=itr)
        begin = perf_counter()
        try:
            reports = self._collect(itr, self._next_version(), self._n_batches)
            self._n_batches += 1
            assert self._slot is not None
            assert self._views is not None
            samples = self._views.with_final(assembled(reports, self._slot))
            traj_infos = make_traj_infos([r.episodes for r in reports], self._traj_info_cls, self._traj_info_kwargs)
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        self._say([note for report in reports for note in report.notes])
        self._timings = [report.timing for report in reports]
        self._seconds += perf_counter() - begin
        return samples, traj_infos

    def evaluate_agent(self, itr: int) -> list[TrajInfo]:
        """Greedy episodes of the agent as it is now, in the order (end time, env id).

        Every evaluation environment starts the same number of episodes, and all of them are in the answer; those cut by
        `eval_max_steps` have `finished=False`.
        """
        self._require_open()
        if not self._eval_n_envs:
            raise SamplerError("evaluate_agent() needs evaluation environments; give the sampler eval_n_envs")
        checked_arguments(itr=itr)
        try:
            episodes = self._evaluate(itr, self._next_version(), self._n_evaluations)
            self._n_evaluations += 1
            return make_traj_infos(episodes, self._traj_info_cls, self._traj_info_kwargs)
        except BaseException as error:
            raise self._abandon(error) from error.__cause__

    def state(self, environments: bool = True) -> SamplerState:
        """Where the sampler stands, between batches, for `initialize(resume=...)`.

        With environments, if they can be pickled and a copy was seen to go on as the original does: one that goes on
        from here then continues every episode. The answer's `why_not` says why they are missing.
        """
        train: dict[int, bytes] = {}
        evaluation: dict[int, bytes] = {}
        why_not = "they were not asked for"
        if environments:
            self._require_open()
            try:
                states = self._states()
            except BaseException as error:
                raise self._abandon(error) from error.__cause__
            why_not = next((state.why_not for state in states if state.why_not), "")
            for state in states if not why_not else ():
                train |= state.train
                evaluation |= state.evaluation
        return SamplerState(
            self._n_batches, self._n_evaluations, self._version, self._incarnation, train, evaluation, why_not
        )

    def traj_info(self, values: Mapping[str, Any]) -> TrajInfo:
        """An episode as this sampler makes them, with these fields."""
        info = self._traj_info_cls(**self._traj_info_kwargs)
        vars(info).update(values)
        return info

    def settings(self) -> dict[str, Any]:
        """What decides what is in a batch, besides the agent and the seed; not where and how fast it is collected."""
        return {
            "environment": self._factory.name,
            "env_kwargs": self._factory.kwargs,
            "eval_env_kwargs": self._eval_factory.kwargs,
            "batch_T": self.batch_spec.T,
            "batch_B": self.batch_spec.B,
            "max_decorrelation_steps": self._max_decorrelation_steps,
            "TrajInfoCls": self._traj_info_cls,
            "eval_n_envs": self._eval_n_envs,
            "eval_max_steps": self._eval_max_steps,
            "eval_max_trajectories": self._eval_max_trajectories,
            "reset_mode": self._reset_mode,
            "deterministic": self._deterministic,
        }

    def timing(self) -> TimingReport:
        """Where the time of `obtain_samples` went so far."""
        return TimingReport.of(self._timings, self._seconds)

    def shutdown(self) -> None:
        """Closes environments and processes; raises what closing an environment raised. Safe to call twice."""
        was_open, self._state = self._state == "open", "closed"
        self._slot = self._views = None
        if was_open:
            try:
                self._stop()
            except BaseException as error:
                self._cause = error
                self._kill()
                raise _shortened(error) from error.__cause__

    def __enter__(self) -> Self:
        if self._state == "new":
            raise SamplerError("call initialize() first: `with sampler.initialize(agent): ...`")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.shutdown()
        else:
            self._abandon(error)

    # ---- what a layout implements ----

    @abstractmethod
    def _start(self, configs: Sequence[CollectorConfig], affinity: Affinity) -> EnvSpaces:
        """Makes the environments of every slice; returns their spaces."""

    @abstractmethod
    def _setup(self, spec: SlotSpec) -> Slot:
        """Makes the slot and gives it, with the agent, to every slice; returns when all stand at their first row."""

    @abstractmethod
    def _collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        """Has every slice fill its columns of the slot; reports in the order of columns."""

    @abstractmethod
    def _evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        """Has every slice evaluate."""

    @abstractmethod
    def _states(self) -> list[SliceState]:
        """The state of every slice."""

    @abstractmethod
    def _stop(self) -> None:
        """Closes everything in good order."""

    @abstractmethod
    def _kill(self) -> None:
        """Closes everything at once, after an error; raises nothing of its own."""

    @abstractmethod
    def _n_slices(self, affinity: Affinity) -> int:
        """Into how many slices the columns are split."""

    # ---- shared ----

    def _configs(
        self, env_ids: Sequence[int], rank: int, affinity: Affinity, start: SamplerState
    ) -> list[CollectorConfig]:
        n_eval = self._eval_n_envs
        episodes = 1 if self._eval_max_trajectories is None else math.ceil(self._eval_max_trajectories / max(n_eval, 1))
        max_steps = 100_000 * n_eval if self._eval_max_steps is None else int(self._eval_max_steps)
        n_slices = self._n_slices(affinity)
        eval_ids = spread(range(rank * n_eval, rank * n_eval + n_eval), n_slices)
        return [
            CollectorConfig(
                factory=self._factory,
                env_ids=ids,
                seed=self.seed,
                traj_info=(self._traj_info_cls, self._traj_info_kwargs),
                wait_reset=self._reset_mode == "wait",
                max_decorrelation_steps=self._max_decorrelation_steps,
                env_info_keys=self._env_info_keys,
                deterministic=self._deterministic,
                eval_factory=self._eval_factory,
                eval_env_ids=eval_ids[index],
                eval_episodes=episodes,
                eval_max_T=max(1, max_steps // max(n_eval, 1)),
                incarnation=self._incarnation,
                resumable=self._resumable,
                saved={env_id: start.train[env_id] for env_id in ids if start.train},
                eval_saved={env_id: start.evaluation[env_id] for env_id in eval_ids[index] if start.evaluation},
            )
            for index, ids in enumerate(spread(env_ids, n_slices))
        ]

    def _next_version(self) -> int:
        """Parameters versions count the calls that act: 0, 1, 2, …"""
        version, self._version = self._version, self._version + 1
        return version

    def _say(self, notes: Sequence[tuple[int, str]]) -> None:
        """Logs (level, sentence) once each."""
        for level, sentence in notes:
            if sentence not in self._said:
                self._said.add(sentence)
                _log.log(level, sentence)

    def _require_open(self) -> None:
        if self._state == "new":
            raise SamplerError("the sampler is not initialized; call initialize(agent) first")
        if self._state == "closed":
            raise SamplerClosed("the sampler is closed; make a new one") from self._cause

    def _abandon(self, error: BaseException) -> BaseException:
        """Closes everything because of `error`, which is the cause of later refusals; returns what to raise."""
        if self._state != "closed":
            self._state, self._cause = "closed", error
            self._slot = self._views = None
            self._kill()
        return _shortened(error)


def _shortened(error: BaseException) -> BaseException:
    """Ctrl-C without the frames below the public call: a person who stops a program wants no page of traceback."""
    return KeyboardInterrupt() if isinstance(error, KeyboardInterrupt) else error
