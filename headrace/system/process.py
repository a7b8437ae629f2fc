"""The process of a worker: takes commands from the pipe to its controller, and shows its name to the system."""

from __future__ import annotations

import select
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.processes.child import Channel
from headrace.system.worker import Command, Worker, WorkerInformation, WorkerReport

__all__ = ["WorkerStart", "show_name", "worker_process"]


@dataclass(frozen=True)
class WorkerStart:
    """What a worker process is given. information: which one it is; worker: its class; config: for its `_configure`."""

    information: WorkerInformation
    worker: type[Worker]
    config: Any


class ChannelCommands:
    """Commands of the pipe to the process that started this one; see `Commands`.

    Args:
        channel: the pipe.
        start: has the argument of "configure", which does not travel with the command.
    """

    def __init__(self, channel: Channel, start: WorkerStart) -> None:
        self._channel = channel
        self._start = start
        self._poll = select.poll()
        self._poll.register(channel.fd, select.POLLIN | select.POLLHUP)

    def next(self, timeout: float) -> Command | None:
        """See `Commands`."""
        if not self._poll.poll(timeout * 1e3):
            return None
        command: Command | None = self._channel.receive()
        if command is None:
            return Command("exit")
        if command.verb == "configure":
            return Command("configure", (self._start.information, self._start.config))
        return command

    def answer(self, report: WorkerReport) -> None:
        """See `Commands`."""
        self._channel.reply(report)


def worker_process(channel: Channel, start: WorkerStart) -> None:
    """Runs a worker until its controller ends it; the target of `WorkerGroup`.

    Args:
        channel: the pipe to the controller.
        start: which worker.
    """
    show_name(start.information.name)
    worker = start.worker()
    worker.status = channel.status
    worker.run(ChannelCommands(channel, start))
    channel.leave()


def show_name(name: str) -> None:
    """Sets the name that `ps` and `top` show for this process, 15 characters at most; on Linux."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)
