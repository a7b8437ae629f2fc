"""`BaseSampler`: what every sampler is, whoever steps its environments."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from headrace.agents.base import Agent
from headrace.buffers.samples import Samples
from headrace.envs.scalar import EnvInfoKeys
from headrace.errors import SamplerClosed, SamplerError, shortened
from headrace.processes.affinity import Affinity
from headrace.processes.status import Status
from headrace.rng import draw_seed
from headrace.samplers.device_rows import DeviceBatch
from headrace.samplers.exclusive import Owner, exclusive
from headrace.samplers.hooks import Hooks
from headrace.samplers.layout import Layout
from headrace.samplers.settings import SamplerSettings
from headrace.samplers.slots import Slots, slot_spec
from headrace.samplers.snapshot import SamplerState, SliceState, joined
from headrace.samplers.timing import ServerTiming, TimingReport
from headrace.samplers.traj_info import Episodes, TrajInfo, make_traj_infos
from headrace.samplers.validate import checked_arguments
from headrace.types import Timing

__all__ = ["BaseSampler"]

_log = logging.getLogger("headrace.samplers")


class BaseSampler(Hooks):
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
        device: where the agent acts, a torch device. Default: for samplers with an action server the first GPU if there
            is one; else the CPU.
        samples_device: have batches as tensors there; what the agent sees and does is kept there row by row, so that
            nothing of it is sent a second time. Default: views of the sampler's memory.
        n_slots: batches in memory, written in turn: views stay valid for as many calls; default 1. Asynchronous
            samplers collect n_slots − 1 batches ahead, and views are valid until the next call; default 2.
        eval_process: evaluate in a process of its own, beside training; for asynchronous samplers.
        isolate_rng: give each environment global generators of its own (NumPy's, Python's, torch's), by seed and env
            id, so that batches are alike for any number of workers though it draws from them; 60 µs a step.
        pad: the greatest lengths of texts and sequences in the observation, by their place; see `envs.Padded`.
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
        device: Any = None,
        samples_device: Any = None,
        n_slots: int | None = None,
        eval_process: bool = False,
        isolate_rng: bool = False,
        pad: Mapping[str, int] | None = None,
    ) -> None:
        self._settings = SamplerSettings.checked(
            type(self).__name__,
            self.layout,
            EnvCls,
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
            device=device,
            samples_device=samples_device,
            n_slots=n_slots,
            eval_process=eval_process,
            isolate_rng=isolate_rng,
            pad=pad,
        )
        self._prepare()

    @classmethod
    def of(cls, settings: SamplerSettings) -> Self:
        """A sampler with the settings of another."""
        sampler = cls.__new__(cls)
        sampler._settings = settings
        sampler._prepare()
        return sampler

    def _prepare(self) -> None:
        self.batch_spec = self._settings.batch_spec
        self._status = Status()
        self._owner = Owner()
        self._first_slice = 0  # of the batch's slices, where this sampler collects a part of it
        self._state = "new"  # new → open → closed
        self._cause: BaseException | None = None
        self._said: set[str] = set()
        self._timings: list[Timing] = []
        self._servers: list[ServerTiming] = []  # of the action servers, if there are any
        self._seconds = 0.0
        self._slots: Slots | None = None
        self._kept: DeviceBatch | None = None  # where samples_device says

    # ---- public ----

    @exclusive
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
            self._settings.traj_info_cls(**self._traj_info_kwargs)
        except TypeError as error:
            name = self._settings.traj_info_cls.__name__
            raise TypeError(f"traj_info_kwargs are not what {name} takes: {error}") from error
        placement = Affinity.of(affinity)
        self.seed = draw_seed() if seed is None else int(seed)
        self._agent = agent
        start = SamplerState(0, 0, 0, 0) if resume is None else resume
        self._n_batches, self._n_evaluations, self._version = start.batches, start.evaluations, start.version
        self._incarnation = start.next_incarnation
        B = self.batch_spec.B
        env_ids = range(int(rank) * B, int(rank) * B + B)
        start.require(env_ids, self._settings.eval_n_envs)
        try:
            self._slices = self._divided(env_ids, placement)
            configs = self._settings.configs(
                self._slices,
                int(rank),
                self.seed,
                self._traj_info_kwargs,
                start,
                resumable,
            )
            spaces = self._start(configs, placement)
            agent.initialize(spaces, seed=self.seed, global_B=int(world_size) * B, env_ids=env_ids)
            widths = tuple(len(config.env_ids) for config in configs)
            spec = slot_spec(agent, spaces, self.batch_spec, widths, self._settings.env_info_keys, bootstrap_value)
            self._slots = Slots(spec, self._settings.n_slots)
            try:
                self._setup(spec, self._slots, configs)
            finally:
                self._slots.arena.close_fd()
            self._state = "open"
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        return self

    @exclusive
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
            assert self._slots is not None
            samples = self._slots.samples(self._n_batches - 1, reports)
            samples = samples if self._kept is None else self._kept.samples(samples)
            traj_infos = self._traj_infos([report.episodes for report in reports])
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        self._say([note for report in reports for note in report.notes])
        self._timings = [report.timing for report in reports]
        self._seconds += perf_counter() - begin
        return samples, traj_infos

    @exclusive
    def evaluate_agent(self, itr: int) -> list[TrajInfo]:
        """Greedy episodes of the agent as it is now, in the order (end time, env id).

        Every evaluation environment starts the same number of episodes, and all of them are in the answer; those cut by
        `eval_max_steps` have `finished=False`.
        """
        self._require_open()
        if not self._settings.eval_n_envs:
            raise SamplerError("evaluate_agent() needs evaluation environments; give the sampler eval_n_envs")
        checked_arguments(itr=itr)
        try:
            episodes = self._evaluate(itr, self._next_version(), self._n_evaluations)
            self._n_evaluations += 1
            return self._traj_infos(episodes)
        except BaseException as error:
            raise self._abandon(error) from error.__cause__

    @exclusive
    def state(self, environments: bool = True) -> SamplerState:
        """Where the sampler stands, between batches, for `initialize(resume=...)`.

        With environments, if they can be pickled and a copy was seen to go on as the original does: one that goes on
        from here then continues every episode. The answer's `why_not` says why they are missing.
        """
        found = SliceState(why_not="they were not asked for")
        if environments:
            self._require_open()
            try:
                found = joined(self._states())
            except BaseException as error:
                raise self._abandon(error) from error.__cause__
        return SamplerState(
            batches=self._n_begun(),
            evaluations=self._n_evaluations,
            version=self._version,
            incarnation=self._incarnation,
            ahead=self._n_begun() - self._n_batches,
            train=found.train,
            evaluation=found.evaluation,
            memory=found.memory,
            why_not=found.why_not,
        )

    @exclusive
    def call_envs(self, name: str, *args: Any, env_ids: Sequence[int] | None = None) -> list[Any]:
        """`env.name(*args)` of training environments, between batches: curricula, looking into a simulator.

        The method is looked for through the wrappers; an attribute that is not callable is returned. env_ids: which
        environments, default all (a vector environment is called once, for all of its rows; a sequence of answers is
        taken apart). Returns the answers in the order of `env_ids`. Workers answer by pickle.
        """
        self._require_open()
        own = [env_id for one in self._slices for env_id in one.env_ids]
        wanted = own if env_ids is None else [int(env_id) for env_id in env_ids]
        unknown = sorted(set(wanted) - set(own))
        if unknown:
            raise ValueError(f"env_ids has {unknown}, this sampler has the environments {own[0]} to {own[-1]}")
        self._settings.require_callable(self._slices, wanted)
        try:
            answers = self._call(name, args, wanted)
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        return [answers[env_id] for env_id in wanted]

    def traj_info(self, values: Mapping[str, Any]) -> TrajInfo:
        """An episode as this sampler makes them, with these fields."""
        info = self._settings.traj_info_cls(**self._traj_info_kwargs)
        vars(info).update(values)
        return info

    @property
    def env_name(self) -> str | None:
        """What another program gives as `EnvCls` for the same environments; None for what has no name there."""
        return self._settings.factory.importable

    def settings(self) -> dict[str, Any]:
        """What decides what is in a batch, besides the agent and the seed; not where and how fast it is collected."""
        return self._settings.content()

    def timing(self) -> TimingReport:
        """Where the time of `obtain_samples` went so far, an action server's too."""
        return TimingReport.of(self._timings, self._seconds).with_servers(self._servers)

    @exclusive
    def shutdown(self) -> None:
        """Closes environments and processes; raises what closing an environment raised. Safe to call twice."""
        was_open, self._state = self._state == "open", "closed"
        self._slots = self._kept = None
        if was_open:
            try:
                self._stop()
            except BaseException as error:
                self._cause = error
                self._kill()
                raise shortened(error) from error.__cause__

    def __enter__(self) -> Self:
        if self._state == "new":
            raise SamplerError("call initialize() first: `with sampler.initialize(agent): ...`")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.shutdown()
        else:
            self._abandon(error)

    # ---- shared ----

    def _n_begun(self) -> int:
        """How many batches were begun: the number of the next one."""
        return self._n_batches

    def _traj_infos(self, parts: Sequence[Episodes]) -> list[TrajInfo]:
        return make_traj_infos(parts, self._settings.traj_info_cls, self._traj_info_kwargs)

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
            self._slots = self._kept = None
            if isinstance(error, SamplerError) and error.__cause__ is None:
                # It happened in another process. The frames it came through here would keep the batch alive, memory and
                # descriptor, for as long as somebody keeps the error.
                traceback.clear_frames(error.__traceback__)
            self._kill()
        return shortened(error)
