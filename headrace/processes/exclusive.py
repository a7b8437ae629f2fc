"""Restricts calls of a sampler to one thread at a time, in the process that made it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
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

    def __reduce__(self) -> tuple[type[Owner], tuple[()]]:
        """A copy that was sent to another process belongs to that one."""
        return Owner, ()

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
                "this sampler; make a sampler in the process that uses it"
            )
        if not self._lock.acquire(blocking=False):
            raise SamplerError(
                f"{call}() was called while another thread is in {self._inside}() of this sampler; "
                "use a sampler from one thread at a time"
            )
        self._inside = call

    def leave(self) -> None:
        """Ends a call."""
        self._lock.release()


class _Owned(Protocol):
    _owner: Owner

    def _call_context(self) -> AbstractContextManager[None]: ...


_Self = TypeVar("_Self", bound=_Owned)


def exclusive(
    method: Callable[Concatenate[_Self, _Arguments], _Answer],
) -> Callable[Concatenate[_Self, _Arguments], _Answer]:
    """Decorates a public method of a sampler so that `Owner` checks whether it may be called."""

    @wraps(method)
    def entered(self: _Self, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        self._owner.enter(method.__name__)
        try:
            with self._call_context():
                return method(self, *args, **kwargs)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # once, though the person pressed it again during the clean-up
        finally:
            self._owner.leave()

    return entered
