"""What clients and servers of a stream share: they are closed once, and refuse calls afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from headrace.errors import StreamClosed

__all__ = ["Clock", "Endpoint"]

#: Returns seconds; a test may have its own.
Clock = Callable[[], float]


class Endpoint(ABC):
    """An end of a stream; a context manager.

    Args:
        name: name of the stream, for errors.
        what: which end it is, for errors.
    """

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what
        self._closed = False

    def close(self) -> None:
        """Leaves the stream; further calls raise StreamClosed."""
        if not self._closed:
            self._closed = True
            self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _leave(self) -> None:
        """Releases everything."""

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosed(f"this {self._what} of stream {self._name!r} is closed")
