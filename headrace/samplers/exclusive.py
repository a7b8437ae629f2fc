"""Who may call a sampler: one thread at a time, of the process that made it."""

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
    """The process that made a sampler, and the thread that is in one of its calls."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # for one thread again and again: a signal handler may shut the sampler down
        self._inside = ""

    def enter(self, call: str) -> None:
        """Raises SamplerError unless `call` may begin; `leave` is to follow."""
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
        """The call has ended."""
        self._lock.release()

    @contextmanager
    def inside(self, call: str, context: AbstractContextManager[None]) -> Iterator[None]:
        """Around `call`, which also happens in `context`; raises SamplerError unless it may begin."""
        self.enter(call)
        try:
            with context:
                yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # once, though the person pressed it again during the clean-up
        finally:
            self.leave()


class _Owned(Protocol):
    def _in_call(self, name: str) -> AbstractContextManager[None]: ...


_Self = TypeVar("_Self", bound=_Owned)


def exclusive(
    method: Callable[Concatenate[_Self, _Arguments], _Answer],
) -> Callable[Concatenate[_Self, _Arguments], _Answer]:
    """For a public method of a sampler: `Owner` decides whether it may be called."""

    @wraps(method)
    def entered(self: _Self, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        with self._in_call(method.__name__):
            return method(self, *args, **kwargs)

    return entered
