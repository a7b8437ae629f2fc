"""The repository of names: what all kinds have in common, whatever stores the records."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any, Self

from headrace.errors import NameEntryError, NameEntryExistsError, NameEntryNotFoundError
from headrace.services.names.own import LostRecord, OwnRecords
from headrace.services.names.records import (
    Record,
    Records,
    checked_name,
    checked_seconds,
    checked_ttl,
    checked_value,
    new_token,
    steady_seconds,
)
from headrace.services.names.watch import NameWatch

__all__ = ["NameRecordRepository", "OnLost"]

#: Called for each record that was lost.
OnLost = Callable[[LostRecord], None]

_SUBENTRY_BYTES = 5  # of the random part of a name
_TRIES = 10  # to find a random name that is free
_MIN_POLL = 0.001  # seconds


class NameRecordRepository:
    """Names with values, for all processes that use the same store.

    Names are parts separated by slashes, "experiment/trial/learner"; every one can have a value, and they form a tree.
    Values are strings of at most 64 KiB.

    A record that is added with `keepalive_ttl` outlives its owner by so many seconds: a thread renews it after each
    third of that time. If the store cannot be reached for longer, the record expires for others; the owner is told
    (`lost`, `on_lost`, a warning in the log), and the record appears again when the store does, even if it comes back
    empty. A record that somebody deleted, or whose name another has taken, is given up (`require_own` raises NameLost
    then). Only records with `keepalive_ttl` are looked after.

    Methods can be called from several threads. All raise `NameEntryError` if the store cannot be reached, or after
    `close`. A pickled repository becomes another one of the same store, without records of its own and without
    `on_lost`; a forked process has none of its parent's records either. This class is the base of the others; it takes
    any implementation of the protocol `headrace.services.names.records.Records`.

    Args:
        records: the store.
        arguments: what the class is called with when a copy is unpickled; None: `records`.
        on_lost: called for each record that was lost, in the thread that renews records.
        clock: the time in seconds, for the renewals; it never goes back.
    """

    def __init__(
        self,
        records: Records,
        arguments: tuple[Any, ...] | None = None,
        *,
        on_lost: OnLost | None = None,
        clock: Callable[[], float] = steady_seconds,
    ) -> None:
        self._records = records
        self._arguments: tuple[Any, ...] = (records,) if arguments is None else arguments
        self._own = OwnRecords(records, on_lost, clock)
        self._watches: list[NameWatch] = []
        # When garbage collected, and at exit, that of a multiprocessing child included.
        self._end = Finalize(self, self._own.close, exitpriority=0)

    def add(
        self,
        name: str,
        value: str,
        *,
        delete_on_exit: bool = True,
        keepalive_ttl: float | None = None,
        replace: bool = False,
    ) -> None:
        """Gives a name a value. Of several processes that add a name, exactly one succeeds.

        Args:
            name: the name.
            value: its value.
            delete_on_exit: delete it with `reset`, `close`, and when this process ends normally.
            keepalive_ttl: seconds after which it expires when this process has died; None: it stays.
            replace: take the name even if it has a value.

        Raises:
            NameEntryExistsError: if the name has a value, and `replace` is False.
            TypeError, ValueError: if the name, the value or the time is not valid.
        """
        record = Record(checked_name(name), checked_value(value), new_token(), checked_ttl(keepalive_ttl))
        if not self._own.add(record, delete_on_exit, replace):
            raise NameEntryExistsError(f"name {name!r} has a value; delete it first, or add it with replace=True")

    def add_subentry(
        self, name: str, value: str, *, delete_on_exit: bool = True, keepalive_ttl: float | None = None
    ) -> str:
        """Gives a new name below `name`, with a random last part, a value.

        Args:
            name: the name above.
            value: the value.
            delete_on_exit: see `add`.
            keepalive_ttl: see `add`.

        Returns:
            The whole name.
        """
        for _ in range(_TRIES):
            whole = f"{name}/{os.urandom(_SUBENTRY_BYTES).hex()}"
            try:
                self.add(whole, value, delete_on_exit=delete_on_exit, keepalive_ttl=keepalive_ttl)
                return whole
            except NameEntryExistsError:
                continue
        raise NameEntryExistsError(f"no free name was found below {name!r} in {_TRIES} tries; delete some")

    def get(self, name: str) -> str:
        """Returns the value of a name.

        Raises:
            NameEntryNotFoundError: if it has none.
        """
        value = self._get(checked_name(name))
        if value is None:
            raise NameEntryNotFoundError(f"name {name!r} has no value; wait() waits until somebody adds it")
        return value

    def get_subtree(self, name: str) -> list[str]:
        """Returns the values of a name and of all names below it, at any depth, in the order of the names."""
        return [value for _, value in self._subtree(name)]

    def find_subtree(self, name: str) -> list[str]:
        """Returns a name, if it has a value, and all names below it that have one, at any depth, sorted."""
        return [found for found, _ in self._subtree(name)]

    def wait(self, name: str, timeout: float = 300.0, poll_frequency: float = 0.1) -> str:
        """Waits until a name has a value. A store that cannot be reached is waited for as well.

        Args:
            name: the name.
            timeout: seconds to wait at most; then the last call to the store ends, which has a time limit of its own.
            poll_frequency: seconds between two looks. In memory and on Redis a new name is noticed at once.

        Returns:
            The value.

        Raises:
            TimeoutError: if it has none in time.
        """
        checked_name(name)
        checked_seconds("timeout", timeout)
        checked_seconds("poll_frequency", poll_frequency, _MIN_POLL)
        deadline = time.monotonic() + timeout
        with self._records.changes() as until_change:
            while True:
                self._own.require_open()
                failure = None
                try:
                    if (value := self._records.get(name)) is not None:
                        return value
                except NameEntryError as error:
                    failure = error
                left = deadline - time.monotonic()
                if left <= 0:
                    why = "" if failure is None else f" ({failure})"
                    raise TimeoutError(f"name {name!r} had no value within {timeout:g} s{why}") from failure
                until_change(min(left, poll_frequency))

    def watch_names(
        self,
        names: str | Sequence[str],
        callback: Callable[[], object],
        poll_frequency: float = 1.0,
        wait_timeout: float = 300.0,
    ) -> NameWatch:
        """Calls a function when all names have gone, from a thread that first waits until each has been there.

        Args:
            names: one name or several.
            callback: called once, without arguments.
            poll_frequency: seconds between two looks.
            wait_timeout: seconds within which every name must appear; else the watch ends with a warning in the log.

        Returns:
            The watch; its `cancel` ends it, as does `close` of the repository.
        """
        found = [names] if isinstance(names, str) else [*names]
        if not found:
            raise ValueError("names must have at least one name, got none")
        for name in found:
            checked_name(name)
        checked_seconds("poll_frequency", poll_frequency, _MIN_POLL)
        checked_seconds("wait_timeout", wait_timeout)
        self._own.require_open()
        watch = NameWatch(self._get, found, callback, poll_frequency, wait_timeout)
        self._watches = [one for one in self._watches if not one.done] + [watch]
        return watch

    def delete(self, name: str) -> None:
        """Deletes a name, whoever has added it.

        Raises:
            NameEntryNotFoundError: if it has no value.
        """
        if not self._own.remove(checked_name(name)):
            raise NameEntryNotFoundError(f"name {name!r} has no value, so it cannot be deleted")

    def clear_subtree(self, name: str) -> None:
        """Deletes a name, if it has a value, and all names below it, whoever has added them."""
        self._own.clear(checked_name(name))

    def require_own(self, name: str) -> None:
        """Renews a name, and returns if it is still this repository's. For actions that one owner alone may do.

        Args:
            name: a name that this repository has added with `keepalive_ttl`.

        Raises:
            NameLost: if it was deleted, or has expired and another has taken it; see `lost` for what has come back.
            NameEntryError: if the store cannot be reached.
            NameEntryNotFoundError: if this repository has not added it, or has deleted it.
        """
        self._own.require_own(checked_name(name))

    def reset(self) -> None:
        """Deletes what this repository has added with `delete_on_exit`, and nothing that others have added since."""
        self._own.reset()

    @property
    def lost(self) -> tuple[LostRecord, ...]:
        """The own records that others could not see for a while, or cannot any more; the latest last."""
        return self._own.lost

    def close(self) -> None:
        """Ends renewals and watches, and deletes what `reset` deletes. Safe to call twice."""
        for watch in self._watches:
            watch.cancel()
        self._own.close()
        self._end.cancel()

    def __enter__(self) -> Self:
        self._own.require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def _get(self, name: str) -> str | None:
        self._own.require_open()
        return self._records.get(name)

    def _subtree(self, name: str) -> list[tuple[str, str]]:
        checked_name(name)
        self._own.require_open()
        return sorted(self._records.subtree(name).items())
