"""Calls a function when names have gone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from headrace.errors import NameEntryError

__all__ = ["NameWatch"]

_log = logging.getLogger("headrace.services")

_JOIN_SECONDS = 30.0  # for the thread to end; more than a call to a store takes


class NameWatch:
    """Waits in a thread until some names exist and then until none of them does; `watch_names` makes it.

    Args:
        get: returns the value of a name, or None; raises NameEntryError where the store cannot be reached, which says
            nothing of the name.
        names: the names.
        callback: called in the thread, without arguments, when all names have gone.
        poll_frequency: seconds between two looks.
        wait_timeout: seconds within which every name has to appear.
    """

    def __init__(
        self,
        get: Callable[[str], str | None],
        names: Sequence[str],
        callback: Callable[[], object],
        poll_frequency: float,
        wait_timeout: float,
    ) -> None:
        self.names = tuple(names)
        #: What ended the watch early: TimeoutError if a name did not appear, or what the callback raised.
        self.error: Exception | None = None
        self._get = get
        self._callback = callback
        self._poll_frequency = poll_frequency
        self._wait_timeout = wait_timeout
        self._cancelled = threading.Event()
        #: The names that have not been there yet.
        self.missing = self._without_value(self.names)  # before the caller goes on and deletes some
        self._thread = threading.Thread(target=self._run, name="headrace-watch", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the watch has ended: it has called the function, failed, or was cancelled."""
        return not self._thread.is_alive()

    def join(self, timeout: float) -> bool:
        """Waits for the end of the watch; returns whether it has come within `timeout` seconds."""
        self._thread.join(timeout)
        return self.done

    def cancel(self) -> None:
        """Ends the watch; the function will not be called unless it is being called already. Safe to call twice."""
        self._cancelled.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            if self._all_appeared() and self._all_gone():
                self._callback()
        except Exception as error:
            self.error = error
            _log.warning("watching %s failed: %s", ", ".join(self.names), error, exc_info=True)

    def _all_appeared(self) -> bool:
        """Returns True when every name has been there once; False if cancelled."""
        deadline = time.monotonic() + self._wait_timeout
        while self.missing:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{', '.join(self.missing)} did not appear within {self._wait_timeout:g} s")
            if self._cancelled.wait(min(left, self._poll_frequency)):
                return False
            self.missing = self._without_value(self.missing)
        return not self._cancelled.is_set()

    def _all_gone(self) -> bool:
        """Returns True when no name is there; False if cancelled."""
        while any(self._exists(name, unknown=True) for name in self.names):
            if self._cancelled.wait(self._poll_frequency):
                return False
        return not self._cancelled.is_set()

    def _exists(self, name: str, unknown: bool) -> bool:
        """Returns whether a name has a value, or `unknown` if the store cannot be reached."""
        try:
            return self._get(name) is not None
        except NameEntryError:
            return unknown

    def _without_value(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if not self._exists(name, unknown=False))
