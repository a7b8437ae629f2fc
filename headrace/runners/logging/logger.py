"""The interface of loggers, which is also a logger that ignores everything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

__all__ = ["Logger", "Loggers"]


class Logger:
    """Receives the progress of a runner and ignores it; subclasses override the methods they need.

    A logger is a context manager that calls `close` at the end.
    """

    def settings(self, config: Mapping[str, Any]) -> None:
        """Receives the settings of the run, as in `config.json`; called before `start`."""

    def start(self, n_steps: int) -> None:
        """Called when training begins; it will take `n_steps` environment steps."""

    def progress(self, steps: int, mean_return: float = math.nan) -> None:
        """Called after each batch with the steps so far and the mean return of recent episodes."""

    def row(self, row: Mapping[str, float]) -> None:
        """Called every log interval with the numbers by column name."""

    def message(self, text: str) -> None:
        """Receives a message for the user."""

    def close(self) -> None:
        """Called at the end; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Loggers(Logger):
    """Passes everything to several loggers.

    Args:
        loggers: called in this order.
    """

    def __init__(self, *loggers: Logger) -> None:
        self._loggers = loggers

    def settings(self, config: Mapping[str, Any]) -> None:
        """See `Logger`."""
        for logger in self._loggers:
            logger.settings(config)

    def start(self, n_steps: int) -> None:
        """See `Logger`."""
        for logger in self._loggers:
            logger.start(n_steps)

    def progress(self, steps: int, mean_return: float = math.nan) -> None:
        """See `Logger`."""
        for logger in self._loggers:
            logger.progress(steps, mean_return)

    def row(self, row: Mapping[str, float]) -> None:
        """See `Logger`."""
        for logger in self._loggers:
            logger.row(row)

    def message(self, text: str) -> None:
        """See `Logger`."""
        for logger in self._loggers:
            logger.message(text)

    def close(self) -> None:
        """See `Logger`."""
        for logger in self._loggers:
            logger.close()
