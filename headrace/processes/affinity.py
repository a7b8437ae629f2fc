"""How many cores there are for us, and which of them workers run on."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from headrace.processes.late_import import LateImport

__all__ = ["Affinity", "cores_shared_by", "cpu_quota", "pin", "set_torch_threads", "usable_cores"]

_log = logging.getLogger("headrace.processes")

#: Keys of rlpyt's affinity dict that say nothing about workers on CPUs.
_OTHER_RLPYT_KEYS = {"all_cpus", "cuda_idx", "alternating"}


@dataclass(frozen=True)
class Affinity:
    """Where the processes of a sampler run.

    workers_cpus: one group of CPU numbers per worker; None: wherever the system puts them. worker_torch_threads,
    master_torch_threads: threads of torch operations. The latter and master_cpus are for runners, which pin the process
    they run in; None leaves the threads to them (see `Runner`). set_affinity False keeps the thread counts and pins
    nothing.
    """

    workers_cpus: tuple[tuple[int, ...], ...] | None = None
    worker_torch_threads: int = 1
    master_cpus: tuple[int, ...] | None = None
    master_torch_threads: int | None = None
    set_affinity: bool = True

    def __post_init__(self) -> None:
        if self.workers_cpus is not None:
            groups = _sequence(self.workers_cpus, "workers_cpus")
            object.__setattr__(self, "workers_cpus", tuple(_cpus(group, "workers_cpus") for group in groups))
        if self.master_cpus is not None:
            object.__setattr__(self, "master_cpus", _cpus(self.master_cpus, "master_cpus"))
        for name in ("worker_torch_threads", "master_torch_threads"):
            threads = getattr(self, name)
            optional = threads is None and name == "master_torch_threads"
            if not optional and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
                raise ValueError(f"affinity {name} must be a whole number of at least 1, got {threads!r}")

    @staticmethod
    def of(value: Affinity | Mapping[str, Any] | None) -> Affinity:
        """From an `Affinity`, rlpyt's dict, or None."""
        if value is None:
            return Affinity()
        if isinstance(value, Affinity):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(f"affinity must be an Affinity, a dict or None, got {type(value).__name__} {value!r}")
        known = set(Affinity.__dataclass_fields__)
        unknown = sorted(set(value) - known - _OTHER_RLPYT_KEYS)
        if unknown:
            raise ValueError(f"affinity has unknown keys {unknown}; known are {sorted(known)}")
        return Affinity(**{key: value[key] for key in value if key in known})

    @staticmethod
    def one_core_each(n_workers: int) -> Affinity:
        """Worker i on the i-th usable core, round and round."""
        cpus = _allowed_cpus()
        return Affinity(workers_cpus=tuple((cpus[i % len(cpus)],) for i in range(n_workers)))

    def cpus_of(self, worker: int) -> tuple[int, ...] | None:
        """The CPUs worker number `worker` is to be pinned to; None: do not pin."""
        return self.workers_cpus[worker] if self.workers_cpus is not None and self.set_affinity else None


def usable_cores() -> int:
    """Cores this process may use: its affinity mask and the cgroup's CPU quota, not how many the machine has."""
    cores, quota = len(_allowed_cpus()), cpu_quota()
    return cores if quota is None else min(cores, quota)


def cores_shared_by(affinity: Affinity, n_workers: int) -> int:
    """Cores on which this process and its workers run, as `affinity` places them."""
    own = affinity.master_cpus if affinity.set_affinity else None
    cpus = set(_allowed_cpus() if own is None else own)
    for worker in range(n_workers):
        cpus.update(affinity.cpus_of(worker) or ())
    return len(cpus)


def cpu_quota() -> int | None:
    """How many cores' worth of time the cgroup allows, rounded up; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))


def pin(cpus: Sequence[int]) -> None:
    """Pins this process; where the system has no pinning, or not these CPUs, it is a log line."""
    process = psutil.Process()
    if not psutil.LINUX and not psutil.WINDOWS and not psutil.FREEBSD:
        _log.warning("this system has no CPU affinity; running unpinned")
        return
    try:
        process.cpu_affinity(list(cpus))
    except (OSError, ValueError) as error:
        _log.warning("could not pin process %d to CPUs %s (%s); running unpinned", process.pid, list(cpus), error)


def set_torch_threads(n_threads: int) -> None:
    """Threads of torch's operations in this process, which has just been forked or started, whenever it loads torch.

    A pool of threads does not survive a fork: the first large matrix product would wait for it for ever.
    """

    def limit() -> None:
        sys.modules["torch"].set_num_threads(n_threads)

    if "torch" in sys.modules:
        limit()
    else:
        LateImport("torch", limit)


def _allowed_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if psutil.LINUX else list(range(psutil.cpu_count() or 1))


def _sequence(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"affinity {name} must be a sequence with something in it, got {value!r}")
    return value


def _cpus(value: Any, name: str) -> tuple[int, ...]:
    cpus = (value,) if isinstance(value, int) else tuple(_sequence(value, name))
    if not all(isinstance(cpu, int) and cpu >= 0 for cpu in cpus):
        raise ValueError(f"affinity {name} must hold CPU numbers, got {value!r}")
    return cpus
