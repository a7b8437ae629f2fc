"""`WorkerFactory`: what a process needs to make a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.processes.affinity import usable_cores
from headrace.rng import draw_seed
from headrace.samplers.episodes.worker import DefaultWorker, Worker

__all__ = ["WorkerFactory"]


@dataclass(frozen=True, kw_only=True)
class WorkerFactory:
    """Makes the workers of a sampler; can be pickled, which workers cannot.

    Args:
        max_episode_length: time limit of an episode in steps; None: that of the environments.
        seed: seed of all randomness. Default: drawn from the operating system, once for all workers.
        n_workers: number of workers. Default: one per usable core.
        worker_class: class of the workers.
        worker_args: further arguments of the class.
    """

    max_episode_length: int | None = None
    seed: int = field(default_factory=draw_seed)
    n_workers: int = field(default_factory=usable_cores)
    worker_class: type[Worker] = DefaultWorker
    worker_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (isinstance(self.worker_class, type) and issubclass(self.worker_class, Worker)):
            raise TypeError(f"worker_class must be a subclass of Worker, got {self.worker_class!r}")
        if self.n_workers < 1:
            raise ValueError(f"n_workers must be at least 1, got {self.n_workers!r}")
        if self.max_episode_length is not None and self.max_episode_length < 1:
            raise ValueError(f"max_episode_length must be at least 1, got {self.max_episode_length!r}")

    def __call__(self, worker_number: int) -> Worker:
        """Makes a worker.

        Args:
            worker_number: number of the worker, 0 to n_workers − 1.

        Raises:
            ValueError: if there is no such worker.
        """
        if not 0 <= worker_number < self.n_workers:
            raise ValueError(f"worker_number must be from 0 to {self.n_workers - 1}, got {worker_number}")
        return self.worker_class(
            seed=self.seed,
            max_episode_length=self.max_episode_length,
            worker_number=worker_number,
            **self.worker_args,
        )
