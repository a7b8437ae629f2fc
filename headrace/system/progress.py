"""What a run is doing, in lines of text: while it runs, and for those who look at its folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from headrace.system.controller import Controller, summary

__all__ = ["ProgressLines", "table"]

_INTERVAL = 10.0  # seconds between two lines


class ProgressLines:
    """Prints a line about a run every ten seconds.

    Args:
        file: where to.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._begun = self._printed = time.monotonic()
        self._samples = 0

    def show(self, controller: Controller) -> None:
        """Prints a line, if it is time."""
        now = time.monotonic()
        if now < self._printed + _INTERVAL:
            return
        state = summary(controller)
        samples = sum(worker["samples"] for worker in state["workers"] if worker["name"].startswith("trainer"))
        rate = (samples - self._samples) / (now - self._printed)
        restarts = sum(worker["restarts"] for worker in state["workers"])
        self._printed, self._samples = now, samples
        again = f", {restarts} restarts" if restarts else ""
        self._file.write(
            f"{now - self._begun:6.0f} s  {samples:,} steps learned from, {rate:,.0f} steps/s, {state['episodes']:,} "
            f"episodes, mean return {_shown(state['mean_return'], '.1f')} (last 100){again}\n"
        )
        self._file.flush()


def table(state: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> Sequence[str]:
    """Returns the lines of a table of all workers.

    Args:
        state: see `summary`.
        before: an earlier one, for the rates; None: there is none.
        seconds: between both.
    """
    earlier = {} if before is None else {worker["name"]: worker["samples"] for worker in before["workers"]}
    rows = [("worker", "pid", "state", "steps", "steps/s", "batches", "restarts", "figures")]
    for worker in state["workers"]:
        rate = ""
        if worker["name"] in earlier and seconds > 0:
            rate = f"{(worker['samples'] - earlier[worker['name']]) / seconds:,.0f}"
        figures = ", ".join(f"{name} {_shown(value, '.4g')}" for name, value in worker["figures"].items())
        rows.append(
            (
                worker["name"],
                str(worker["pid"] or ""),
                worker["state"],
                f"{worker['samples']:,}",
                rate,
                f"{worker['batches']:,}",
                str(worker["restarts"]),
                figures,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    mean = f"{state['episodes']:,} episodes, mean return of the last 100: {_shown(state['mean_return'], '.1f')}"
    return [line.rstrip() for line in lines] + ["", mean]


def _shown(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)
