"""`BaseSampler`: the public interface that all samplers share."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from headrace import compiled
from headrace.agents.base import Agent
from headrace.buffers.samples import Samples
from headrace.errors import SamplerClosed, SamplerError, shortened
from headrace.processes.affinity import Affinity
from headrace.processes.exclusive import Owner, exclusive
from headrace.processes.status import Status
from headrace.rng import draw_seed
from headrace.samplers.collection.snapshot import SamplerState, SliceState, joined
from headrace.samplers.config import SamplerConfig, SamplerOptions, takes_options
from headrace.samplers.engine import Engine
from headrace.samplers.engines.make import make_engine
from headrace.samplers.inference.spec import slot_spec
from headrace.samplers.layout import Layout
from headrace.samplers.timing import TimingReport
from headrace.samplers.traj_info import Episodes, TrajInfo, TrajInfos
from headrace.samplers.validate import checked_arguments
from headrace.samplers.workers.memory import Slots
from headrace.types import Timing

__all__ = ["BaseSampler"]

_log = logging.getLogger("headrace.samplers")


class BaseSampler:
    """Collects batches `[batch_T, batch_B]` with an agent. All samplers have the same methods::

        with sampler.initialize(agent, seed=0, bootstrap_value=True):
            samples, traj_infos = sampler.obtain_samples(itr)
            eval_infos = sampler.evaluate_agent(itr)

    Subclasses differ only in their `layout`; all take the same options, see `SamplerOptions`.
    """

    layout: Layout

    @takes_options(SamplerOptions)
    def __init__(self, options: SamplerOptions) -> None:
        self._construct(options)

    def _construct(self, options: SamplerOptions) -> None:
        name = type(self).__name__
        self._config = SamplerConfig.checked(name, self.layout, options)
        self.batch_spec = self._config.batch_spec
        self._owner = Owner()
        self._engine = self._made_engine(Status())
        self._state = "new"  # new → open → closed
        self._cause: BaseException | None = None
        self._said: set[str] = set()
        self._traj_info_kwargs: dict[str, Any] = {}
        self._timings: list[Timing] = []
        self._seconds = 0.0
        self._slots: Slots | None = None

    def _made_engine(self, status: Status) -> Engine:
        return make_engine(type(self).__name__, self.layout, self._config, status)

    def _call_context(self) -> AbstractContextManager[None]:
        """Returns the context of every public call; see `exclusive`."""
        return self._engine.call_context()

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
        """Makes the environments, initializes the agent from their spaces and starts the workers.

        Args:
            agent: the agent that acts; its model is built here unless the agent is already initialized.
            affinity: where workers run, an `Affinity` or rlpyt's dict.
            seed: seed of all randomness. Default: drawn from the operating system and kept in `sampler.seed`.
            bootstrap_value: whether to record the value of row T in `samples.agent.bootstrap_value`.
            traj_info_kwargs: arguments of `TrajInfoCls`, for example `{"discount": 0.99}`.
            rank: index of this sampler among `world_size` samplers; its env ids are rank · B + column.
            world_size: number of samplers of the same size.
            resumable: whether `state()` will be called to save the environments.
            resume: the state to continue from; the seed and the settings must be the same.

        Returns:
            The sampler itself.

        Raises:
            SamplerError: if `initialize` was called before, or if an environment, the agent or a worker fails.
            TypeError: if an argument has a wrong type, or `TrajInfoCls` does not accept `traj_info_kwargs`.
            ValueError: if an argument has a wrong value.
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
        if compiled.note is not None:
            self._say([compiled.note])
        self._traj_info_kwargs = dict(traj_info_kwargs or {})
        config, engine = self._config, self._engine
        traj_info_cls = config.options.TrajInfoCls
        try:
            traj_info_cls(**self._traj_info_kwargs)
        except TypeError as error:
            raise TypeError(f"traj_info_kwargs do not fit {traj_info_cls.__name__}: {error}") from error
        placement = Affinity.of(affinity)
        config = self._config = engine.config = config.placed(type(self).__name__, self.layout, placement)
        self.seed = draw_seed() if seed is None else int(seed)
        start = SamplerState(0, 0, 0, 0) if resume is None else resume
        self._n_batches, self._n_evaluations, self._version = start.batches, start.evaluations, start.version
        self._incarnation = start.next_incarnation
        B = self.batch_spec.B
        env_ids = range(int(rank) * B, int(rank) * B + B)
        start.require(env_ids, config.options.eval_n_envs)
        try:
            self._slices = engine.divide(env_ids, placement)
            configs = config.slice_configs(self._slices, int(rank), self.seed, self._traj_info_kwargs, start, resumable)
            spaces = engine.start(self._slices, configs, placement)
            agent.initialize(spaces, seed=self.seed, global_B=int(world_size) * B, env_ids=env_ids)
            widths = tuple(len(own.env_ids) for own in configs)
            spec = slot_spec(agent, spaces, self.batch_spec, widths, config.env_info_keys, bootstrap_value)
            self._slots = Slots(spec, config.n_slots)
            try:
                engine.setup(agent, spec, self._slots, configs, 0)
            finally:
                self._slots.arena.close_fd()
            self._state = "open"
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        return self

    def move_here(self, status: Status) -> None:
        """Makes this process the one that uses the sampler, of which another process sent it a copy.

        Args:
            status: where this process records what it is doing, for the one that watches it.

        Raises:
            SamplerError: after `initialize`.
        """
        if self._state != "new":
            raise SamplerError("move_here() must be called before initialize()")
        self._owner = Owner()
        self._engine.status = status

    @exclusive
    def obtain_samples(self, itr: int) -> tuple[Samples, Sequence[TrajInfo]]:
        """Collects one batch with the agent's current parameters.

        Args:
            itr: number of the batch, for the agent's schedules.

        Returns:
            The samples and the `TrajInfo`s of the episodes that ended in the batch, sorted by (end time, env id). The
            samples are views of memory that the next call overwrites (with more slots, a later call: see `n_slots`);
            call `samples.copy()` to keep them.
        """
        self._require_open()
        checked_arguments(itr=itr)
        begin = perf_counter()
        try:
            reports = self._engine.collect(itr, self._next_version(), self._n_batches)
            self._n_batches += 1
            assert self._slots is not None
            samples = self._slots.samples(self._n_batches - 1, reports)
            on_device = self._engine.device_batch
            samples = samples if on_device is None else on_device.samples(samples)
            traj_infos = self._traj_infos([report.episodes for report in reports])
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        self._say([note for report in reports for note in report.notes])
        self._timings = [report.timing for report in reports]
        self._seconds += perf_counter() - begin
        return samples, traj_infos

    def batches(self, n: int) -> Iterator[tuple[Samples, Sequence[TrajInfo]]]:
        """Yields `obtain_samples(itr)` for itr = 0 … n − 1: `for samples, traj_infos in sampler.batches(100): …`."""
        for itr in range(n):
            yield self.obtain_samples(itr)

    @exclusive
    def evaluate_agent(self, itr: int) -> list[TrajInfo]:
        """Runs greedy episodes with the agent's current parameters.

        Every evaluation environment starts the same number of episodes, and all of them are returned; episodes cut by
        `eval_max_steps` have `finished=False`.

        Args:
            itr: number of the batch, for the agent's schedules.

        Returns:
            The episodes, as `TrajInfo` objects, sorted by (end time, env id).

        Raises:
            SamplerError: if the sampler has no evaluation environments.
        """
        self._require_open()
        if not self._config.options.eval_n_envs:
            raise SamplerError("evaluate_agent() needs evaluation environments; pass eval_n_envs to the sampler")
        checked_arguments(itr=itr)
        try:
            episodes = self._engine.evaluate(itr, self._next_version(), self._n_evaluations)
            self._n_evaluations += 1
            return list(self._traj_infos(episodes))
        except BaseException as error:
            raise self._abandon(error) from error.__cause__

    @exclusive
    def state(self, environments: bool = True) -> SamplerState:
        """Returns the sampler's state between two batches, for `initialize(resume=...)`.

        Args:
            environments: whether to include the environments. They are included if they can be pickled and a test copy
                was seen to behave like the original; a sampler that resumes from this state then continues every
                episode.

        Returns:
            The state. If it lacks the environments, its `why_not` says why.
        """
        found = SliceState(why_not="state() was called with environments=False")
        if environments:
            self._require_open()
            try:
                found = joined(self._engine.states())
            except BaseException as error:
                raise self._abandon(error) from error.__cause__
        n_commanded = self._engine.n_commanded(self._n_batches)
        return SamplerState(
            batches=n_commanded,
            evaluations=self._n_evaluations,
            version=self._version,
            incarnation=self._incarnation,
            ahead=n_commanded - self._n_batches,
            train=found.train,
            evaluation=found.evaluation,
            memory=found.memory,
            why_not=found.why_not,
        )

    @exclusive
    def call_envs(self, name: str, *args: Any, env_ids: Sequence[int] | None = None) -> list[Any]:
        """Calls `env.name(*args)` on training environments between batches, for curricula or to inspect a simulator.

        The method is looked up through the wrappers; an attribute that is not callable is returned. A vector
        environment is called once for all its columns, and a sequence that it returns is split over them. Workers send
        the results by pickle.

        Args:
            name: name of the method or attribute.
            args: arguments of the method.
            env_ids: which environments to call. Default: all.

        Returns:
            The results in the order of `env_ids`.

        Raises:
            ValueError: if `env_ids` names unknown environments, or only some columns of a vector environment.
            TypeError: if the arguments cannot be pickled.
        """
        self._require_open()
        own = [env_id for one in self._slices for env_id in one.env_ids]
        wanted = own if env_ids is None else [int(env_id) for env_id in env_ids]
        unknown = sorted(set(wanted) - set(own))
        if unknown:
            raise ValueError(f"env_ids has {unknown}, but this sampler has the environments {own[0]} to {own[-1]}")
        self._config.require_callable(self._slices, wanted)
        self._engine.require_sendable(args)
        try:
            answers = self._engine.call(name, args, wanted)
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        return [answers[env_id] for env_id in wanted]

    def traj_info(self, values: Mapping[str, Any]) -> TrajInfo:
        """Returns a `TrajInfo` of this sampler's `TrajInfoCls` with its fields set to `values`."""
        info = self._config.options.TrajInfoCls(**self._traj_info_kwargs)
        vars(info).update(values)
        return info

    @property
    def env_name(self) -> str | None:
        """The `EnvCls` argument with which another program can make the same environments; None if there is no such
        name.
        """
        return self._config.factory.importable

    def settings(self) -> dict[str, Any]:
        """Returns the settings that determine the contents of a batch, apart from the agent and the seed.

        Settings that only change where and how fast batches are collected are not included.
        """
        return self._config.content()

    def timing(self) -> TimingReport:
        """Returns how the time of `obtain_samples` was spent so far, including an action server's time."""
        seconds = self._engine.seconds(self._seconds)
        return TimingReport.of(self._timings, seconds).with_servers(self._engine.server_timings)

    @exclusive
    def shutdown(self) -> None:
        """Closes the environments and processes; raises an error that closing an environment raised. Safe to call
        twice.
        """
        was_open, self._state = self._state == "open", "closed"
        self._slots = None
        if was_open:
            try:
                self._engine.stop()
            except BaseException as error:
                self._cause = error
                self._engine.kill()
                raise shortened(error) from error.__cause__

    def __repr__(self) -> str:
        options, spec = self._config.options, self.batch_spec
        workers = "" if options.n_workers is None else f", n_workers={options.n_workers}"
        return f"<{type(self).__name__} of {self._config.factory.name}, T={spec.T}, B={spec.B}{workers}: {self._state}>"

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

    def _traj_infos(self, parts: Sequence[Episodes]) -> TrajInfos:
        return TrajInfos(parts, self._config.options.TrajInfoCls, self._traj_info_kwargs)

    def _next_version(self) -> int:
        """Returns the next version; versions number the calls that act: 0, 1, 2, …"""
        version, self._version = self._version, self._version + 1
        return version

    def _say(self, notes: Sequence[tuple[int, str]]) -> None:
        """Logs each (level, sentence) once."""
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
        """Closes everything after `error` and keeps it as the cause of later refusals; returns the error to raise."""
        if self._state != "closed":
            self._state, self._cause = "closed", error
            self._slots = None
            if isinstance(error, SamplerError) and error.__cause__ is None:
                # The error happened in another process. The frames it passed through here would keep the batch (memory
                # and file descriptor) alive for as long as the caller keeps the error.
                traceback.clear_frames(error.__traceback__)
            self._engine.kill()
        return shortened(error)
