"""A worker with its own agent that shares no memory with its sampler: parameters and batches travel as arrays."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial

import numpy as np

from headrace.agents.base import Agent
from headrace.buffers.samples import SlotSpec, build_slot
from headrace.buffers.shared import private
from headrace.envs.global_rng import seed_global_generators
from headrace.processes.child import Channel
from headrace.processes.status import Phase
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.local import LocalCollector, LocalWorker, parameter_memory
from headrace.samplers.workers.main import process_seeds

__all__ = ["RayWorker", "slice_spec"]

#: Incarnations of restarted workers, which no resume reaches: a resume counts by one.
_RESTART = 1 << 16


def slice_spec(spec: SlotSpec, index: int) -> SlotSpec:
    """Returns the contents of slice `index` of a slot as those of a slot of its own."""
    width = spec.widths[index]
    return replace(spec, batch=replace(spec.batch, B=width), widths=(width,))


class RayWorker(LocalWorker):
    """A worker in a Ray actor; see `Worker`. It collects into memory of its own, which it replies with.

    Args:
        config: its slice. A restarted worker makes new environments, with randomness of their own.
        channel: see `Worker`.
    """

    def __init__(self, config: SliceConfig, channel: Channel) -> None:
        if channel.restarts:
            incarnation = config.incarnation + channel.restarts * _RESTART
            config = replace(config, incarnation=incarnation, saved={}, eval_saved={}, memory={})
            seed_global_generators(process_seeds(config, "worker", config.env_ids[0]))
        super().__init__([config], channel)

    def setup_apart(self, spec: SlotSpec, agent_bytes: bytes, indices: dict[int, int]) -> None:
        """Makes the agent, and memory for the slice and the parameters.

        Args:
            spec: the contents of a slot.
            agent_bytes: the pickled agent.
            indices: index in the batch of each slice, by the env id of its first environment.
        """
        agent: Agent = pickle.loads(agent_bytes)
        index = indices[self._environments.config.env_ids[0]]
        own = slice_spec(spec, index)
        self._block, slot = private(partial(build_slot, own))
        self._published, parameters = private(partial(parameter_memory, agent, 1))
        self._collector = LocalCollector(
            self._environments,
            agent,
            own,
            [slot],
            spec.first_column(index),
            self._channel.status,
            parameters=parameters,
        )
        self._channel.status.enter(Phase.WAITING)

    def collect_apart(
        self, itr: int, version: int, batch_index: int, parameters: np.ndarray
    ) -> tuple[list[SliceReport], np.ndarray]:
        """Collects one batch; see `LocalCollector.collect`.

        Args:
            itr: see there.
            version: see there.
            batch_index: see there.
            parameters: the memory of the published parameters, uint8 `[n]`.

        Returns:
            The reports, and the memory of the slice, uint8 `[m]`.
        """
        self._published[:] = parameters
        return self.collect(itr, version, batch_index), self._block

    def evaluate_apart(self, itr: int, version: int, evaluation_index: int, parameters: np.ndarray) -> list[Episodes]:
        """Runs an evaluation; see `LocalCollector.evaluate`, and `collect_apart` for `parameters`."""
        self._published[:] = parameters
        return self.evaluate(itr, version, evaluation_index)
