"""What every logger is: this one ignores all it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

__all__ = ["Logger", "Loggers"]


class Logger:
    """Hears what a runner tells, and does nothing with it; subclasses override what they care for.

    A context manager: leaving it closes.
    """

    def settings(self, config: Mapping[str, Any]) -> None:
        """Before `start`: the settings of the run, as `config.json` holds them."""

    def start(self, n_steps: int) -> None:
        """Training begins; it will take `n_steps` environment steps."""

    def progress(self, steps: int, mean_return: float = math.nan) -> None:
        """After each batch: steps so far, and the mean return of recent episodes."""

    def row(self, row: Mapping[str, float]) -> None:
        """Every log interval: the numbers by column name."""

    def message(self, text: str) -> None:
        """A sentence for a person."""

    def close(self) -> None:
        """Nothing follows. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Loggers(Logger):
    """Tells several loggers."""

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
