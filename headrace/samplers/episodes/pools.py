"""Workers of an episode sampler, in this process or in processes of their own, behind the same calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import cloudpickle

from headrace.processes.affinity import Affinity
from headrace.processes.causes import enough_descriptors
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.start_method import choose_start_method
from headrace.processes.status import Status
from headrace.rng import GeneratorSeeds, Stream, generator_seeds
from headrace.samplers.episodes.driver import Parameters, WorkerDriver
from headrace.samplers.workers.main import initialize_worker, sampling_process
from headrace.types import EnvSpaces

__all__ = ["LocalPool", "Make", "Pool", "ProcessPool", "made_for", "sendable", "worker_seeds"]

_ROLE = 3  # of processes of whole episodes, beside those of `process_seeds`

#: Makes a worker, given where its process records what it is doing, and how many times it was started again.
Make = Callable[[Status, int], WorkerDriver]


class Pool(Protocol):
    """The workers of a sampler."""

    @property
    def spaces(self) -> Sequence[Sequence[EnvSpaces | None]]:
        """Spaces of each environment of each worker; None where they are not known."""

    def call(self, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Makes every worker call a method of its `WorkerDriver`; returns the results in worker order.

        Args:
            method: the method.
            arguments: one tuple per worker.
        """

    def setup(self, key: str, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        """Does the same as `call`; a worker that is started again gets the newest call with each key again."""

    def stop(self) -> None:
        """Closes everything in order."""

    def kill(self) -> None:
        """Closes everything immediately after an error; does not raise."""


class LocalPool:
    """Runs the workers one after another in this process."""

    def __init__(self, makers: Sequence[Make], status: Status) -> None:
        self._drivers: list[WorkerDriver] = []
        try:
            for make in makers:
                self._drivers.append(make(status, 0))
        except BaseException:
            self.kill()
            raise
        self.spaces = [driver.spaces for driver in self._drivers]

    def call(self, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """See `Pool`."""
        return [method(driver, *own) for driver, own in zip(self._drivers, arguments, strict=True)]

    def setup(self, key: str, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        """See `Pool`."""
        self.call(method, arguments)

    def stop(self) -> None:
        """See `Pool`; raises the first failure after the last worker is closed."""
        drivers, self._drivers = self._drivers, []
        failure: Exception | None = None
        for driver in drivers:
            try:
                driver.close()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def kill(self) -> None:
        """See `Pool`."""
        drivers, self._drivers = self._drivers, []
        for driver in drivers:
            try:
                driver.close()
            except (Exception, KeyboardInterrupt):  # the caller raises the first error
                continue


class ProcessPool:
    """Runs each worker in a process of its own.

    Args:
        makers: make the workers.
        status: where this process records what it is doing.
        name: of the sampler, for messages and process names.
        seed: seed of all randomness.
        start_method: see `SamplerOptions`.
        timeout: see `SamplerOptions`.
        start_timeout: see `SamplerOptions`.
    """

    def __init__(
        self,
        makers: Sequence[Make],
        status: Status,
        *,
        name: str,
        seed: int,
        start_method: str,
        timeout: float,
        start_timeout: float,
    ) -> None:
        self._n_setups = 0  # whose replies were not taken yet
        seeds = worker_seeds(seed, len(makers))
        with enough_descriptors(len(makers)):
            self._group = WorkerGroup(
                sampling_process,
                [partial(made_for, make) for make in makers],
                start_method=choose_start_method(start_method),
                prologue=partial(initialize_worker, Affinity(), True, seeds),
                name=name,
                timeout=timeout,
                status=status,
            )
        try:
            self.spaces: list[list[EnvSpaces | None]] = self._group.replies(start_timeout)
        except BaseException:
            self._group.kill()
            raise

    def call(self, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """See `Pool`."""
        self._send(method, arguments)
        self._finish_setups()
        return self._group.replies()

    def setup(self, key: str, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        """See `Pool`. Does not wait: the next `call` raises what fails."""
        self._send(method, arguments)
        self._n_setups += 1

    def _send(self, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        group = self._group
        if all(own is arguments[0] for own in arguments):
            group.send((method, *map(sendable, arguments[0])))
        else:
            for rank, own in enumerate(arguments):
                group.send_to(rank, (method, *map(sendable, own)))

    def _finish_setups(self) -> None:
        while self._n_setups:
            self._n_setups -= 1
            self._group.replies()

    def stop(self) -> None:
        """See `Pool`."""
        self._finish_setups()
        self._group.stop()

    def kill(self) -> None:
        """See `Pool`."""
        self._group.kill()


def worker_seeds(seed: int, n_workers: int) -> list[GeneratorSeeds]:
    """Returns the seeds of each worker process's global generators."""
    return [generator_seeds(seed, Stream.PROCESS, _ROLE, rank) for rank in range(n_workers)]


def sendable(value: Any) -> Any:
    """Returns what is sent in place of an argument: plain values as they are, others pickled by cloudpickle."""
    return value if isinstance(value, int | bytes | Parameters) else _ByCloudpickle(value)


class _ByCloudpickle:
    """Is pickled by cloudpickle, which knows functions and classes of scripts, and is unpickled as its value."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> Any:
        return cloudpickle.loads, (cloudpickle.dumps(self._value),)


def made_for(make: Make, channel: Channel) -> WorkerDriver:
    """Makes a worker in its process."""
    return make(channel.status, channel.restarts)
