"""`SerialSampler`: everything in the calling process."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from headrace.buffers.samples import Slot, SlotSpec, build_slot
from headrace.buffers.shared import Arena, measure
from headrace.errors import headline
from headrace.processes.affinity import Affinity
from headrace.processes.status import Status
from headrace.samplers.base import BaseSampler
from headrace.samplers.collector import Collector, CollectorConfig, SliceReport
from headrace.samplers.layout import Layout
from headrace.samplers.snapshot import SliceState
from headrace.samplers.traj_info import Episodes
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

    def _n_slices(self, affinity: Affinity) -> int:
        return 1

    def _start(self, configs: Sequence[CollectorConfig], affinity: Affinity) -> EnvSpaces:
        self._collector = Collector(configs[0], Status())
        return self._collector.spaces

    def _setup(self, spec: SlotSpec) -> Slot:
        assert self._collector is not None
        arena = Arena(measure(lambda allocate: build_slot(spec, allocate)))
        arena.close_fd()
        slot = build_slot(spec, arena.allocate)
        self._collector.setup(self._agent, spec, slot.slice(spec, 0), 0)
        return slot

    def _collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        assert self._collector is not None
        return [self._collector.collect(itr, version, batch_index)]

    def _evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        assert self._collector is not None
        return self._collector.evaluate(itr, version, evaluation_index)

    def _states(self) -> list[SliceState]:
        assert self._collector is not None
        return [self._collector.state()]

    def _stop(self) -> None:
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.close()

    def _kill(self) -> None:
        try:
            self._stop()
        except Exception as error:  # the first error is the one to tell
            _log.warning("closing after an error failed too: %s", headline(error))
