"""The engine without worker processes: environments and agent run in the caller's process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from typing_extensions import override

from headrace.agents.base import Agent
from headrace.buffers.samples import SlotSpec
from headrace.envs.global_rng import gaussian_kept
from headrace.errors import headline
from headrace.processes.affinity import Affinity
from headrace.samplers.collection.make_envs import SliceConfig
from headrace.samplers.collection.slice import SliceReport, TrainSlice
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.engine import Engine
from headrace.samplers.inference.device import device_batch
from headrace.samplers.layout import Slice, slices_of
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.local import LocalCollector
from headrace.samplers.workers.memory import Slots
from headrace.types import EnvSpaces

__all__ = ["SerialEngine"]

_log = logging.getLogger("headrace.samplers")


class SerialEngine(Engine):
    """Runs one slice with all columns in a `LocalCollector`."""

    _environments: TrainSlice | None = None
    _collector: LocalCollector | None = None

    @override
    def call_context(self) -> AbstractContextManager[None]:
        return gaussian_kept() if self.config.options.isolate_rng else super().call_context()

    @override
    def divide(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        return slices_of(env_ids, 1, self.layout.groups)

    @override
    def start(self, slices: Sequence[Slice], configs: Sequence[SliceConfig], affinity: Affinity) -> EnvSpaces:
        self._environments = TrainSlice(configs[0], self.status)
        return self._environments.spaces

    @override
    def setup(
        self, agent: Agent, spec: SlotSpec, slots: Slots, configs: Sequence[SliceConfig], first_slice: int
    ) -> None:
        assert self._environments is not None
        agent.to_device(self.config.options.device or agent.device)
        if self.config.options.samples_device is not None:
            self.device_batch = device_batch(slots.all[0], agent, self.config.options.samples_device)
        own = [slot.slice(spec, first_slice) for slot in slots.all]
        first_column = spec.first_column(first_slice)
        self._collector = LocalCollector(
            self._environments, agent, spec, own, first_column, self.status, device_batch=self.device_batch
        )

    @override
    def collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        return self._ready.collect(itr, version, batch_index)

    @override
    def evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        return self._ready.evaluate(itr, version, evaluation_index)

    @override
    def states(self) -> list[SliceState]:
        return [self._ready.state()]

    @override
    def call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        assert self._environments is not None
        return self._environments.call(name, args, env_ids)

    @override
    def stop(self) -> None:
        environments, self._environments, self._collector = self._environments, None, None
        self.device_batch = None
        if environments is not None:
            environments.close()

    @override
    def kill(self) -> None:
        try:
            self.stop()
        except (Exception, KeyboardInterrupt) as error:  # the caller raises the first error
            _log.warning("closing the environments after an error also failed: %s", headline(error))

    @property
    def _ready(self) -> LocalCollector:
        assert self._collector is not None
        return self._collector
