"""Workers for the tests of controllers; this module loads no torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.system.worker import PollResult, Worker


@dataclass(frozen=True)
class Plan:
    """What a `Planned` worker does. Each field names a phase, "configure", "poll", "pause" or "exit", or nothing.

    folder: where it appends its phases to a file of its name; polls: after how many it completes, None: never; fail,
    die, hang: the phase in which it raises, kills itself, or does not come back; lives: how many of its processes do
    so, None: all; well: seconds that it works before.
    """

    folder: Path
    polls: int | None = None
    fail: str = ""
    die: str = ""
    hang: str = ""
    lives: int | None = None
    well: float = 0.0


class Planned(Worker):
    """Does what its plan says, and writes down what it was told."""

    def _configure(self, config: Plan) -> None:
        self._plan = config
        self._begun = time.monotonic()
        self._process = self._written("process")
        self._enter("configure")
        self._polls = 0

    def _poll(self) -> PollResult:
        plan = self._plan
        if not self._polls:
            self._written("poll")
        self._polls += 1
        if time.monotonic() >= self._begun + plan.well:
            self._enter("poll", write=False)
        if plan.polls is not None and self._polls >= plan.polls:
            self.complete()
        time.sleep(0.002)
        return PollResult(sample_count=2, batch_count=1)

    def _pause(self) -> None:
        self._enter("pause")

    def _exit(self) -> None:
        self._enter("exit")

    def _figures(self) -> Mapping[str, float]:
        return {"polls": float(getattr(self, "_polls", 0))}

    def _enter(self, phase: str, write: bool = True) -> None:
        plan = self._plan
        if write:
            self._written(phase)
        if plan.lives is not None and self._process > plan.lives:
            return
        if phase == plan.fail:
            raise ValueError(f"as planned, in {phase}")
        if phase == plan.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if phase == plan.hang:
            time.sleep(600)

    def _written(self, phase: str) -> int:
        """Appends a phase to this worker's file; returns how often it is there."""
        path = self._plan.folder / self.information.name
        with path.open("a") as file:
            file.write(phase + "\n")
        return path.read_text().split().count(phase)


class Listening:
    """Commands from a list, for a worker in this process; see `Commands`. A callable is called at its turn."""

    def __init__(self, commands: list[Any]) -> None:
        self.commands = commands
        self.reports: list[Any] = []

    def next(self, timeout: float) -> Any:
        if not self.commands:
            time.sleep(timeout)
            return None
        command = self.commands.pop(0)
        return command() if callable(command) else command

    def answer(self, report: Any) -> None:
        self.reports.append(report)
