"""The records that one repository has added, and the thread that keeps them alive."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from headrace.errors import NameEntryError, NameEntryNotFoundError, NameLost, one_line
from headrace.services.names.records import Record, Records, is_within, steady_seconds

__all__ = ["LostRecord", "OwnRecords"]

_log = logging.getLogger("headrace.services")

_IDLE_SECONDS = 60.0  # between two looks while nothing is due
_FIRST_PAUSE = 0.05  # seconds before a failed renewal is tried again; doubled each time, up to a third of the ttl
_JOIN_SECONDS = 30.0  # for the thread to end; more than a call to a store takes
_N_LOST = 1000  # how many lost records are remembered


@dataclass(frozen=True)
class LostRecord:
    """Says that others could not see a record for a while, or cannot any more.

    Args:
        name: its name.
        seconds: time since it was added or last renewed.
        reason: what happened.
        given_up: True: it is not renewed any more, because its name was deleted or has another record. False: it is
            renewed again, or added again, as soon as the store can be reached.
    """

    name: str
    seconds: float
    reason: str
    given_up: bool


@dataclass
class _Own:
    """A record and what is known of its life. Times are those of the clock.

    Args:
        record: the record.
        delete_on_exit: whether it is deleted with its repository.
        instance: the data of the store in which it was put.
        renewed: when its last successful renewal began.
        due: when it is to be renewed.
        failures: how many renewals have failed since.
        problem: why the last one failed.
        told: whether the owner has been told that it was lost, since the last success.
    """

    record: Record
    delete_on_exit: bool
    instance: str
    renewed: float
    due: float
    failures: int = 0
    problem: str = ""
    told: bool = False


class OwnRecords:
    """Adds, renews and deletes the records of one repository.

    A thread, started with the first record that can expire, renews each after a third of its time to live. It retries
    when the store cannot be reached, and adds the records again to a store that has lost its data or let them expire.
    A process that was forked has none of its parent's records.

    Args:
        records: the store.
        on_lost: called in the thread for each record that was lost.
        clock: the time in seconds; it never goes back.
        in_thread: whether the thread is started; without it, somebody has to call `renew_due`.
    """

    def __init__(
        self,
        records: Records,
        on_lost: Callable[[LostRecord], None] | None = None,
        clock: Callable[[], float] = steady_seconds,
        in_thread: bool = True,
    ) -> None:
        self._records = records
        self._on_lost = on_lost
        self._clock = clock
        self._in_thread = in_thread
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        """Starts without records, in this process."""
        self._pid = os.getpid()
        self._lock = threading.RLock()  # held during a call to the store, so that nobody renews what is being deleted
        self._own: dict[str, _Own] = {}
        self._lost: deque[LostRecord] = deque(maxlen=_N_LOST)
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> tuple[LostRecord, ...]:
        """The records that were lost so far, the latest last."""
        return tuple(self._lost)

    def require_open(self) -> None:
        """Raises NameEntryError after `close`."""
        if os.getpid() != self._pid:
            self._begin()  # the parent's lock may have been held while this process was forked
        if self._closed:
            raise NameEntryError("this repository of names is closed; make a new one")

    def add(self, record: Record, delete_on_exit: bool, replace: bool) -> bool:
        """Puts a record into the store and keeps it alive; returns False if its name has another."""
        self.require_open()
        with self._lock:
            instance = self._records.instance()
            now = self._clock()
            if not self._records.put(record, replace):
                return False
            due = math.inf if record.ttl is None else now + record.ttl / 3
            self._own.pop(record.name, None)  # which this one has replaced
            if delete_on_exit or record.ttl is not None:
                self._own[record.name] = _Own(record, delete_on_exit, instance, now, due)
            if record.ttl is not None:
                self._wake.set()
                if self._thread is None and self._in_thread:
                    self._thread = threading.Thread(target=self._run, name="headrace-names", daemon=True)
                    self._thread.start()
        return True

    def remove(self, name: str) -> bool:
        """Removes a record from the store, another repository's too; returns whether there was one."""
        self.require_open()
        with self._lock:
            removed = self._records.remove(name)
            self._own.pop(name, None)
        return removed

    def clear(self, root: str) -> None:
        """Removes the records of a name and of all below it, those of other repositories too."""
        self.require_open()
        with self._lock:
            self._records.clear(root)
            for name in [name for name in self._own if is_within(name, root)]:
                del self._own[name]

    def reset(self) -> None:
        """Removes this repository's records that were to be deleted on exit."""
        self.require_open()
        with self._lock:
            self._remove_own()

    def require_own(self, name: str) -> None:
        """Renews a record; raises NameLost if it is not this repository's any more, NameEntryError if nobody knows."""
        self.require_open()
        with self._lock:
            own = self._own.get(name)
            renews = own is not None and own.record.ttl is not None
            lost = self._renewed(own) if own is not None and renews else None
            given_up = own is not None and self._own.get(name) is not own
        if lost is not None:
            self._tell(lost)
        if own is None or given_up:
            lost = next((one for one in reversed(self._lost) if one.name == name and one.given_up), None)
            if lost is not None:
                raise NameLost(f"name {name!r} was lost after {lost.seconds:.3g} s: {lost.reason}")
        if own is None or not renews:
            raise NameEntryNotFoundError(f"name {name!r} was not added with keepalive_ttl by this repository")
        if own.failures:
            raise NameEntryError(f"nobody knows whose name {name!r} is now: {own.problem}")

    def renew_due(self) -> float:
        """Renews the records that are due; returns the seconds until the next one is."""
        with self._lock:
            names = [name for name, own in self._own.items() if own.due <= self._clock()]
        for name in names:
            with self._lock:  # for each record anew, so that other threads do not wait for all
                own = None if self._closed else self._own.get(name)
                lost = None if own is None else self._renewed(own)
            if lost is not None:
                self._tell(lost)
        with self._lock:
            return min([own.due for own in self._own.values()], default=math.inf) - self._clock()

    def close(self) -> None:
        """Ends the thread, removes the records that were to be deleted on exit, and closes the store."""
        if os.getpid() != self._pid:
            self._begin()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)
        with self._lock:
            try:
                self._remove_own()
            except NameEntryError as error:
                left = [own.record for own in self._own.values() if own.delete_on_exit]
                expiring = ", ".join(f"{one.name} (for {one.ttl:g} s)" for one in left if one.ttl is not None)
                staying = ", ".join(one.name for one in left if one.ttl is None)
                _log.warning(
                    "names could not be deleted: %s%s%s",
                    one_line(error),
                    f"; still there: {expiring}" * bool(expiring),
                    f"; until somebody deletes them: {staying}" * bool(staying),
                )
        self._records.close()

    def _remove_own(self) -> None:
        for name in [name for name, own in self._own.items() if own.delete_on_exit]:
            self._records.remove(name, self._own[name].record.token)
            del self._own[name]

    def _run(self) -> None:
        """The thread."""
        while not self._closed:
            seconds = self.renew_due()
            self._wake.wait(min(max(seconds, 0.0), _IDLE_SECONDS))
            self._wake.clear()

    def _renewed(self, own: _Own) -> LostRecord | None:
        """Renews a record; returns what the owner has to be told."""
        record, began = own.record, self._clock()
        ttl = record.ttl or 0.0
        late = began - own.renewed > ttl
        try:
            kept = self._records.renew(record)
            if not kept:
                late = self._clock() - own.renewed > ttl  # the time to live at the store has begun after `renewed`
                kept = self._put_again(own, late)
        except Exception as error:  # whatever it is, the thread has to live, or the records die unnoticed
            own.failures, own.problem = own.failures + 1, one_line(error)
            now = self._clock()
            own.due = now + min(ttl / 3, _FIRST_PAUSE * 2 ** min(own.failures, 10))
            return self._late(own, now, own.problem) if now - own.renewed > ttl else None
        if not kept:
            del self._own[record.name]
            return LostRecord(record.name, began - own.renewed, "it was deleted, or its name has another record", True)
        lost = self._late(own, began, "it was not renewed in time") if late else None
        own.renewed, own.due, own.failures, own.told = began, began + ttl / 3, 0, False
        return lost

    def _put_again(self, own: _Own, late: bool) -> bool:
        """Puts a record into the store that has lost it by itself; returns False if somebody removed it on purpose."""
        instance = self._records.instance()
        if (instance == own.instance and not late) or not self._records.put(own.record, replace=False):
            return False
        own.instance = instance
        return True

    def _late(self, own: _Own, now: float, reason: str) -> LostRecord | None:
        """Returns that a record has expired, once until it is renewed again."""
        if own.told:
            return None
        own.told = True
        return LostRecord(own.record.name, now - own.renewed, reason, False)

    def _tell(self, lost: LostRecord) -> None:
        self._lost.append(lost)
        what = "given up" if lost.given_up else "kept, but others may not have seen it"
        _log.warning("name %s was lost after %.3g s and is %s: %s", lost.name, lost.seconds, what, lost.reason)
        if self._on_lost is not None:
            try:
                self._on_lost(lost)
            except Exception:
                _log.exception("on_lost raised for name %s", lost.name)
