"""`RaySampler`: whole episodes, collected in Ray actors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from typing_extensions import override

from headrace.processes.affinity import Affinity
from headrace.processes.ray_group import RayGroup
from headrace.processes.ray_session import RayActors, RaySession
from headrace.processes.status import Status
from headrace.samplers.config import takes_options
from headrace.samplers.episodes.base import EpisodeSampler
from headrace.samplers.episodes.driver import WorkerDriver
from headrace.samplers.episodes.options import RayEpisodeOptions
from headrace.samplers.episodes.pools import Make, Pool, made_for, sendable, worker_seeds
from headrace.samplers.workers.main import initialize_worker, sampling_process
from headrace.types import EnvSpaces

__all__ = ["RayPool", "RaySampler"]


class RaySampler(EpisodeSampler):
    """Runs each worker in a Ray actor, on any machine of a cluster.

    `n_workers` is the number of actors; it defaults to the CPUs of the cluster. An actor that died and is restarted
    (`RayActors.max_restarts`) makes new environments, gets agent, parameters and the last update of its environments
    again, and starts new episodes; without restarts its death is an error.
    """

    @takes_options(RayEpisodeOptions)
    def __init__(self, options: RayEpisodeOptions) -> None:
        self._session = RaySession(options.cluster)
        try:
            cpus, actors = self._session.cpus(), options.actors
            if options.n_workers is None and options.worker_factory is None:
                options = replace(options, n_workers=max(1, int(cpus // max(actors.num_cpus if actors else 1, 1))))
            n_workers = options.factory().n_workers
            self._actors = actors or RayActors(num_cpus=min(1.0, math.floor(1e3 * cpus / n_workers) / 1e3))
            super().__init__(options)
        except BaseException:
            self._session.close()
            raise

    @override
    def _made_pool(self, makers: Sequence[Make]) -> Pool:
        options = self._options
        return RayPool(
            makers,
            self._status,
            session=self._session,
            actors=self._actors,
            seed=self.seed,
            timeout=options.timeout,
            start_timeout=options.start_timeout,
        )


class RayPool:
    """Runs each worker in a Ray actor; see `Pool`.

    Args:
        makers: make the workers.
        status: where this process records what it is doing.
        session: the Ray session, which `stop` and `kill` close.
        actors: what each actor asks of the cluster.
        seed: seed of all randomness.
        timeout: see `SamplerOptions`.
        start_timeout: see `SamplerOptions`.
    """

    def __init__(
        self,
        makers: Sequence[Make],
        status: Status,
        *,
        session: RaySession,
        actors: RayActors,
        seed: int,
        timeout: float,
        start_timeout: float,
    ) -> None:
        self._session = session
        self._group = RayGroup(
            session,
            sampling_process,
            [partial(made_for, make) for make in makers],
            actors=actors,
            prologue=partial(initialize_worker, Affinity(), True, worker_seeds(seed, len(makers))),
            timeout=timeout,
            start_timeout=start_timeout,
            status=status,
        )
        try:
            self.spaces: list[list[EnvSpaces | None]] = self._group.replies(start_timeout)
        except BaseException:
            self._group.kill()
            raise

    def call(self, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """See `Pool`."""
        self._group.send(_command(method, arguments))
        return self._group.replies()

    def setup(self, key: str, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        """See `Pool`."""
        self._group.send_setup(_command(method, arguments), key)
        self._group.replies()

    def stop(self) -> None:
        """See `Pool`."""
        try:
            self._group.stop()
        finally:
            self._session.close()

    def kill(self) -> None:
        """See `Pool`."""
        self._group.kill()
        self._session.close()


def _command(method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Returns one command for all workers, so that Ray stores it once."""
    if all(own is arguments[0] for own in arguments):
        return (method, *map(sendable, arguments[0]))
    return (_own, method, sendable(list(arguments)))


def _own(driver: WorkerDriver, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Any:
    """Calls a worker's method with its own arguments among those of all."""
    return method(driver, *arguments[driver.number])
