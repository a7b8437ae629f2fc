"""What all samplers of whole episodes share."""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from headrace.agents.base import Agent
from headrace.errors import EnvContractError, SamplerClosed, shortened
from headrace.processes.exclusive import Owner, exclusive
from headrace.processes.status import Status
from headrace.samplers.engines.parallel import pickled_agent
from headrace.samplers.episodes.agents import as_agent
from headrace.samplers.episodes.batch import EpisodeBatch
from headrace.samplers.episodes.driver import AgentParameters, Report, WorkerDriver
from headrace.samplers.episodes.factory import WorkerFactory
from headrace.samplers.episodes.options import EpisodeOptions
from headrace.samplers.episodes.pace import Pace
from headrace.samplers.episodes.pools import Make, Pool
from headrace.samplers.episodes.started import Discarded, StartedEpisodes
from headrace.samplers.episodes.updates import per_worker, require_one_each
from headrace.samplers.validate import checked_arguments

__all__ = ["EpisodeSampler", "Sampler"]

_log = logging.getLogger("headrace.samplers")

#: Numbers of rows that workers take between two looks at what they have collected.
_FEWEST_ROWS, _MOST_ROWS = 16, 1024


class Sampler(Protocol):
    """What algorithms and runners use of a sampler of whole episodes."""

    total_env_steps: int

    def obtain_samples(
        self, itr: int, num_samples: int, agent_update: Any = None, env_update: Any = None
    ) -> EpisodeBatch:
        """Returns whole episodes with at least `num_samples` steps."""

    def obtain_exact_episodes(self, n_eps_per_worker: int, agent_update: Any = None, env_update: Any = None) -> Any:
        """Returns `n_eps_per_worker` new episodes of each worker, in worker order."""

    def shutdown_worker(self) -> None:
        """Closes the workers."""


