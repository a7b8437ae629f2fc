"""The Ray actor that a worker runs in, and how messages travel: as the bytes of a pickle and its large arrays.

This module imports neither Ray nor torch: Ray starts the process, and the worker's prologue is the first to import
torch.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import sys
import threading
import traceback
from typing import Any

import numpy as np

from headrace.processes import descendants
from headrace.processes.child import Channel, Failure
from headrace.processes.status import Status

__all__ = ["Actor", "Parcel", "nbytes", "packed", "unpacked"]

#: The bytes of a pickled message, and the bytes of its large arrays, which Ray passes on in shared memory.
Parcel = tuple[bytes, list[np.ndarray]]

_LARGE = 16 * 2**10  # bytes from which an array travels beside the pickle; smaller ones are copied into it
_TICK = 1.0  # seconds between two looks at a worker that has not replied


def packed(message: Any) -> Parcel:
    """Returns the message as a parcel, which refers to the message's large arrays; raises what pickling raises."""
    arrays: list[np.ndarray] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _LARGE:
            return True  # part of the pickle
        arrays.append(np.frombuffer(raw, np.uint8))
        return False

    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL, buffer_callback=keep), arrays


def unpacked(parcel: Parcel) -> Any:
    """Returns the message of a parcel; its large arrays are views of the parcel's. Raises what unpickling raises."""
    data, arrays = parcel
    return pickle.loads(data, buffers=arrays)


def nbytes(parcel: Parcel) -> int:
    """Returns the size of a parcel in bytes."""
    data, arrays = parcel
    return len(data) + sum(array.nbytes for array in arrays)


class ActorChannel(Channel):
    """A worker's end of its connection to the `RayGroup`; it replaces everything of `Channel` that uses a pipe."""

    def __init__(self, restarts: int) -> None:
        self.status = Status()
        self.restarts = restarts
        self._commands: queue.SimpleQueue[Parcel] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Parcel] = queue.SimpleQueue()

    def receive(self) -> Any:
        """Returns the next command; None means close and exit. An idle worker waits for as long as its actor lives."""
        while True:
            try:
                return unpacked(self._commands.get(timeout=_TICK))
            except queue.Empty:
                continue

    def receive_fd(self) -> int:
        """Raises TypeError: descriptors do not leave a machine."""
        raise TypeError("a worker in a Ray actor cannot be sent a descriptor; send it arrays")

    def reply(self, message: Any) -> None:
        """Replies to a command. Raises what pickling raises; nothing is sent then.

        Ray copies the arrays of the message later, so a worker must not write into them before its next command.
        """
        self._replies.put(packed(message))

    def leave(self) -> None:
        """Replies to the command to exit."""
        self.reply(None)

    def fail(self, error: BaseException) -> None:
        """Reports the error that ends this worker."""
        self.reply(Failure.of(error, self.status))

    def give(self, command: Parcel) -> None:
        """Passes a command to the worker."""
        self._commands.put(command)

    def taken(self, seconds: float) -> Parcel:
        """Returns the worker's reply; raises queue.Empty if there is none within `seconds`."""
        return self._replies.get(timeout=seconds)


class Actor:
    """Runs one worker in a thread of its own, so that the actor can say at any time what the worker is doing.

    Ray calls its methods from several threads: `start`, then `command` after command, and the others beside them.

    Args:
        rank: number of the worker.
        restarts: how many actors this worker had before.
    """

    def __init__(self, rank: int, restarts: int) -> None:
        self._rank = rank
        self._channel = ActorChannel(restarts)
        self._thread: threading.Thread | None = None

    def hello(self) -> tuple[int, str]:
        """Returns the PID of this process and the name of its machine."""
        return os.getpid(), socket.gethostname()

    def start(self, parts: tuple[bytes, bytes]) -> Parcel:
        """Starts the worker; returns its first reply.

        Args:
            parts: `(target, prologue)` and the argument of the target, pickled: the argument may need torch.
        """
        self._thread = threading.Thread(target=self._run, args=parts, name="headrace-worker", daemon=True)
        self._thread.start()
        return self._reply()

    def command(self, parcel: Parcel) -> Parcel:
        """Makes the worker execute a command; returns its reply."""
        self._channel.give(parcel)
        return self._reply()

    def look(self) -> bytes:
        """Returns the worker's status line."""
        return bytes(self._channel.status.line)

    def stack(self) -> str:
        """Returns the stack of the worker's thread."""
        frame = None if self._thread is None else sys._current_frames().get(self._thread.ident or 0)
        return "" if frame is None else "".join(traceback.format_stack(frame))

    def _reply(self) -> Parcel:
        while True:
            try:
                return self._channel.taken(_TICK)
            except queue.Empty:
                if self._thread is None or not self._thread.is_alive():
                    return packed(Failure("SamplerError", "the worker has ended", self._channel.status.where(), ""))

    def _run(self, target_and_prologue: bytes, argument: bytes) -> None:
        """The thread of the worker; does what `child_main` does in a process of its own."""
        try:
            target, prologue = pickle.loads(target_and_prologue)
            prologue(self._rank)
            target(self._channel, pickle.loads(argument))
        except BaseException as error:
            self._channel.fail(error)
        finally:
            descendants.end()
