"""Progress for a person who watches: a line per log interval, and a bar on a terminal."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TextIO

from headrace.runners.logging.logger import Logger

__all__ = ["ConsoleLogger"]


class ConsoleLogger(Logger):
    """Writes to `stream`, standard error by default. The bar needs tqdm (`pip install "headrace[log]"`) and a terminal;
    without, the lines say the same: steps, rate, time left, return.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._n_steps = 0
        self._bar: Any = None

    def start(self, n_steps: int) -> None:
        """See `Logger`."""
        self._n_steps = n_steps
        self._bar = _bar(n_steps, self._stream) if self._stream.isatty() else None

    def progress(self, steps: int, mean_return: float = math.nan) -> None:
        """See `Logger`."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"return {mean_return:.1f}", refresh=False)
            self._bar.update(steps - self._bar.n)

    def row(self, row: Mapping[str, float]) -> None:
        """See `Logger`."""
        steps, seconds = row["CumSteps"], row["CumTime"]
        left = seconds * (self._n_steps - steps) / steps if steps else math.nan
        eta = str(timedelta(seconds=round(max(0.0, left)))) if math.isfinite(left) else "?"
        self.message(
            f"{steps:>12,.0f} steps  {steps / max(self._n_steps, 1):4.0%}  {row['StepsPerSecond']:>9,.0f} steps/s  "
            f"ETA {eta}  return {row.get('ReturnAverage', math.nan):.1f}"
        )

    def message(self, text: str) -> None:
        """See `Logger`."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """See `Logger`."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bar(n_steps: int, stream: TextIO) -> Any:
    """A tqdm bar; None if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None

    class Bar(tqdm):  # type: ignore[misc]
        """tqdm without its monitor thread and its lock between processes: a runner leaves nothing behind."""

        monitor_interval = 0

    Bar.set_lock(threading.RLock())
    return Bar(total=n_steps, unit=" steps", unit_scale=True, file=stream, dynamic_ncols=True)