class EpisodeSampler(ABC):
    """Base of the samplers of whole episodes, which differ in where their workers run::

        with LocalSampler(agent, "CartPole-v1", n_workers=2, worker_class=VecWorker, seed=0) as sampler:
            episodes = sampler.obtain_samples(itr, 2000)

    Episode k of environment e depends on the seed, e, k and the parameters that acted; samplers with equal arguments
    return equal episodes.

    `agent_update` of a call is None (the parameters that the sampler's agents have now, or those of the last call that
    gave parameters), parameters for `set_param_values`, an agent that takes the place of the sampler's, or a list of
    one for each worker. `env_update` is None, an environment, a callable that is given the old environment and returns
    the new one, or a list; after it, all environments start new episodes.
    """

    def __init__(self, options: EpisodeOptions) -> None:
        self._options = options
        self._factory: WorkerFactory = options.factory()
        self._owner = Owner()
        self._status = Status()
        self._cause: BaseException | None = None
        self._closed = False
        self._started = StartedEpisodes()
        self._version = -1
        self._row = 0
        self._said: set[str] = set()
        self._given = False  # whether the last parameters came from a call and not from the sampler's agents
        #: Number of environment steps that were returned.
        self.total_env_steps = 0
        n = self._factory.n_workers
        self._agents = [as_agent(agent) for agent in per_worker(options.agents, n, "agents")]
        updates = options.env_updates(n)
        makers = [partial(WorkerDriver, self._factory, number, updates[number]) for number in range(n)]
        try:
            self._pool = self._made_pool(makers)
            try:
                self._set_agents()
            except BaseException:
                self._pool.kill()
                raise
        except BaseException as error:
            self._closed, self._cause = True, error
            raise shortened(error) from error.__cause__

    @classmethod
    def from_worker_factory(cls, worker_factory: WorkerFactory, agents: Any, envs: Any) -> Self:
        """Returns a sampler whose workers are made by `worker_factory`."""
        return cls(agents, envs, worker_factory=worker_factory)  # type: ignore[call-arg]

    @abstractmethod
    def _made_pool(self, makers: Sequence[Make]) -> Pool:
        """Starts the workers."""

    def _call_context(self) -> AbstractContextManager[None]:
        return nullcontext()

    # ---- public ----

    @property
    def seed(self) -> int:
        """The seed of all randomness."""
        return self._factory.seed

    @property
    def worker_factory(self) -> WorkerFactory:
        """The factory of the workers."""
        return self._factory

    @property
    def discarded(self) -> Discarded:
        """What was collected and not returned so far."""
        return copy.copy(self._started.discarded)

    @exclusive
    def obtain_samples(
        self,
        itr: int,
        num_samples: int,
        agent_update: Any = None,
        env_update: Any = None,
        *,
        max_wait: float | None = None,
    ) -> EpisodeBatch:
        """Returns whole episodes with at least `num_samples` steps.

        Episodes are returned in the order in which they were started, so that short ones are not favoured: the call
        waits for an episode that was started before others that ended. What it does not return is carried over to the
        next call; `episodes.versions` says which parameters took each step.

        Args:
            itr: number of the call, for the agent's schedules.
            num_samples: number of steps.
            agent_update: see the class.
            env_update: see the class.
            max_wait: seconds after which the call returns the episodes that have ended, even if they have fewer steps,
                or an earlier one still runs. It returns at least one episode.

        Raises:
            SamplerError: if an environment, the agent or a worker fails.
            ValueError: if a list has a wrong length, or an argument a wrong value.
        """
        self._require_open()
        checked_arguments(itr=itr, num_samples=num_samples)
        updates = self._updates(agent_update, env_update)
        options, started = self._options, self._started
        pace = Pace(max_wait)
        by_arrival = options.by_arrival
        try:
            self._update(itr, *updates)
            if options.on_policy:
                started.discarded.steps += sum(self._call(WorkerDriver.restart, self._row))
            age = 0 if options.on_policy else options.max_age
            oldest = 0 if age is None else self._version - age
            started.drop_older(oldest)
            episodes = started.take(num_samples, by_arrival=by_arrival)
            rows = _FEWEST_ROWS
            while episodes is None:
                missing = math.ceil((num_samples - started.n_steps) / self._n_envs)
                # A few more, so that episodes end that were started before the last of those that are returned.
                missing += min(missing // 4, started.mean_length)
                n_rows = pace.most(min(_MOST_ROWS, max(rows, missing)))
                rows *= 2
                first_row, self._row = self._row, self._row + n_rows
                self._add(self._call(WorkerDriver.advance, first_row, self._row))
                pace.note(n_rows)
                started.drop_older(oldest)
                episodes = started.take(num_samples, unsettled=pace.is_late, by_arrival=by_arrival)
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        self.total_env_steps += len(episodes.rewards)
        return episodes

    @exclusive
    def obtain_exact_episodes(
        self, n_eps_per_worker: int, agent_update: Any = None, env_update: Any = None
    ) -> EpisodeBatch:
        """Returns `n_eps_per_worker` new episodes of each worker, in worker order.

        The environments of a worker share its episodes as evenly as possible; within a worker, episodes are in the
        order in which they were started. Episodes that `obtain_samples` left running are broken off, and counted in
        `discarded`; those that have ended are kept for its next call.

        Args:
            n_eps_per_worker: number of episodes.
            agent_update: see the class.
            env_update: see the class.
        """
        self._require_open()
        checked_arguments(n_eps_per_worker=n_eps_per_worker)
        updates = self._updates(agent_update, env_update)
        try:
            self._update(0, *updates)
            reports = self._call(WorkerDriver.run_episodes, self._row, n_eps_per_worker)
            self._row = max(report.row for report in reports)
            self._add([replace(report, episodes=[]) for report in reports])
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        parts = []
        for report in reports:
            own = EpisodeBatch.concatenate(*report.episodes)
            parts.append(own.take(np.lexsort((own.env_ids, own.starts))))
        episodes = EpisodeBatch.concatenate(*parts)
        self.total_env_steps += len(episodes.rewards)
        return episodes

    def obtain_exact_trajectories(
        self, n_traj_per_worker: int, agent_update: Any = None, env_update: Any = None
    ) -> EpisodeBatch:
        """Calls `obtain_exact_episodes`; the name of July 2020."""
        return self.obtain_exact_episodes(n_traj_per_worker, agent_update, env_update)

    def start_worker(self) -> None:  # noqa: B027 (a name of garage)
        """Does nothing: the constructor starts the workers."""

    @exclusive
    def shutdown_worker(self) -> None:
        """Closes the workers and their environments; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self._pool.stop()
        except BaseException as error:
            self._cause = error
            self._pool.kill()
            raise shortened(error) from error.__cause__

    def shutdown(self) -> None:
        """Calls `shutdown_worker`."""
        self.shutdown_worker()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.shutdown_worker()
        else:
            self._abandon(error)

    def __reduce__(self) -> Any:
        """Is unpickled as a new sampler with the same options, and the agents and the seed of now."""
        options = self._options
        if options.worker_factory is None:
            options = replace(options, seed=self.seed, n_workers=self._factory.n_workers)
        return _made_again, (type(self), options)

    # ---- shared ----

    @property
    def _n_envs(self) -> int:
        return sum(len(own) for own in self._pool.spaces)

    def _call(self, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Makes every worker call a method with the same arguments."""
        return self._pool.call(method, [arguments] * self._factory.n_workers)

    def _add(self, reports: Sequence[Report]) -> None:
        ended = [batch for report in reports for batch in report.episodes]
        self._started.add(ended, np.concatenate([report.running for report in reports]))
        self._started.discarded.steps += sum(report.dropped for report in reports)
        for report in reports:
            for level, sentence in report.notes:
                if sentence not in self._said:
                    self._said.add(sentence)
                    _log.log(level, sentence)

    def _set_agents(self) -> None:
        """Initializes the agents from the spaces of the environments, and sends them to the workers."""
        spaces = [own[0] for own in self._pool.spaces]
        for number, own in enumerate(spaces):
            if own is not None and own != spaces[0]:
                raise EnvContractError(f"worker {number} has {own}, worker 0 has {spaces[0]}; all must be the same")
        payloads: dict[int, tuple[bytes]] = {}
        self._published: list[AgentParameters] = []
        for agent in self._agents:
            if id(agent) not in payloads:
                if spaces[0] is not None:
                    agent.initialize(spaces[0], seed=self.seed, global_B=self._n_envs, env_ids=range(self._n_envs))
                payloads[id(agent)] = (pickled_agent(agent),)
                self._published.append(AgentParameters(agent))
        self._pool.setup("agent", WorkerDriver.set_agent, [payloads[id(agent)] for agent in self._agents])
        self._call(WorkerDriver.prepare)  # raises what failed

    def _updates(self, agent_update: Any, env_update: Any) -> tuple[list[Any] | None, list[Any] | None]:
        """Returns the updates of a call for each worker, None where there are none; raises for wrong arguments."""
        n = self._factory.n_workers
        agents = None if agent_update is None else per_worker(agent_update, n, "agent_update")
        if agents is not None and not any(map(_are_parameters, agents)):
            agents = [as_agent(one) for one in agents]
        envs = None if env_update is None else per_worker(env_update, n, "env_update")
        for number, own in enumerate(envs or ()):
            require_one_each(own, len(self._pool.spaces[number]), number)
        return agents, envs

    def _update(self, itr: int, agent_updates: list[Any] | None, env_updates: list[Any] | None) -> None:
        """Begins a call: sends parameters and updates of environments to the workers."""
        self._version += 1
        if agent_updates is None:
            parameters = [None] * self._factory.n_workers if self._given else self._parameters()
        elif any(map(_are_parameters, agent_updates)):
            self._given, parameters = True, agent_updates
        else:
            self._replace_agents(agent_updates)
            parameters = self._parameters()
        self._setup("parameters", WorkerDriver.update_agent, parameters, itr, self._version)
        if env_updates is not None:
            first = 0
            for update, spaces in zip(env_updates, self._pool.spaces, strict=True):
                if update is not None:
                    self._started.drop_of(range(first, first + len(spaces)))
                first += len(spaces)
            self._setup("environments", WorkerDriver.update_env, env_updates)

    def _setup(self, key: str, method: Callable[..., Any], values: Sequence[Any], *common: Any) -> None:
        """Makes every worker call a method with the common arguments and its own value."""
        same = all(value is values[0] for value in values)
        arguments = [(*common, values[0])] * len(values) if same else [(*common, value) for value in values]
        self._pool.setup(key, method, arguments)

    def _parameters(self) -> list[Any]:
        """Returns the parameters of the sampler's agents as they are now, one per worker."""
        self._given = False
        now = {id(own.agent): own.now() for own in self._published}
        return [now[id(agent)] for agent in self._agents]

    def _replace_agents(self, agents: Sequence[Agent]) -> None:
        if all(new is old for new, old in zip(agents, self._agents, strict=True)):
            return
        alike = all(_alike(new, old) for new, old in zip(agents, self._agents, strict=True))
        self._agents = list(agents)
        if alike:
            self._published = [AgentParameters(agent) for agent in {id(agent): agent for agent in agents}.values()]
        else:
            self._set_agents()

    def _require_open(self) -> None:
        if self._closed:
            raise SamplerClosed("the sampler is closed; make a new one") from self._cause

    def _abandon(self, error: BaseException) -> BaseException:
        """Closes everything after `error` and keeps it as the cause of later refusals; returns the error to raise."""
        if not self._closed:
            self._closed, self._cause = True, error
            self._pool.kill()
        return shortened(error)


def _are_parameters(update: Any) -> bool:
    return isinstance(update, dict | tuple | list | np.ndarray)


def _made_again(cls: Callable[..., EpisodeSampler], options: EpisodeOptions) -> EpisodeSampler:
    return cls(**vars(options))


def _alike(one: Agent, other: Agent) -> bool:
    """Returns whether the parameters of one agent fit into the other, and nothing else is different."""
    if type(one) is not type(other) or one.settings() != other.settings() or one.spaces != other.spaces:
        return False
    shapes = [[(tensor.shape, tensor.dtype) for tensor in agent.acting_state()] for agent in (one, other)]
    return one.spaces is not None and shapes[0] == shapes[1]
