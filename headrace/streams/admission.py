"""Admission: bounds how old samples become by what is started, so that nothing finished has to be thrown away.

A trajectory may start only if (max_staleness + version + 1) · batch − (accepted + running) > 0. `version` counts the
updates of the learner, each of `batch` samples; `accepted` counts trajectories that have ended and `running` those that
have not. A trajectory that was started holds a lease; the lease ends with the trajectory, or expires with its producer.

So a sample is at most `max_staleness` versions old if samples are used in the order in which they were started. A
trajectory that takes longer than others is older by the updates that overtake it; `Admission.ages` shows how many are.

The learner owns the numbers (`Admission`). Producers ask the object itself, or from another process of this machine
through shared memory (`AdmissionGate`), or from anywhere through a socket (`headrace.streams.admission_sockets`).
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from headrace.buffers.shared import Allocate, Arena, measure, private, shared
from headrace.errors import StreamClosed, StreamError, StreamTimeout
from headrace.streams.closing import Closing
from headrace.streams.codec import Frame
from headrace.streams.file_lock import FileLock
from headrace.streams.rendezvous import Host, Inquiry, Watch
from headrace.streams.sample import SampleBatch

__all__ = ["Admission", "AdmissionCounts", "AdmissionGate", "Gate", "Lease"]

_MOST_LEASES = 4096
_ACCEPTED, _VERSION, _STALENESS, _BATCH, _LEASE_NS, _EXPIRED, _REFUSED, _STARTED = range(8)
_ID, _END = range(2)
_MAGIC = b"HRAD1"


@dataclass(frozen=True)
class Lease:
    """The permission to collect one trajectory.

    Args:
        number: a random number that names it.
        seconds: how long it is valid, from its grant or its last renewal.
    """

    number: int
    seconds: float


@dataclass(frozen=True)
class AdmissionCounts:
    """The numbers of an admission.

    Args:
        version: of the parameters.
        accepted: trajectories that have ended and were let in.
        running: trajectories that hold a lease.
        started: leases that were granted.
        expired: leases that expired.
        refused: times that a trajectory could not start.
    """

    version: int
    accepted: int
    running: int
    started: int
    expired: int
    refused: int


class Gate(Protocol):
    """What producers use."""

    def may_start(self) -> Lease | None:
        """Returns a lease for one trajectory; None if it may not start now: ask again after a while."""

    def renew(self, lease: Lease) -> bool:
        """Makes a lease valid for its whole time again; returns False if it has expired."""

    def finish(self, lease: Lease) -> bool:
        """Ends a trajectory. Post it if this returns True; if the lease has expired, another one may have started."""

    def abandon(self, lease: Lease) -> None:
        """Ends a trajectory that will not be posted."""


class _Ledger:
    """The numbers, in memory that one or several processes have.

    Args:
        head: int64 `[16]`.
        leases: int64 `[n, 2]`, number and end of each lease.
        lock: holds the lock while it is entered.
        clock: the time in seconds.
    """

    def __init__(
        self,
        head: np.ndarray,
        leases: np.ndarray,
        lock: AbstractContextManager[object],
        clock: Callable[[], float],
    ) -> None:
        self.head = head
        self.leases = leases
        self.lock = lock
        self._clock = clock

    def may_start(self) -> Lease | None:
        """See `Gate`."""
        with self.lock:
            head = self.head
            running = self._expire()
            updates = int(head[_STALENESS]) + int(head[_VERSION]) + 1
            room = updates * int(head[_BATCH]) - (int(head[_ACCEPTED]) + running)
            free = np.flatnonzero(self.leases[:, _ID] == 0)
            if room <= 0 or not len(free):
                head[_REFUSED] += 1
                return None
            number = int.from_bytes(os.urandom(8), "little") % (2**63 - 1) + 1
            self.leases[free[0], _END] = self._now() + int(head[_LEASE_NS])
            self.leases[free[0], _ID] = number
            head[_STARTED] += 1
            return Lease(number, int(head[_LEASE_NS]) / 1e9)

    def renew(self, lease: Lease) -> bool:
        """See `Gate`."""
        with self.lock:
            self._expire()
            row = np.flatnonzero(self.leases[:, _ID] == lease.number)
            self.leases[row, _END] = self._now() + int(self.head[_LEASE_NS])
            return bool(len(row))

    def end(self, lease: Lease, accepted: int) -> bool:
        """Ends a lease and adds to the accepted trajectories; returns False, without adding, if it has expired."""
        with self.lock:
            self._expire()
            row = np.flatnonzero(self.leases[:, _ID] == lease.number)
            if not len(row):
                return False
            self.leases[row] = 0
            self.head[_ACCEPTED] += accepted
            return True

    def counts(self) -> AdmissionCounts:
        """Returns the numbers."""
        with self.lock:
            running = self._expire()
            head = self.head.tolist()
        return AdmissionCounts(head[_VERSION], head[_ACCEPTED], running, head[_STARTED], head[_EXPIRED], head[_REFUSED])

    def _expire(self) -> int:
        """Ends the leases whose time is over; returns how many there are."""
        held = self.leases[:, _ID] != 0
        over = held & (self.leases[:, _END] <= self._now())
        n_over = int(np.count_nonzero(over))
        if n_over:
            self.leases[over] = 0
            self.head[_EXPIRED] += n_over
        return int(np.count_nonzero(held)) - n_over

    def _now(self) -> int:
        return int(self._clock() * 1e9)


def _build(allocate: Allocate) -> tuple[np.ndarray, np.ndarray]:
    whole = np.dtype(np.int64)
    return allocate((16,), whole), allocate((_MOST_LEASES, 2), whole)


class Admission(Closing):
    """Grants leases, in the process of the learner.

    Args:
        max_staleness: how many versions old a sample may be when it is used.
        batch: samples of an update.
        lease_seconds: how long a lease is valid without being renewed.
        name: a name under which other processes of this machine find it, for `AdmissionGate`; None: they do not.
        clock: the time in seconds; it must be that of all processes.

    Raises:
        ValueError: for numbers that are not positive (`max_staleness`: negative).
    """

    def __init__(
        self,
        max_staleness: int,
        batch: int,
        *,
        lease_seconds: float = 60.0,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_staleness < 0 or batch < 1 or not lease_seconds > 0:
            raise ValueError(
                f"max_staleness is {max_staleness}, batch is {batch} and lease_seconds is {lease_seconds}, expected "
                "0 or more, 1 or more, and a positive time"
            )
        self.ages: Counter[int] = Counter()  # how many samples were used that were so many versions old
        self._file_lock: FileLock | None = None
        self._host: Host | None = None
        self._arena: Arena | None = None
        if name is None:
            threads = threading.Lock()
            _, (head, leases) = private(_build)
            self._ledger = _Ledger(head, leases, threads, clock)
        else:
            self._arena, (head, leases) = shared(_build)
            assert self._arena.fd is not None
            self._file_lock = FileLock(self._arena.fd)
            self._ledger = _Ledger(head, leases, self._file_lock, clock)
        head[_STALENESS], head[_BATCH], head[_LEASE_NS] = max_staleness, batch, int(lease_seconds * 1e9)
        if name is not None:
            self._host = Host(_host_name(name), self._answer)

    def may_start(self) -> Lease | None:
        """See `Gate`."""
        return self._ledger.may_start()

    def renew(self, lease: Lease) -> bool:
        """See `Gate`."""
        return self._ledger.renew(lease)

    def finish(self, lease: Lease) -> bool:
        """See `Gate`."""
        return self._ledger.end(lease, 1)

    def abandon(self, lease: Lease) -> None:
        """See `Gate`."""
        self._ledger.end(lease, 0)

    def advance(self, version: int) -> None:
        """Sets the version, after an update.

        Raises:
            ValueError: for a version that is older than the present one.
        """
        with self._ledger.lock:
            if version < self._ledger.head[_VERSION]:
                raise ValueError(f"version is {version}, expected {self._ledger.head[_VERSION]} or more")
            self._ledger.head[_VERSION] = version

    def resume(self, version: int) -> None:
        """Goes on after the updates of an earlier run, as if their samples had been accepted here.

        Args:
            version: number of those updates.
        """
        with self._ledger.lock:
            head = self._ledger.head
            head[_VERSION], head[_ACCEPTED] = version, version * int(head[_BATCH])

    def forget(self, n: int) -> None:
        """Takes back the acceptance of samples that were lost or rejected on their way, so that others may start."""
        with self._ledger.lock:
            self._ledger.head[_ACCEPTED] -= n

    def used(self, sample: Frame | SampleBatch, version: int | None = None) -> None:
        """Adds the ages of a sample, or of the samples of a batch, to `ages`, when an update uses them.

        Args:
            sample: what is used.
            version: of the parameters that are updated with it; None: the version that was set last.
        """
        version = self.counts.version if version is None else version
        versions = sample.versions.tolist() if isinstance(sample, SampleBatch) else [sample.version]
        self.ages.update(version - of_sample for of_sample in versions)

    @property
    def counts(self) -> AdmissionCounts:
        """The numbers now."""
        return self._ledger.counts()

    def close(self) -> None:
        """Gives the name back. Safe to call twice."""
        if self._host is not None:
            self._host.close()
            self._host = None
        if self._file_lock is not None and self._arena is not None:
            self._arena.close_fd()

    def _answer(self, request: bytes) -> tuple[bytes, list[int]] | None:
        assert self._arena is not None
        return (_MAGIC, [self._arena.fd]) if request == _MAGIC and self._arena.fd is not None else None


class AdmissionGate(Closing):
    """Asks the `Admission` of another process of this machine, through shared memory.

    Args:
        name: that of the admission.
        timeout: seconds to wait for it.
        clock: see `Admission`.

    Raises:
        StreamTimeout: if there is none in time.
    """

    def __init__(self, name: str, timeout: float = 60.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        inquiry = Inquiry(_host_name(name), _MAGIC)
        found = inquiry.answer(time.monotonic() + timeout)
        inquiry.close()
        if found is None or found[0] != _MAGIC or len(found[1]) != 1:
            raise StreamTimeout(f"there was no admission {name!r} within {timeout:g} s; is its learner running?")
        arena = Arena(measure(_build), found[1][0])
        self._lock = FileLock(found[1][0])
        self._ledger = _Ledger(*_build(arena.allocate), self._lock, clock)
        arena.close_fd()
        self._name = name
        self._watch = Watch(_host_name(name))
        self._closed = False

    def may_start(self) -> Lease | None:
        """See `Gate`.

        Raises:
            StreamError: if the process of the admission has ended, so that nothing may start any more.
        """
        lease = self._open().may_start()
        if lease is None and self._watch.ended():
            raise StreamError(f"the learner that had the admission {self._name!r} has closed it, or ended")
        return lease

    def renew(self, lease: Lease) -> bool:
        """See `Gate`."""
        return self._open().renew(lease)

    def finish(self, lease: Lease) -> bool:
        """See `Gate`."""
        return self._open().end(lease, 1)

    def abandon(self, lease: Lease) -> None:
        """See `Gate`."""
        self._open().end(lease, 0)

    def close(self) -> None:
        """Leaves the memory. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._watch.close()
            self._lock.close()

    def _open(self) -> _Ledger:
        if self._closed:
            raise StreamClosed("a call of an AdmissionGate after close(); make another one")
        return self._ledger


def _host_name(name: str) -> str:
    return f"{name}/admission"
