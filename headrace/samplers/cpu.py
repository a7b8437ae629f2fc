"""`CpuSampler`: worker processes, an agent in each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from headrace.agents.parameters import ParameterSlots
from headrace.buffers.samples import SlotSpec
from headrace.samplers.collection.make_envs import CollectorConfig
from headrace.samplers.collection.slice import SliceReport
from headrace.samplers.engines.parallel import ParallelSamplerBase
from headrace.samplers.layout import Layout
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.local import LocalSetup, SlotMemory, local_memory
from headrace.samplers.workers.memory import Slots

__all__ = ["CpuSampler"]


class CpuSampler(ParallelSamplerBase):
    """Each worker steps its environments and computes their actions: one synchronisation per batch.

    The fastest for small models on CPU cores. `n_workers` defaults to the usable cores.
    """

    layout = Layout(processes=True)
    _memory: ParameterSlots | None = None

    def _setup(self, spec: SlotSpec, slots: Slots, configs: Sequence[CollectorConfig]) -> None:
        agent, memory = self._pickled_agent(), SlotMemory(spec, len(slots.all))
        setups = [LocalSetup(self._first_slice + index, memory, agent) for index in range(len(configs))]
        self._share(slots, partial(local_memory, self._agent, 2), setups)
        self._standing()

    def _collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        return self._act("collect", itr, version, batch_index)

    def _evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        return self._act("evaluate", itr, version, evaluation_index)

    def _act(self, name: str, itr: int, version: int, index: int) -> list[Any]:
        """Publishes the agent's parameters as `version`, which the command tells workers to act with."""
        assert self._memory is not None
        self._memory.publish(self._agent, version)
        return [part for parts in self._command(name, itr, version, index) for part in parts]
