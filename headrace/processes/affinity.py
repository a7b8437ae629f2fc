"""Number of usable cores, and placement of workers on them."""

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

__all__ = [
    "Affinity",
    "AffinityLike",
    "core_shares",
    "cores_shared_by",
    "cpu_quota",
    "pin",
    "set_torch_threads",
    "usable_cores",
]

_log = logging.getLogger("headrace.processes")

#: Key in each of rlpyt's dicts: the CPUs of all its parts together, for the program that launches runs.
_ALL_CPUS = "all_cpus"
#: rlpyt's dict for asynchronous runs has two parts; the optimizer part has other names for the settings of this class.
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
#: Settings of the sampler's own process, which is not pinned here; its workers are.
_SAMPLER_PROCESS = {"master_cpus", "master_torch_threads"}


@dataclass(frozen=True)
class Affinity:
    """CPUs, GPUs and thread counts of the processes of a sampler.

    Args:
        workers_cpus: one group of CPU numbers per worker; None: the system places them.
        worker_torch_threads: threads of torch operations in a worker.
        master_cpus: CPUs of the process a runner runs in; runners pin it.
        master_torch_threads: threads of torch operations in that process; None: the runner decides (see `Runner`).
        set_affinity: False: keep the thread counts but pin nothing.
        cuda_idx: GPU on which the agent learns, and on which it acts if the sampler acts in this process or has an
            action server.
        sampler_cuda_idx: GPUs on which asynchronous samplers act, if they differ from `cuda_idx`.
        alternating: whether it is for an alternating sampler, in which case other samplers refuse it; None: for any.
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
    def of(value: AffinityLike) -> Affinity:
        """Returns the affinity for an `Affinity`, a dict of its settings or of rlpyt's `make_affinity`, or None."""
        if value is None:
            return Affinity()
        if isinstance(value, Affinity):
            return value
        if not isinstance(value, Mapping):
            several = "; one process learns, so pass the entry of one learner" * isinstance(value, list | tuple)
            raise TypeError(
                f"affinity must be an Affinity, a dict or None, got {type(value).__name__} {value!r}{several}"
            )
        if "optimizer" in value or "sampler" in value:
            return _of_asynchronous(value)
        known = Affinity.__dataclass_fields__
        return Affinity(**_once(_renamed(value, {name: name for name in known}, "affinity", {_ALL_CPUS})))

    @property
    def device(self) -> str | None:
        """Torch device on which the agent learns; None: the device it is on."""
        return None if self.cuda_idx is None else f"cuda:{self.cuda_idx}"

    @property
    def acting_devices(self) -> tuple[str, ...]:
        """Torch devices on which the agent acts, for samplers that do not act in workers; empty: where it is."""
        own = () if self.cuda_idx is None else (self.cuda_idx,)
        return tuple(f"cuda:{number}" for number in self.sampler_cuda_idx or own)

    @staticmethod
    def one_core_each(n_workers: int) -> Affinity:
        """Places worker i on the i-th usable core, starting over when the cores run out."""
        cpus = _allowed_cpus()
        return Affinity(workers_cpus=tuple((cpus[i % len(cpus)],) for i in range(n_workers)))

    def cpus_of(self, worker: int) -> tuple[int, ...] | None:
        """Returns the CPUs to which worker number `worker` is pinned; None: it is not pinned."""
        return self.workers_cpus[worker] if self.workers_cpus is not None and self.set_affinity else None


def usable_cores() -> int:
    """Returns the number of cores this process may use by its affinity mask and the cgroup's CPU quota."""
    cores, quota = len(_allowed_cpus()), cpu_quota()
    return cores if quota is None else min(cores, quota)


#: How users give an affinity: the class, a dict of its settings or of rlpyt's, for several learners a sequence of them.
AffinityLike = Affinity | Mapping[str, Any] | Sequence[Affinity | Mapping[str, Any]] | None


