"""`ParallelSamplerBase`: environments in worker processes."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cloudpickle

from headrace.buffers.shared import Allocate, Arena, shared
from headrace.errors import EnvContractError, SamplerError, headline
from headrace.processes.affinity import Affinity, usable_cores
from headrace.processes.causes import enough_descriptors
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.start_method import choose_start_method
from headrace.samplers.base import BaseSampler
from headrace.samplers.collection.make_envs import CollectorConfig
from headrace.samplers.collection.snapshot import SliceState
from headrace.samplers.layout import Slice, slices_of
from headrace.samplers.workers.main import Setup, initialize_worker, process_seeds, sampling_process
from headrace.samplers.workers.memory import Slots
from headrace.types import EnvSpaces

__all__ = ["ParallelSamplerBase"]

_log = logging.getLogger("headrace.samplers")


class ParallelSamplerBase(BaseSampler):
    """Workers fill their columns of one shared batch; one command and one reply per worker and batch."""

    _group: WorkerGroup | None = None
    _arena: Arena | None = None
    _memory: Any = None

    @property
    def _workers(self) -> WorkerGroup:
        assert self._group is not None
        return self._group

    def _divided(self, env_ids: Sequence[int], affinity: Affinity) -> list[Slice]:
        return slices_of(env_ids, self._n_workers(affinity), self.layout.groups)

    def _n_workers(self, affinity: Affinity) -> int:
        pinned = None if affinity.workers_cpus is None else len(affinity.workers_cpus)
        wanted = self._settings.n_workers
        if pinned is not None and wanted is not None and pinned != wanted:
            raise ValueError(
                f"affinity has workers_cpus for {pinned} workers and n_workers is {wanted}; make them agree"
            )
        # An action server keeps a core busy, and so does who learns beside an asynchronous sampler.
        taken = self.layout.served + self.layout.asynchronous
        asked = pinned or wanted or max(1, usable_cores() - taken)
        if asked > self.batch_spec.B:
            _log.info("%d workers for batch_B=%d: starting %d", asked, self.batch_spec.B, self.batch_spec.B)
        return min(asked, self.batch_spec.B)

    def _start(self, configs: Sequence[CollectorConfig], affinity: Affinity) -> EnvSpaces:
        self._affinity = affinity
        n_workers = 1 + max(one.worker for one in self._slices)
        by_worker = [
            tuple(config for config, one in zip(configs, self._slices, strict=True) if one.worker == worker)
            for worker in range(n_workers)
        ]
        seeds = [process_seeds(own[0], "worker", own[0].env_ids[0]) for own in by_worker]
        prologue = partial(initialize_worker, affinity, not self.layout.served, seeds)
        return self._start_group(sampling_process, by_worker, by_worker, prologue)

    def _start_group(
        self,
        target: Callable[[Channel, Any], None],
        arguments: Sequence[Any],
        configs: Sequence[Sequence[CollectorConfig]],
        prologue: Callable[[int], None],
        names: Sequence[str] | None = None,
    ) -> EnvSpaces:
        """Starts a process for each argument, which answers with the spaces of each of its `configs`; returns them."""
        with enough_descriptors(len(arguments)):
            self._group = WorkerGroup(
                target,
                arguments,
                start_method=choose_start_method(self._settings.start_method),
                prologue=prologue,
                name=type(self).__name__,
                timeout=self._settings.timeout,
                status=self._status,
                names=names,
            )
        found: list[list[EnvSpaces]] = self._group.replies(self._settings.start_timeout)
        first, spaces = configs[0][0], found[0][0]
        for own, answers in zip(configs, found, strict=True):
            for config, other in zip(own, answers, strict=True):
                if other != spaces:
                    raise EnvContractError(
                        f"{config.factory.name}: env {config.env_ids[0]} has {other}, env {first.env_ids[0]} has "
                        f"{spaces}; one batch holds one kind"
                    )
        return spaces

    def _share(self, slots: Slots, build: Callable[[Allocate], Any], setups: Sequence[Setup]) -> None:
        """Makes shared memory, sends each worker its setup and the descriptors of slots and memory; `_standing` is to
        follow.

        The memory is `_memory`, and nobody's local until the workers stand: the traceback of an error would keep it,
        and its descriptor, alive.
        """
        with enough_descriptors(len(setups)):
            self._arena, self._memory = shared(build)
            try:
                for rank, setup in enumerate(setups):
                    self._workers.send_to(rank, setup)
                for arena in (slots.arena, self._arena):
                    assert arena.fd is not None
                    self._workers.send_fd(arena.fd)
            finally:
                self._arena.close_fd()

    def _standing(self) -> None:
        """Waits until every worker stands at its first row."""
        self._workers.replies(self._settings.start_timeout)

    def _pickled_agent(self) -> bytes:
        device = self._agent.device
        self._agent.to_device("cpu")  # where workers act: they are not to touch the learner's GPU
        try:
            agent_bytes: bytes = cloudpickle.dumps(self._agent)
        except Exception as error:
            raise SamplerError(
                f"the agent cannot be pickled: {headline(error)}; it travels to the workers by cloudpickle, so keep "
                "open files, locks and generators out of it"
            ) from error
        finally:
            self._agent.to_device(device)
        return agent_bytes

    def call_envs(self, name: str, *args: Any, env_ids: Sequence[int] | None = None) -> list[Any]:
        """See `BaseSampler.call_envs`. Raises TypeError for arguments that cannot be pickled."""
        try:
            pickle.dumps(args)
        except Exception as error:
            raise TypeError(f"args of call_envs travel to workers by pickle: {headline(error)}") from error
        return super().call_envs(name, *args, env_ids=env_ids)

    def _states(self) -> list[SliceState]:
        return [state for states in self._command("state") for state in states]

    def _call(self, name: str, args: Sequence[Any], env_ids: Sequence[int]) -> dict[int, Any]:
        return {env_id: value for part in self._command("call", name, args, env_ids) for env_id, value in part.items()}

    def _command(self, name: str, *arguments: Any) -> list[Any]:
        """Has every worker do something; returns their answers."""
        self._workers.send((name, *arguments))
        return self._workers.replies()

    def _stop(self) -> None:
        group = self._let_go()
        if group is not None:
            group.stop()

    def _kill(self) -> None:
        group = self._let_go()
        if group is not None:
            group.kill()

    def _let_go(self) -> WorkerGroup | None:
        """Forgets workers and memory; returns the workers, if there were any."""
        group, self._group, self._arena, self._memory = self._group, None, None, None
        return group
