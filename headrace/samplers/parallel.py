"""`ParallelSamplerBase`: environments in worker processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import cloudpickle

from headrace.buffers.samples import Slot, SlotSpec
from headrace.errors import EnvContractError, SamplerError, headline
from headrace.processes.affinity import Affinity, usable_cores
from headrace.processes.group import WorkerGroup, choose_start_method
from headrace.samplers.base import BaseSampler
from headrace.samplers.collector import CollectorConfig, SliceReport
from headrace.samplers.snapshot import SliceState
from headrace.samplers.traj_info import Episodes
from headrace.samplers.worker import SharedBatch, initialize_worker, sampling_process, shared_batch
from headrace.types import EnvSpaces

__all__ = ["ParallelSamplerBase"]

_log = logging.getLogger("headrace.samplers")


class ParallelSamplerBase(BaseSampler):
    """Workers fill their columns of one shared batch; one command and one reply per worker and batch."""

    _group: WorkerGroup | None = None
    _shared: SharedBatch | None = None

    def _n_slices(self, affinity: Affinity) -> int:
        pinned = None if affinity.workers_cpus is None else len(affinity.workers_cpus)
        if pinned is not None and self._n_workers is not None and pinned != self._n_workers:
            raise ValueError(
                f"affinity has workers_cpus for {pinned} workers and n_workers is {self._n_workers}; make them agree"
            )
        asked = pinned or self._n_workers or usable_cores()
        if asked > self.batch_spec.B:
            _log.info("%d workers for batch_B=%d: starting %d", asked, self.batch_spec.B, self.batch_spec.B)
        return min(asked, self.batch_spec.B)

    def _start(self, configs: Sequence[CollectorConfig], affinity: Affinity) -> EnvSpaces:
        self._group = WorkerGroup(
            sampling_process,
            configs,
            start_method=choose_start_method(self._start_method),
            prologue=partial(initialize_worker, affinity, True),
            name=type(self).__name__,
            timeout=self._timeout,
        )
        spaces: list[EnvSpaces] = self._group.replies(self._start_timeout)
        for config, other in zip(configs, spaces, strict=True):
            if other != spaces[0]:
                raise EnvContractError(
                    f"{config.factory.name}: env {config.env_ids[0]} has {other}, env {configs[0].env_ids[0]} has "
                    f"{spaces[0]}; one batch holds one kind"
                )
        return spaces[0]

    def _setup(self, spec: SlotSpec) -> Slot:
        assert self._group is not None
        # Not in a local: the traceback of an error would keep the memory, and its descriptor, alive.
        self._shared = shared_batch(spec, self._agent)
        try:
            agent_bytes = self._pickled_agent()
            for index in range(len(self._group)):
                self._group.send_to(index, ("setup", index, spec, agent_bytes))
            assert self._shared.arena.fd is not None
            self._group.send_fd(self._shared.arena.fd)
        finally:
            self._shared.arena.close_fd()
        self._group.replies(self._start_timeout)
        return self._shared.slot

    def _collect(self, itr: int, version: int, batch_index: int) -> list[SliceReport]:
        return self._command("collect", itr, version, batch_index)

    def _evaluate(self, itr: int, version: int, evaluation_index: int) -> list[Episodes]:
        parts = self._command("evaluate", itr, version, evaluation_index)
        return [episodes for part in parts for episodes in part]

    def _states(self) -> list[SliceState]:
        assert self._group is not None
        self._group.send("state")
        return self._group.replies()

    def _stop(self) -> None:
        group, self._group, self._shared = self._group, None, None
        if group is not None:
            group.stop()

    def _kill(self) -> None:
        group, self._group, self._shared = self._group, None, None
        if group is not None:
            group.kill()

    def _command(self, name: str, itr: int, version: int, index: int) -> list[Any]:
        """Publishes the agent's parameters as `version`, which the command tells workers to act with."""
        assert self._group is not None
        assert self._shared is not None
        self._shared.parameters.publish(self._agent, version)
        self._group.send((name, itr, version, index))
        return self._group.replies()

    def _pickled_agent(self) -> bytes:
        try:
            agent_bytes: bytes = cloudpickle.dumps(self._agent)
        except Exception as error:
            raise SamplerError(
                f"the agent cannot be pickled: {headline(error)}; it travels to the workers by cloudpickle, so keep "
                "open files, locks and generators out of it"
            ) from error
        return agent_bytes
