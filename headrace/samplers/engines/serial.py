"""`SerialSampler`: everything in the calling process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from headrace.buffers.samples import SlotSpec
from headrace.envs.global_rng import gaussian_kept
from headrace.errors import headline
from headrace.processes.affinity import Affinity
from headrace.samplers.base import BaseSampler
from headrace.samplers.collection.make_envs import CollectorConfig
from headrace.samplers.collection.slice import Collector, SliceReport
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.inference.device import device_batch
from headrace.samplers.layout import Layout, Slice, slices_of
from headrace.samplers.traj_info import Episodes
from headrace.samplers.workers.local import LocalStation
from headrace.samplers.workers.memory import Slots
from headrace.types import EnvSpaces

__all__ = ["SerialSampler"]

_log = logging.getLogger("headrace.samplers")


class SerialSampler(BaseSampler):
    """Environments and agent in this process: for debugging, for cheap environments on one core, and as the reference.

    A hanging environment cannot be noticed here: it hangs the caller. `n_workers`, `start_method` and the timeouts mean
    nothing to this sampler.
    """

    layout = Layout(processes=False)
    _collector: Collector | None = None
    _station: LocalStation | None = None

    def _around(self) -> AbstractContextManager[None]:
        return gaussian_kept() if self._settings.isolate_rng else super()._around()

    def _divided(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        return slices_of(env_ids, 1, self.layout.groups)

    def _start(self, configs: Sequence[CollectorConfig], affinity: Affinity) -> EnvSpaces:
        self._collector = Collector(configs[0], self._status)
        return self._collector.spaces

    def _setup(self, spec: SlotSpec, slots: Slots, configs: Sequence[CollectorConfig]) -> None:
        assert self._collector is not None
        kept_on = self._settings.samples_device
        device = self._settings.device or self._agent.device
        self._agent.to_device(device)
        self._kept = None if kept_on is None else device_batch(slots.all[0], self._agent, kept_on)
        own = [slot.slice(spec, self._first_slice) for slot in slots.all]
        first_column = spec.first_column(self._first_slice)
        self._station = LocalStation(
            self._collector, self._agent, spec, own, first_column, self._status, kept=self._kept
        )

    def _collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        assert self._station is not None
        return self._station.collect(itr, version, batch_index)

    def _evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        assert self._station is not None
        return self._station.evaluate(itr, version, evaluation_index)

    def _states(self) -> list[SliceState]:
        assert self._station is not None
        return self._station.state()

    def _call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        assert self._collector is not None
        return self._collector.call(name, args, env_ids)

    def _stop(self) -> None:
        collector, self._collector, self._station = self._collector, None, None
        if collector is not None:
            collector.close()

    def _kill(self) -> None:
        try:
            self._stop()
        except (Exception, KeyboardInterrupt) as error:  # the first error is the one to tell
            _log.warning("closing after an error failed too: %s", headline(error))
