"""Progress on the console: a line and a table per log interval, and a progress bar on a terminal."""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TextIO

from headrace.runners.logging.logger import Logger
from headrace.text import significant

__all__ = ["ConsoleLogger"]

#: Width of a number in the table; it is fixed so that numbers keep their positions from table to table.
_NUMBER_WIDTH = 9


class ConsoleLogger(Logger):
    """Writes progress to a text stream.

    The progress bar needs tqdm (`pip install "headrace[log]"`) and a terminal; without it, the lines contain the same
    information: return, steps, rate and time left. Below each line, a table shows the spread of the returns and the
    means of the other logged values, in as many columns as the terminal has room for.

    Args:
        stream: default: standard error.
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
            self._bar.set_description_str(f"return {significant(mean_return)}", refresh=False)
            self._bar.update(steps - self._bar.n)

    def row(self, row: Mapping[str, float]) -> None:
        """See `Logger`."""
        steps, seconds = row["CumSteps"], row["CumTime"]
        left = seconds * (self._n_steps - steps) / steps if steps else math.nan
        eta = str(timedelta(seconds=round(max(0.0, left)))) if math.isfinite(left) else "?"
        self.message(
            f"  return {significant(row.get('ReturnAverage', math.nan)):>{_NUMBER_WIDTH}}"
            f"{steps:>13,.0f} steps  {steps / max(self._n_steps, 1):4.0%}  {row['StepsPerSecond']:>9,.0f} steps/s  "
            f"ETA {eta}"
        )
        for line in _table(_main_numbers(row), _width(self._stream)):
            self.message(line)

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


def _main_numbers(row: Mapping[str, float]) -> dict[str, float]:
    """Returns the numbers of the table: the spread of the returns, then the means of all other values that have one."""
    spread = {name: row[name] for name in ("ReturnStd", "ReturnMin", "ReturnMax") if name in row}
    means = {name.removesuffix("Average"): value for name, value in row.items() if name.endswith("Average")}
    means.pop("Return", None)  # shown in the line above
    return {name: value for name, value in (spread | means).items() if not math.isnan(value)}


def _table(numbers: Mapping[str, float], width: int) -> list[str]:
    """Formats names and numbers in as many columns as fit into `width`, filled line by line."""
    longest = max(map(len, numbers), default=0)
    cells = [f"  {name:<{longest}} {_number(value):>{_NUMBER_WIDTH}}" for name, value in numbers.items()]
    n_columns = max(1, width // (longest + _NUMBER_WIDTH + 3))
    return ["".join(cells[start : start + n_columns]) for start in range(0, len(cells), n_columns)]


def _number(value: float) -> str:
    """Formats a number with four digits, or three if a sign and an exponent need the room."""
    text = significant(value)
    return text if len(text) <= _NUMBER_WIDTH else f"{value:.3g}"


def _width(stream: TextIO) -> int:
    """Returns the width of the terminal of `stream` in characters; if it is no terminal, COLUMNS or 80."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # not a terminal, or not a file at all
        return shutil.get_terminal_size().columns


def _bar(n_steps: int, stream: TextIO) -> Any:
    """Returns a tqdm bar; None if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None

    class Bar(tqdm):  # type: ignore[misc]
        """tqdm without its monitor thread and multiprocessing lock, so that a runner leaves nothing behind."""

        monitor_interval = 0

    Bar.set_lock(threading.RLock())
    return Bar(total=n_steps, unit=" steps", unit_scale=True, file=stream, dynamic_ncols=True)
