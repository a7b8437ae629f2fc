"""Restricts calls of a sampler to one thread at a time, in the process that made it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from headrace.errors import SamplerError

__all__ = ["Owner", "exclusive"]

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


class Owner:
    """Records the process that made a sampler and the thread that is currently in one of its calls."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # reentrant: a signal handler may call shutdown() during another call
        self._inside = ""

    def enter(self, call: str) -> None:
        """Begins a call; `leave` must follow.

        Args:
            call: name of the method.

        Raises:
            SamplerError: in another process, or while another thread is in a call.
        """
        if os.getpid() != self._pid:
            raise SamplerError(
                f"{call}() was called in process {os.getpid()}, which was forked from process {self._pid} that made "
                "this sampler; make one in the process that uses it"
            )
        if not self._lock.acquire(blocking=False):
            raise SamplerError(
                f"{call}() was called while another thread is in {self._inside}() of this sampler; "
                "call it from one thread at a time"
            )
        self._inside = call

    def leave(self) -> None:
        """Ends a call."""
        self._lock.release()

    @contextmanager
    def inside(self, call: str, context: AbstractContextManager[None]) -> Iterator[None]:
        """Returns a context manager for a call.

        Args:
            call: name of the method.
            context: a context that is entered for the duration of the call.

        Raises:
            SamplerError: in another process, or while another thread is in a call.
        """
        self.enter(call)
        try:
            with context:
                yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # only one, even if the user pressed Ctrl-C again during the clean-up
        finally:
            self.leave()


class _Owned(Protocol):
    def _in_call(self, name: str) -> AbstractContextManager[None]: ...


_Self = TypeVar("_Self", bound=_Owned)


def exclusive(
    method: Callable[Concatenate[_Self, _Arguments], _Answer],
) -> Callable[Concatenate[_Self, _Arguments], _Answer]:
    """Decorates a public method of a sampler so that `Owner` checks whether it may be called."""

    @wraps(method)
    def entered(self: _Self, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        with self._in_call(method.__name__):
            return method(self, *args, **kwargs)

    return entered