def core_shares(n: int) -> list[tuple[int, ...]]:
    """Divides the cores that this process may use into `n` parts; returns none if there are fewer cores than parts."""
    cpus = _allowed_cpus()
    if len(cpus) < n:
        return []
    return [tuple(cpus[part * len(cpus) // n : (part + 1) * len(cpus) // n]) for part in range(n)]


def cores_shared_by(affinity: Affinity, n_workers: int) -> int:
    """Returns the number of cores on which this process and its workers run, as placed by `affinity`."""
    own = affinity.master_cpus if affinity.set_affinity else None
    cpus = set(_allowed_cpus() if own is None else own)
    for worker in range(n_workers):
        cpus.update(affinity.cpus_of(worker) or ())
    return len(cpus)


def cpu_quota() -> int | None:
    """Returns how many cores' worth of CPU time the cgroup allows, rounded up; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))


def pin(cpus: Sequence[int]) -> None:
    """Pins this process; logs a warning if the system does not support it or does not have these CPUs."""
    process = psutil.Process()
    if not psutil.LINUX and not psutil.WINDOWS and not psutil.FREEBSD:
        _log.warning("this system does not support CPU affinity; processes run unpinned")
        return
    try:
        process.cpu_affinity(list(cpus))
    except (OSError, ValueError) as error:
        _log.warning("process %d could not be pinned to CPUs %s (%s); it runs unpinned", process.pid, list(cpus), error)


def set_torch_threads(n_threads: int) -> None:
    """Sets the threads of torch operations in this process, as soon as it imports torch.

    Call it in a process that was just forked or started: a thread pool does not survive a fork, and the first large
    matrix product would wait for it forever.
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
    """Returns the affinity for rlpyt's `{"optimizer": [one dict per learner], "sampler": one dict, or one per GPU}`."""
    parts = _renamed(value, {"optimizer": "learners", "sampler": "samplers"}, "affinity", {_ALL_CPUS, "set_affinity"})
    if set(parts) != {"learners", "samplers"}:
        raise ValueError(f"affinity of an asynchronous run needs the keys optimizer and sampler, got {sorted(value)}")
    learners, samplers = ([part] if isinstance(part, Mapping) else list(part) for part in parts.values())
    if len(learners) != 1:
        raise ValueError(f"affinity optimizer has {len(learners)} learners, but one process learns; pass a list of one")
    learner = _renamed(learners[0], _LEARNER, "affinity optimizer", set())
    acting = [_once(_renamed(part, _ACTING, "affinity sampler", _SAMPLER_PROCESS | {_ALL_CPUS})) for part in samplers]
    return Affinity(
        **learner,
        **{name: of for name, of in acting[0].items() if name not in (*learner, "workers_cpus", "acts_on")},
        workers_cpus=tuple(group for part in acting for group in part.get("workers_cpus") or ()) or None,
        sampler_cuda_idx=tuple(part["acts_on"] for part in acting if part.get("acts_on") is not None) or None,
    )


def _once(settings: dict[str, Any]) -> dict[str, Any]:
    """Removes duplicate CPUs: rlpyt's alternating samplers list them once per group, and here one worker serves both
    groups.
    """
    groups = settings.get("workers_cpus") or ()
    half = len(groups) // 2
    if settings.get("alternating") and half and groups[half:] == groups[:half]:
        return {**settings, "workers_cpus": groups[:half]}
    return settings


def _renamed(value: Any, names: Mapping[str, str], what: str, passed_over: set[str]) -> dict[str, Any]:
    """Renames the keys of a dict to ours; raises ValueError for keys that are neither known nor to be ignored."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a dict, got {type(value).__name__} {value!r}")
    unknown = sorted(set(value) - set(names) - passed_over)
    if unknown:
        raise ValueError(f"{what} has unknown keys {unknown}; known keys are {sorted({*names, *passed_over})}")
    return {ours: value[theirs] for theirs, ours in names.items() if theirs in value}


def _sequence(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"affinity {name} must be a non-empty sequence, got {value!r}")
    return value


def _cpus(value: Any, name: str) -> tuple[int, ...]:
    return _numbers((value,) if isinstance(value, int) else value, name)


def _numbers(value: Any, name: str) -> tuple[int, ...]:
    numbers = tuple(_sequence(value, name))
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"affinity {name} must contain whole numbers of at least 0, got {value!r}")
    return numbers
