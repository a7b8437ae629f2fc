"""Workers run episodes: the interface, and the workers for one environment, several, and fragments of episodes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from typing_extensions import override

from headrace.agents.base import Agent
from headrace.envs.scalar import EnvInfoKeys
from headrace.processes.status import Status
from headrace.samplers.episodes.agents import as_agent
from headrace.samplers.episodes.batch import EpisodeBatch
from headrace.samplers.episodes.collector import EpisodeCollector
from headrace.samplers.episodes.cutting import Counts
from headrace.samplers.episodes.environments import WorkerEnvs
from headrace.samplers.episodes.steps import EnvSpec
from headrace.samplers.episodes.updates import require_one_each
from headrace.types import EnvSpaces

__all__ = ["DefaultWorker", "FragmentWorker", "VecWorker", "Worker", "runs_rows"]

#: The methods with which a subclass changes what a rollout is.
_HOOKS = ("rollout", "start_episode", "step_episode", "collect_episode")


@dataclass(kw_only=True, eq=False, repr=False)
class Worker(ABC):
    """Runs episodes with an agent in its own environments. A sampler has several; each is made by a `WorkerFactory`.

    The calls in the life of a worker::

        worker.update_agent(agent)
        worker.update_env(env)
        episodes = worker.rollout()     # and again, with updates in between
        worker.shutdown()

    `rollout` calls `start_episode`, then `step_episode` until it returns True, then `collect_episode`. A subclass that
    overrides one of the four determines what a rollout is; samplers call them instead of running rows by themselves.

    Args:
        seed: seed of all randomness, the same for all workers of a sampler.
        max_episode_length: time limit in steps; None: that of the environments.
        worker_number: number of this worker, from 0.
    """

    seed: int
    max_episode_length: int | None
    worker_number: int
    #: Number of environments.
    n_envs: int = field(default=1, init=False)
    #: Where this process records what it is doing, set by samplers.
    status: Status = field(default_factory=Status, init=False)
    #: How many times the worker was started again after it died, set by samplers.
    restarts: int = field(default=0, init=False)
    #: Version of the agent's parameters, set by samplers, recorded with every step.
    version: int = field(default=0, init=False)

    def __init_subclass__(cls) -> None:
        """Lets subclasses define the hooks under their names of July 2020 (`start_rollout`, …)."""
        super().__init_subclass__()
        for old, new in (("start", "start_episode"), ("step", "step_episode"), ("collect", "collect_episode")):
            if f"{old}_rollout" in vars(cls) and new not in vars(cls):
                setattr(cls, new, vars(cls)[f"{old}_rollout"])

    @property
    def spaces(self) -> EnvSpaces | None:
        """Spaces of each environment; None if they are not known."""
        return None

    @abstractmethod
    def update_agent(self, agent_update: Any) -> None:
        """Takes over an agent, a policy, or parameters for its `set_param_values`; None changes nothing."""

    @abstractmethod
    def update_env(self, env_update: Any) -> None:
        """Takes over environments or updates of them; None changes nothing."""

    @abstractmethod
    def start_episode(self) -> None:
        """Begins an episode."""

    @abstractmethod
    def step_episode(self) -> bool:
        """Takes one step in every environment; returns whether there is something to collect."""

    @abstractmethod
    def collect_episode(self) -> EpisodeBatch:
        """Returns the episodes that ended since the last call."""

    @abstractmethod
    def shutdown(self) -> None:
        """Closes the environments."""

    def rollout(self) -> EpisodeBatch:
        """Runs until there is something to collect, and returns it."""
        self.start_episode()
        while not self.step_episode():
            pass
        return self.collect_episode()

    def start_rollout(self) -> None:
        """Calls `start_episode`; the name of July 2020."""
        self.start_episode()

    def step_rollout(self) -> bool:
        """Calls `step_episode`; the name of July 2020."""
        return self.step_episode()

    def collect_rollout(self) -> EpisodeBatch:
        """Calls `collect_episode`; the name of July 2020."""
        return self.collect_episode()

    def __getstate__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} cannot be pickled; pickle its WorkerFactory and make it again")


@dataclass(kw_only=True, eq=False, repr=False)
class DefaultWorker(Worker):
    """Runs episodes in one environment.

    Args:
        seed: seed of all randomness.
        max_episode_length: time limit in steps, in addition to that of the environment; None: none.
        worker_number: number of this worker, from 0; its environments have the ids
            `worker_number * n_envs` and following.
        deterministic: whether an action may not depend on which environments share a call, not even by rounding.
        env_info_keys: `{name: (dtype, shape)}`, the fields of info that are recorded in `env_infos`.
    """

    deterministic: bool = False
    env_info_keys: EnvInfoKeys = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.env_info_keys = dict(self.env_info_keys)  # the caller may change his
        self._agent: Agent | None = None
        self._envs: WorkerEnvs | None = None
        self._collector: EpisodeCollector | None = None
        self._counts: Counts | None = None
        self._dropped = 0

    # ---- what subclasses and samplers use ----

    @property
    def agent(self) -> Agent:
        """The agent that acts."""
        assert self._agent is not None, "call update_agent(agent) first"
        return self._agent

    @property
    def envs(self) -> list[gymnasium.Env[Any, Any]]:
        """The environments; empty for a vector environment."""
        return [] if self._envs is None else self._envs.own

    @property
    def env(self) -> gymnasium.Env[Any, Any]:
        """The first environment."""
        return self.envs[0]

    @property
    @override
    def spaces(self) -> EnvSpaces | None:
        return None if self._envs is None else self._envs.batch.spaces

    @property
    def collector(self) -> EpisodeCollector:
        """Runs the rows, for the current agent and environments."""
        if self._collector is None:
            self._collector = self._new_collector()
        self._collector.version = self.version
        return self._collector

    def finish_rows(self) -> None:
        """Takes the rows so far out of the slot, before parameters change in place."""
        if self._collector is not None:
            self._collector.finish()

    def restart(self, episodes: Sequence[int] | None = None) -> int:
        """Starts new episodes in all environments; see `EpisodeCollector.restart`."""
        dropped, self._dropped = self._dropped + self.collector.restart(episodes), 0
        return dropped

    # ---- the interface ----

    @override
    def update_agent(self, agent_update: Any) -> None:
        if agent_update is None:
            return
        self.finish_rows()
        if isinstance(agent_update, dict | tuple | list | np.ndarray):
            self.agent.set_param_values(agent_update)
            return
        agent = as_agent(agent_update)
        if agent is not self._agent:
            self._agent = agent
            self._drop()

    @override
    def update_env(self, env_update: Any) -> None:
        if env_update is None:
            return
        require_one_each(env_update, self.n_envs, self.worker_number)
        if not isinstance(env_update, list):
            # Environments and updates may hold state, so each environment gets its own.
            env_update = [env_update, *(copy.deepcopy(env_update) for _ in range(self.n_envs - 1))]
        self._drop()
        if self._envs is None:
            first = self.worker_number * self.n_envs
            env_ids = range(first, first + self.n_envs)
            self._envs = WorkerEnvs(env_ids, self.seed, self.max_episode_length, self.restarts)
        self._envs.update(env_update, self.status, self.env_info_keys)

    @override
    def start_episode(self) -> None:
        self.collector.finish()
        if self.collector.is_idle or (self.n_envs == 1 and self.collector.running[0] != self.collector.row):
            self.restart()

    @override
    def step_episode(self) -> bool:
        return self.collector.step()

    @override
    def collect_episode(self) -> EpisodeBatch:
        return EpisodeBatch.concatenate(*self.collector.take())

    @override
    def shutdown(self) -> None:
        if self._envs is not None:
            self._envs.batch.close()

    def _drop(self) -> None:
        """Drops the collector, and counts the steps of its running episodes."""
        if self._collector is not None:
            self._dropped += self._collector.n_running()
            self._collector = None

    def _new_collector(self) -> EpisodeCollector:
        assert self._envs is not None, "call update_env(env) first"
        batch = self._envs.batch
        agent = self.agent
        if self._counts is None:
            self._counts = Counts.new(self.n_envs, self.restarts)
        agent.initialize(batch.spaces, seed=self.seed, global_B=self.n_envs, env_ids=list(batch.env_ids))
        return EpisodeCollector(
            batch,
            agent,
            EnvSpec(batch.spaces.observation, batch.spaces.action, self._envs.limit),
            seed=self.seed,
            deterministic=self.deterministic,
            env_info_keys=self.env_info_keys,
            new_infos=self._envs.new_infos,
            counts=self._counts,
            status=self.status,
        )


@dataclass(kw_only=True, eq=False, repr=False)
class VecWorker(DefaultWorker):
    """Runs episodes in several environments at once, with one call of the agent per row.

    A rollout ends in the row in which at least one episode ends; the others go on in the next.

    Args:
        n_envs: number of environments.
        others: see `DefaultWorker`.
    """

    n_envs: int = 8

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {self.n_envs}")


@dataclass(kw_only=True, eq=False, repr=False)
class FragmentWorker(VecWorker):
    """Returns fragments of episodes: a rollout is `timesteps_per_call` rows, also of episodes that go on.

    The next rollout continues them. A fragment that does not end its episode ends with a step of type MID.

    Args:
        timesteps_per_call: number of rows of a rollout.
        others: see `VecWorker`.
    """

    timesteps_per_call: int = 1

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timesteps_per_call < 1:
            raise ValueError(f"timesteps_per_call must be at least 1, got {self.timesteps_per_call}")
        self._left = 0  # rows of the current rollout

    @override
    def start_episode(self) -> None:
        if self.collector.is_idle:
            self.restart()
        self._left = self.timesteps_per_call

    @override
    def step_episode(self) -> bool:
        self._left -= 1
        self.collector.step()
        return not self._left

    @override
    def collect_episode(self) -> EpisodeBatch:
        return EpisodeBatch.concatenate(*self.collector.take(fragments=True))


def runs_rows(worker_class: type[Worker]) -> bool:
    """Returns whether a sampler may run rows of this class by itself, because nobody overrides what a rollout is."""
    return issubclass(worker_class, DefaultWorker) and all(
        getattr(worker_class, hook) is getattr(DefaultWorker, hook) for hook in _HOOKS
    )
