"""Inline inference: the ring of an actor that has an agent of its own, as the worker of a `CpuSampler` does."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import ExitStack

from headrace.agents.base import Agent
from headrace.buffers.samples import build_slot
from headrace.processes.status import Status
from headrace.samplers.collection.loop import private_array
from headrace.samplers.collection.slice import TrainSlice
from headrace.samplers.inference.spec import slot_spec
from headrace.samplers.workers.local import LocalCollector
from headrace.system.actor import ActorSettings, Finished, Ring, slice_of
from headrace.system.chunks import RunningReturns, chunk_of
from headrace.system.policy import Following

__all__ = ["InlineRing"]


class InlineRing(Ring):
    """Slices that are collected one after the other, each a whole chunk at a time.

    An agent in the same process answers at once, so there is nothing to do while a slice waits.
    """

    def __init__(self, config: ActorSettings, status: Status, stack: ExitStack) -> None:
        assert config.agent is not None
        agent: Agent = pickle.loads(config.agent)
        batch, width = config.acting.spec.batch, config.acting.spec.batch.B
        self._collectors: list[LocalCollector] = []
        self._slots = []
        following: Following | None = None
        for env_ids in config.env_ids:
            envs = TrainSlice(slice_of(config, env_ids), status)
            stack.callback(envs.close)
            if following is None:
                agent.initialize(envs.spaces, seed=config.seed)
                database = stack.enter_context(config.connections.parameters())
                following = Following(agent, database, config.policy, interval=config.pull_interval)
                spec = slot_spec(
                    agent, envs.spaces, batch, (width,), config.env_info_keys, config.acting.spec.bootstrap
                )
            slot = build_slot(spec, private_array)
            self._slots.append(slot)
            self._collectors.append(LocalCollector(envs, agent, spec, [slot], 0, status))
        assert following is not None
        self._following = following
        self._returns = [RunningReturns(width, config.discount) for _ in self._collectors]
        self._counts = [0] * len(self._collectors)
        self._begun: list[int] = []

    @property
    def busy(self) -> bool:
        """See `Ring`."""
        return bool(self._begun)

    def idle(self) -> Sequence[int]:
        """See `Ring`."""
        return [index for index in range(len(self._collectors)) if index not in self._begun]

    def begin(self, index: int) -> None:
        """See `Ring`."""
        self._begun.append(index)

    def advance(self) -> Sequence[Finished]:
        """See `Ring`."""
        self._following.follow()
        self.version = self._following.version
        index = self._begun.pop(0)
        (report,) = self._collectors[index].collect(self.version, self.version, self._counts[index])
        self._counts[index] += 1
        overflow_state = None if report.overflow is None else report.overflow.state
        slot = self._slots[index]
        chunk = chunk_of(slot, report, self._returns[index].advance(slot), overflow_state)
        return [(index, chunk, report)]
