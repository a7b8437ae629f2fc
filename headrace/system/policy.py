"""Policy workers, which compute the actions of all actors; and the agent of a worker, which follows the trainer's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.buffers.tree import tree_leaves, tree_map, tree_to_torch
from headrace.services import ParameterDBClient
from headrace.streams.inference.server import InferenceServer
from headrace.system.acting import Acting, inputs_of, merged
from headrace.system.connections import Connections
from headrace.system.worker import TICK, PollResult, Worker
from headrace.types import EnvSpaces, Tree

__all__ = ["Answering", "Following", "PolicySettings", "PolicyWorker"]


class Following:
    """Keeps the parameters of an agent equal to the newest ones in the database.

    Args:
        agent: initialized.
        database: where the trainer pushes.
        name: name of the policy.
        interval: seconds between two looks at the database.
        timeout: seconds to wait for the first parameters.
    """

    def __init__(
        self, agent: Agent, database: ParameterDBClient, name: str, *, interval: float = 0.0, timeout: float = 60.0
    ) -> None:
        self.agent = agent
        self.version = -1
        self._database, self._name, self._interval = database, name, interval
        self._looked = time.monotonic()
        self._load(block=True, timeout=timeout)

    def follow(self) -> bool:
        """Loads newer parameters, if there are any; returns whether there were."""
        now = time.monotonic()
        if now < self._looked + self._interval:
            return False
        self._looked = now
        if self._database.version_of(self._name) <= self.version:
            return False
        self._load(block=False, timeout=0.0)
        return True

    def _load(self, *, block: bool, timeout: float) -> None:
        entry = self._database.entry(self._name, block=block, timeout=timeout, mode="torch")
        self.agent.load_state_dict(entry.parameters)
        self.agent.sample_mode(entry.version)
        self.version = entry.version


class Answering:
    """Computes the results of requests with an agent.

    Args:
        agent: initialized, on its device.
        acting: contents of requests and results.
    """

    def __init__(self, agent: Agent, acting: Acting) -> None:
        self._agent = agent
        self._n = acting.n_envs
        self._state = agent.initial_state(1)
        _, self._result = acting.example()

    def results(self, requests: Any) -> dict[str, Tree]:
        """Returns the results of k requests, arrays `[k, n, …]`.

        Args:
            requests: arrays `[k, n, …]`.
        """
        wants_values = requests["values"]
        k, n = len(wants_values), self._n
        results: dict[str, Tree] = tree_map(lambda leaf: np.zeros((k, *leaf.shape), leaf.dtype), self._result)
        for wanted, answer in ((~wants_values, self._act), (wants_values, self._value)):
            rows = np.flatnonzero(wanted)
            if not len(rows):
                continue
            some = requests if len(rows) == k else tree_map(lambda leaf, rows=rows: leaf[rows], requests)
            inputs = tree_to_torch(inputs_of(some), self._agent.device)
            with torch.inference_mode():
                computed = answer(inputs, self._state_of(some))
            for name, tree in computed.items():
                for to, leaf in zip(tree_leaves(results[name]), tree_leaves(tree), strict=True):
                    to[rows] = leaf.numpy(force=True).reshape(len(rows), n, *leaf.shape[1:])
        return results

    def _state_of(self, requests: Any) -> Tree:
        """Returns the recurrent state of all rows in the agent's own structure."""
        if self._state is None:
            return None
        leaves = iter(tree_leaves(merged(requests["state"])))
        return tree_map(lambda _: torch.from_numpy(next(leaves)).to(self._agent.device), self._state)

    def _act(self, inputs: Any, state: Tree) -> Mapping[str, Tree]:
        step = self._agent.step(inputs, state)
        found = {"action": step.action, "agent_info": step.agent_info}
        return found if state is None else {**found, "state": step.state}

    def _value(self, inputs: Any, state: Tree) -> Mapping[str, Tree]:
        return {"value": self._agent.value(inputs, state)}


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """What a policy worker needs.

    Args:
        connections: of the run.
        agent: not initialized.
        spaces: of one environment.
        acting: contents of requests and results.
        policy: name of the policy, whose parameters it follows.
        stream: name of the inference stream.
        rank: number of this worker among the `servers` of the stream.
        servers: how many there are.
        max_batch: requests that are answered together at most; None: all that have arrived.
        max_wait: seconds that the first request of a batch waits for others.
        pull_interval: seconds between two looks for newer parameters.
        device: where the agent acts.
        seed: of the run.
    """

    connections: Connections
    agent: Agent
    spaces: EnvSpaces
    acting: Acting
    policy: str
    stream: str
    rank: int
    servers: int
    max_batch: int | None
    max_wait: float
    pull_interval: float
    device: str
    seed: int


class PolicyWorker(Worker):
    """Answers the requests of actors: all that have arrived, as one batch."""

    _server: InferenceServer

    def _configure(self, config: PolicySettings) -> None:
        self._config = config
        agent = config.agent
        agent.initialize(config.spaces, seed=config.seed)
        agent.to_device(config.device)
        self._server = self.resources.enter_context(
            config.connections.server(config.stream, config.acting.example(), config.rank, config.servers)
        )
        database = self.resources.enter_context(config.connections.parameters())
        self._following = Following(agent, database, config.policy, interval=config.pull_interval)
        self._answering = Answering(agent, config.acting)

    def _poll(self) -> PollResult:
        self._following.follow()
        config, server = self._config, self._server
        batch = server.poll_requests(TICK, config.max_batch, config.max_wait)
        k = len(batch)
        if not k:
            return PollResult()
        server.respond(batch, self._answering.results(batch.requests), config.policy, self._following.version)
        return PollResult(k * config.acting.n_envs, 1)

    def _figures(self) -> Mapping[str, float]:
        return {"version": self._following.version}
