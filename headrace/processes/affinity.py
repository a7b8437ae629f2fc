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

#: In each of rlpyt's dicts: the CPUs of all its parts together, for the program that starts runs.
_OF_ITS_PARTS = "all_cpus"
#: rlpyt's dict for asynchronous runs has these parts; the names of the first one's settings are others there.
_LEARNER = {
    "cpus": "master_cpus",
    "torch_threads": "master_torch_threads",
    "cuda_idx": "cuda_idx",
    "set_affinity": "set_affinity",
}
_ACTING = {
    "workers_cpus": "workers_cpus",
    "worker_torch_threads": "worker_torch_threads",
    "cuda_idx": "acts_on",
    "alternating": "alternating",
    "set_affinity": "set_affinity",
}
#: Of the sampler's own process, which is not pinned here: its workers are.
_SAMPLER_PROCESS = {"master_cpus", "master_torch_threads"}


@dataclass(frozen=True)
class Affinity:
    """Where the processes of a sampler run.

    workers_cpus: one group of CPU numbers per worker; None: wherever the system puts them. worker_torch_threads,
    master_torch_threads: threads of torch operations. The latter and master_cpus are for runners, which pin the process
    they run in; None leaves the threads to them (see `Runner`). set_affinity False keeps the thread counts and pins
    nothing.

    cuda_idx: number of the GPU where the agent learns, and acts, if the sampler acts in this process or has an action
    server; sampler_cuda_idx: of the GPUs where asynchronous samplers act, if others. alternating: whether this is for
    an alternating sampler, and refused by others; None: it is for any.
    """

    workers_cpus: tuple[tuple[int, ...], ...] | None = None
    worker_torch_threads: int = 1
    master_cpus: tuple[int, ...] | None = None
    master_torch_threads: int | None = None
    set_affinity: bool = True
    cuda_idx: int | None = None
    sampler_cuda_idx: tuple[int, ...] | None = None
    alternating: bool | None = None

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
        if self.cuda_idx is not None and (isinstance(self.cuda_idx, bool) or not isinstance(self.cuda_idx, int)):
            raise ValueError(f"affinity cuda_idx must be the number of a GPU, got {self.cuda_idx!r}")
        if self.sampler_cuda_idx is not None:
            object.__setattr__(self, "sampler_cuda_idx", _numbers(self.sampler_cuda_idx, "sampler_cuda_idx"))

    @staticmethod
    def of(value: Affinity | Mapping[str, Any] | None) -> Affinity:
        """From an `Affinity`, a dict of its settings or as rlpyt's `make_affinity` builds it, or None."""
        if value is None:
            return Affinity()
        if isinstance(value, Affinity):
            return value
        if not isinstance(value, Mapping):
            several = "; one process learns, give the entry of one learner" * isinstance(value, list | tuple)
            raise TypeError(
                f"affinity must be an Affinity, a dict or None, got {type(value).__name__} {value!r}{several}"
            )
        if "optimizer" in value or "sampler" in value:
            return _of_asynchronous(value)
        known = Affinity.__dataclass_fields__
        return Affinity(**_once(_renamed(value, {name: name for name in known}, "affinity", {_OF_ITS_PARTS})))

    @property
    def device(self) -> str | None:
        """Where the agent learns; None: where it is."""
        return None if self.cuda_idx is None else f"cuda:{self.cuda_idx}"

    @property
    def acting_devices(self) -> tuple[str, ...]:
        """Where the agent acts, for samplers that do not act in workers; none: where it is."""
        own = () if self.cuda_idx is None else (self.cuda_idx,)
        return tuple(f"cuda:{number}" for number in self.sampler_cuda_idx or own)

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


def _of_asynchronous(value: Mapping[str, Any]) -> Affinity:
    """From rlpyt's `{"optimizer": [a dict for each learner], "sampler": a dict, or one for each of its GPUs}`."""
    parts = _renamed(
        value, {"optimizer": "learners", "sampler": "samplers"}, "affinity", {_OF_ITS_PARTS, "set_affinity"}
    )
    if set(parts) != {"learners", "samplers"}:
        raise ValueError(f"affinity of an asynchronous run has the keys optimizer and sampler, got {sorted(value)}")
    learners, samplers = ([part] if isinstance(part, Mapping) else list(part) for part in parts.values())
    if len(learners) != 1:
        raise ValueError(
            f"affinity optimizer is for {len(learners)} learners, and one process learns; give a list of one"
        )
    learner = _renamed(learners[0], _LEARNER, "affinity optimizer", set())
    acting = [
        _once(_renamed(part, _ACTING, "affinity sampler", _SAMPLER_PROCESS | {_OF_ITS_PARTS})) for part in samplers
    ]
    return Affinity(
        **learner,
        **{name: of for name, of in acting[0].items() if name not in (*learner, "workers_cpus", "acts_on")},
        workers_cpus=tuple(group for part in acting for group in part.get("workers_cpus") or ()) or None,
        sampler_cuda_idx=tuple(part["acts_on"] for part in acting if part.get("acts_on") is not None) or None,
    )


def _once(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the CPUs that rlpyt's alternating samplers name twice, for a worker of each group: one here has both."""
    groups = settings.get("workers_cpus") or ()
    half = len(groups) // 2
    if settings.get("alternating") and half and groups[half:] == groups[:half]:
        return {**settings, "workers_cpus": groups[:half]}
    return settings


def _renamed(value: Any, names: Mapping[str, str], what: str, passed_over: set[str]) -> dict[str, Any]:
    """The values of a dict by our names; raises ValueError for a key that has none and is not to be passed over."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a dict, got {type(value).__name__} {value!r}")
    unknown = sorted(set(value) - set(names) - passed_over)
    if unknown:
        raise ValueError(f"{what} has unknown keys {unknown}; known are {sorted({*names, *passed_over})}")
    return {ours: value[theirs] for theirs, ours in names.items() if theirs in value}


def _sequence(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"affinity {name} must be a sequence with something in it, got {value!r}")
    return value


def _cpus(value: Any, name: str) -> tuple[int, ...]:
    return _numbers((value,) if isinstance(value, int) else value, name)


def _numbers(value: Any, name: str) -> tuple[int, ...]:
    numbers = tuple(_sequence(value, name))
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"affinity {name} must hold numbers of at least 0, got {value!r}")
    return numbers
