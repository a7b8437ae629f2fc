"""Runs one worker by the commands of a sampler, in whichever process the worker is."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from headrace.agents.base import Agent
from headrace.buffers.shared import private
from headrace.processes.status import Phase, Status
from headrace.samplers.episodes.batch import EpisodeBatch
from headrace.samplers.episodes.factory import WorkerFactory
from headrace.samplers.episodes.worker import DefaultWorker, Worker, runs_rows
from headrace.samplers.workers.local import parameter_memory
from headrace.types import EnvSpaces

__all__ = ["AgentParameters", "Parameters", "Report", "WorkerDriver"]

_NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Parameters:
    """The parameters of an agent, for a copy of it.

    Args:
        content: the memory of its `ParameterSlots`, uint8 `[m]`.
    """

    content: np.ndarray


class AgentParameters:
    """Passes the parameters of an agent on to its copies.

    Args:
        agent: the agent or the copy.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._memory, self._slots = private(partial(parameter_memory, agent, 1))

    def now(self) -> Parameters:
        """Returns the parameters as they are now; the next call overwrites them."""
        self._slots.publish(self.agent, 0)
        return Parameters(self._memory)

    def load(self, parameters: Parameters) -> None:
        """Takes over the parameters of the agent."""
        self._memory[:] = parameters.content
        self._slots.load(self.agent, 0)


@dataclass
class Report:
    """What a worker returns after a command.

    Args:
        episodes: the episodes that ended, in order.
        running: `order_of_starts` of the running episodes, int64 `[k]`.
        row: number of the worker's next row.
        dropped: number of steps of episodes that were begun and dropped.
        notes: log messages, (level, sentence).
    """

    episodes: list[EpisodeBatch] = field(default_factory=list)
    running: np.ndarray = field(default_factory=lambda: _NOTHING)
    row: int = 0
    dropped: int = 0
    notes: list[tuple[int, str]] = field(default_factory=list)


class WorkerDriver:
    """Runs one worker. The public methods are the commands of a sampler.

    A worker whose class does not override what a rollout is runs row by row, and stops within episodes; others run
    whole rollouts.

    Args:
        factory: makes the worker.
        number: number of the worker.
        envs: its environments, for `Worker.update_env`.
        status: where this process records what it is doing.
        restarts: how many times the worker was started again after it died.
    """

    def __init__(self, factory: WorkerFactory, number: int, envs: Any, status: Status, restarts: int = 0) -> None:
        #: Number of the worker.
        self.number = number
        self._worker: Worker = factory(number)
        self._worker.status = self._status = status
        self._worker.restarts = restarts
        runs = isinstance(self._worker, DefaultWorker) and runs_rows(type(self._worker))
        self._rows: DefaultWorker | None = self._worker if runs else None  # type: ignore[assignment]
        self._row = 0  # number of rows that rollouts took
        self._agent: AgentParameters | None = None
        self._dropped = 0
        self._worker.update_env(copy.deepcopy(envs))  # which workers in the same process share

    @property
    def spaces(self) -> list[EnvSpaces | None]:
        """Spaces of each environment of the worker, the first reply; None where they are not known."""
        return [self._worker.spaces] * self._worker.n_envs

    def set_agent(self, agent_bytes: bytes) -> None:
        """Takes over a pickled agent."""
        agent: Agent = pickle.loads(agent_bytes)
        self._agent = AgentParameters(agent)
        self._worker.update_agent(agent)

    def update_agent(self, itr: int, version: int, parameters: Any) -> None:
        """Begins a call of the sampler.

        Args:
            itr: number of the call, for the agent's schedules.
            version: version of the parameters.
            parameters: `Parameters`, values for `set_param_values`, or None.
        """
        worker = self._worker
        if isinstance(parameters, Parameters):
            assert self._agent is not None
            if isinstance(worker, DefaultWorker):
                worker.finish_rows()
            self._agent.load(parameters)
        elif parameters is not None:
            worker.update_agent(parameters)
        worker.version = version
        if self._agent is not None:
            self._agent.agent.sample_mode(itr)

    def update_env(self, env_update: Any) -> None:
        """Calls `Worker.update_env`."""
        self._worker.update_env(copy.deepcopy(env_update))

    def restart(self, first_row: int) -> int:
        """Drops the running episodes; returns how many steps they had.

        Args:
            first_row: number of the next row.
        """
        self._skip_to(first_row)
        return self._worker.restart() if isinstance(self._worker, DefaultWorker) else 0

    def advance(self, first_row: int, row: int) -> Report:
        """Runs until the next row is `row`.

        Args:
            first_row: number of the next row now.
            row: number of the next row afterwards.
        """
        self._skip_to(first_row)
        worker = self._rows
        if worker is None:
            return self._rollouts(row)
        if worker.collector.is_idle:
            self._dropped += worker.restart()
        worker.collector.advance(row - worker.collector.row)
        return self._report(worker.collector.take())

    def run_episodes(self, first_row: int, n: int) -> Report:
        """Starts `n` new episodes and runs them to their ends; with a class of its own kind of rollout, `n` rollouts.

        Args:
            first_row: number of the next row.
            n: number of episodes.
        """
        self._skip_to(first_row)
        worker = self._rows
        if worker is None:
            return Report([self._rollout() for _ in range(n)], row=self._row)
        share, more = divmod(n, worker.n_envs)
        self._dropped += worker.restart([share + (index < more) for index in range(worker.n_envs)])
        while not worker.collector.is_idle:
            worker.collector.advance(_ROWS)
        return self._report(worker.collector.take())

    def prepare(self) -> None:
        """Does nothing ahead of the next command."""

    def close(self) -> None:
        """Closes the environments."""
        self._status.enter(Phase.CLOSING)
        self._worker.shutdown()

    def _skip_to(self, row: int) -> None:
        """Numbers the next row as the sampler does: a worker that was started again would begin with 0."""
        if self._rows is None:
            self._row = max(self._row, row)
        else:
            self._rows.collector.skip_to(row)

    def _report(self, episodes: list[EpisodeBatch]) -> Report:
        assert self._rows is not None
        collector = self._rows.collector
        dropped, self._dropped = self._dropped, 0
        return Report(episodes, collector.running_order(), collector.row, dropped, collector.notes())

    def _rollouts(self, row: int) -> Report:
        episodes = []
        while self._row < row:
            episodes.append(self._rollout())
        return Report(episodes, row=self._row)

    def _rollout(self) -> EpisodeBatch:
        """Runs one rollout, whose episodes count as started in its first row."""
        episodes = self._worker.rollout()
        episodes.starts = np.full(len(episodes), self._row)
        self._row += int(episodes.lengths.max(initial=1))
        return episodes


_ROWS = 1024
