"""The engine whose workers run in Ray actors, on any machine of a cluster; each has an agent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from typing_extensions import override

from headrace.agents.base import Agent
from headrace.agents.parameters import ParameterSlots
from headrace.buffers.samples import SlotSpec, build_slot
from headrace.buffers.shared import Block, private
from headrace.buffers.tree import tree_leaves
from headrace.processes.affinity import Affinity
from headrace.processes.ray_group import RayGroup
from headrace.processes.ray_session import RaySession
from headrace.processes.status import Status
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.config import RayOptions, SamplerConfig
from headrace.samplers.engine import Engine
from headrace.samplers.engines.parallel import joined_answers, pickled_agent, require_picklable, same_spaces
from headrace.samplers.layout import Layout, Slice, slices_of
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.local import parameter_memory
from headrace.samplers.workers.main import initialize_worker, process_seeds, sampling_process
from headrace.samplers.workers.memory import Slots
from headrace.samplers.workers.ray import RayWorker, slice_spec
from headrace.types import EnvSpaces

__all__ = ["RayEngine"]

_log = logging.getLogger("headrace.samplers")

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


class RayEngine(Engine):
    """Collects with a worker per actor. Parameters are stored in Ray once per version; slices come back as arrays.

    It takes the configuration of a `RayBatchSampler`; see `Engine`.
    """

    _session: RaySession | None = None
    _group: RayGroup | None = None
    _agent: Agent | None = None

    def __init__(self, name: str, layout: Layout, config: SamplerConfig, status: Status) -> None:
        super().__init__(name, layout, config, status)
        assert isinstance(config.options, RayOptions)
        self._cluster, self._actors = config.options.cluster, config.options.actors

    @override
    def divide(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        if affinity.workers_cpus is not None:
            raise ValueError(
                f"affinity has workers_cpus, but Ray places the actors of {self.name}; leave it out, and say in "
                "RayActors what each needs"
            )
        self._session = RaySession(self._cluster)
        B, wanted = self.config.options.batch_B, self.config.options.n_workers
        n_workers = wanted or max(1, int(self._session.cpus() // max(self._actors.num_cpus, 1)))
        if wanted is not None and wanted > B:
            _log.info("%d workers are too many for batch_B=%d; starting %d", wanted, B, B)
        return slices_of(env_ids, min(n_workers, B), self.layout.groups)

    @override
    def start(self, slices: Sequence[Slice], configs: Sequence[SliceConfig], affinity: Affinity) -> EnvSpaces:
        assert self._session is not None
        options = self.config.options
        seeds = [process_seeds(config, "worker", config.env_ids[0]) for config in configs]
        self._group = RayGroup(
            self._session,
            sampling_process,
            [partial(RayWorker, config) for config in configs],
            actors=self._actors,
            prologue=partial(initialize_worker, affinity, True, seeds),
            timeout=options.timeout,
            start_timeout=options.start_timeout,
            status=self.status,
        )
        found: list[list[EnvSpaces]] = self._group.replies(options.start_timeout)
        return same_spaces(found, [[config] for config in configs])

    @override
    def setup(
        self, agent: Agent, spec: SlotSpec, slots: Slots, configs: Sequence[SliceConfig], first_slice: int
    ) -> None:
        self._agent = agent
        indices = {config.env_ids[0]: first_slice + number for number, config in enumerate(configs)}
        self._published, self._parameters = private(partial(parameter_memory, agent, 1))
        self._specs = [slice_spec(spec, index) for index in indices.values()]
        #: The arrays of each slice in each slot.
        self._leaves = [[tree_leaves(slot.slice(spec, index)) for index in indices.values()] for slot in slots.all]
        self._ready.send_setup((RayWorker.setup_apart, spec, pickled_agent(agent), indices))
        self._ready.replies(self.config.options.start_timeout)

    @override
    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        answers = self.command(RayWorker.collect_apart, itr, version, batch_index, self._publish())
        to = self._leaves[batch_index % len(self._leaves)]
        for (_, block), spec, leaves in zip(answers, self._specs, to, strict=True):
            own = build_slot(spec, Block(block, len(block)).allocate)
            for leaf, value in zip(leaves, tree_leaves(own), strict=True):
                leaf[...] = value
        return [report for reports, _ in answers for report in reports]

    @override
    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        answers = self.command(RayWorker.evaluate_apart, itr, version, evaluation_index, self._publish())
        return [part for own in answers for part in own]

    @override
    def states(self) -> list[SliceState]:
        return [state for own in self.command(RayWorker.states) for state in own]

    @override
    def require_sendable(self, args: Sequence[Any]) -> None:
        require_picklable(args)

    @override
    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        return joined_answers(self.command(RayWorker.call, name, args, env_ids))

    @override
    def stop(self) -> None:
        group, session = self._forget()
        try:
            if group is not None:
                group.stop()
        finally:
            if session is not None:
                session.close()

    @override
    def kill(self) -> None:
        group, session = self._forget()
        if group is not None:
            group.kill()
        if session is not None:
            session.close()

    def _forget(self) -> tuple[RayGroup | None, RaySession | None]:
        group, session = self._group, self._session
        self._group = self._session = None
        self._leaves = []
        return group, session

    @property
    def _ready(self) -> RayGroup:
        assert self._group is not None
        return self._group

    def command(
        self,
        method: Callable[Concatenate[RayWorker, _Arguments], _Answer],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> list[_Answer]:
        """Makes every worker call one of its methods; returns the results in worker order."""
        assert not kwargs, "commands are sent with positional arguments"
        self._ready.send((method, *args))
        return self._ready.replies()

    _parameters: ParameterSlots
    _published: np.ndarray
    _leaves: list[list[list[np.ndarray]]]

    def _publish(self) -> np.ndarray:
        """Returns the agent's parameters in the memory that the command sends."""
        assert self._agent is not None
        self._parameters.publish(self._agent, 0)
        return self._published
