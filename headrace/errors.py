"""All exceptions that headrace raises on purpose.

::

    SamplerError                  a sampler ended; the message says which part failed, where, and what to do
    ├── EnvFailed                 an environment's own code raised
    ├── AgentFailed               an agent's own code raised
    ├── SinkFailed                the receiver of an asynchronous sampler's batches raised
    ├── EnvContractError          an environment returned something that Gymnasium does not allow
    ├── WorkerCrashed             a worker process died: a signal, or an exit code
    ├── WorkerHung                a worker process made no progress for `timeout` seconds
    ├── WorkerFailed              the code of a worker of `headrace.system` raised
    ├── NotEnoughMemory           a batch does not fit (also a MemoryError)
    └── SamplerClosed             a call after shutdown() or after an error
    CheckpointError               a checkpoint is not headrace's, damaged or of another run; or its folder is in use
    StreamError                   a stream failed; the message says which one and what to do
    ├── FrameRejected             a message is damaged, too large, or not what the stream transports (also a ValueError)
    ├── NothingToConsume          no sample has arrived
    ├── StreamClosed              a call after close()
    └── StreamTimeout             the other side did not do its part in time (also a TimeoutError)
    NameEntryError                a name service refused
    ├── NameEntryExistsError      the name is taken
    ├── NameEntryNotFoundError    the name has no value
    └── NameLost                  a name that was this repository's is not any more
    ParameterDBError              a parameter database has no such version, or what it has is damaged

Wrong arguments raise plain `TypeError` and `ValueError` that name the argument.

Failures in other processes are transferred as text (`traceback_text`), never as pickled exceptions: an exception that
cannot be pickled, or whose constructor takes other arguments, must not hide the failure that it reports.
"""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass

__all__ = [
    "NO_DESCRIPTORS",
    "AgentFailed",
    "CheckpointError",
    "EnvContractError",
    "EnvFailed",
    "FrameRejected",
    "NameEntryError",
    "NameEntryExistsError",
    "NameEntryNotFoundError",
    "NameLost",
    "NotEnoughMemory",
    "NothingToConsume",
    "ParameterDBError",
    "SamplerClosed",
    "SamplerError",
    "SinkFailed",
    "StreamClosed",
    "StreamError",
    "StreamTimeout",
    "Where",
    "WorkerCrashed",
    "WorkerFailed",
    "WorkerHung",
    "headline",
    "one_line",
    "shortened",
    "traceback_of",
]

#: Error numbers for a process, or a machine, that has no file descriptors left.
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True)
class Where:
    """The place of a failure; a field is None if it does not apply.

    Args:
        worker: number of the worker.
        pid: process id.
        env_id: global number of the environment.
        phase: what the process was doing.
        step: row of the current batch, or step of the current phase, from 0.
    """

    worker: int | None = None
    pid: int | None = None
    env_id: int | None = None
    phase: str | None = None
    step: int | None = None

    def __str__(self) -> str:
        parts = [
            f"worker {self.worker}" if self.worker is not None else "this process" if self.pid is None else "",
            f"pid {self.pid}" if self.pid is not None else "",
            f"env {self.env_id}" if self.env_id is not None else "",
            self.phase or "",
            f"step {self.step}" if self.step is not None else "",
        ]
        return ", ".join(part for part in parts if part)


class SamplerError(RuntimeError):
    """Raised when a sampler ended because of an error.

    Args:
        message: what happened and what to do.
        where: process, environment and phase of the failure.
        traceback_text: traceback of the user's code.
    """

    def __init__(self, message: str, where: Where | None = None, traceback_text: str = "") -> None:
        super().__init__(message, where, traceback_text)
        self.message = message
        self.where = where
        self.traceback_text = traceback_text

    def at(self, where: Where) -> SamplerError:
        """Returns the same error with this place."""
        return type(self)(self.message, where, self.traceback_text)

    def __str__(self) -> str:
        text = self.message
        if self.where is not None:
            text += f"\n  at: {self.where}"
        if self.traceback_text and self.__cause__ is None:  # Python prints a cause's traceback itself
            text += "\n  its traceback:\n" + "\n".join(
                "  | " + line for line in self.traceback_text.rstrip().split("\n")
            )
        return text


class EnvFailed(SamplerError):
    """Raised if an environment raised in its constructor, `reset`, `step` or `close`."""


class AgentFailed(SamplerError):
    """Raised if an agent raised while it was choosing actions."""


class SinkFailed(SamplerError):
    """Raised if the receiver of a sampler's batches raised, e.g. a replay that cannot store a batch."""


class EnvContractError(SamplerError):
    """Raised if an environment returned something that its spaces or the Gymnasium API do not allow."""


class WorkerCrashed(SamplerError):
    """Raised if a worker process died: it was killed by a signal, or it exited."""


class WorkerHung(SamplerError):
    """Raised if a worker process made no progress for the sampler's `timeout`."""


class WorkerFailed(SamplerError):
    """Raised if the code of a worker of `headrace.system` raised; it names the worker and what it was doing."""


class NotEnoughMemory(SamplerError, MemoryError):
    """Raised if a batch needs more memory than the machine, or its memory limit, has left."""


class SamplerClosed(SamplerError):
    """Raised if the sampler was shut down or closed by an earlier error, which is then the cause."""


class CheckpointError(RuntimeError):
    """Raised if a file is no checkpoint of headrace, damaged, or of another run, or if its folder is in use."""


class StreamError(RuntimeError):
    """Raised if a stream failed."""


class FrameRejected(StreamError, ValueError):
    """Raised if a message is damaged, exceeds the limits, or is not what the stream transports."""


class NothingToConsume(StreamError):
    """Raised if no sample has arrived, or too few for a batch."""


class StreamClosed(StreamError):
    """Raised by a call after `close()`."""


class StreamTimeout(StreamError, TimeoutError):
    """Raised if the other side of a stream did not do its part in time."""


class NameEntryError(RuntimeError):
    """Raised if a name service refused."""


class NameEntryExistsError(NameEntryError):
    """Raised if a name that is to be added has a value already."""


class NameEntryNotFoundError(NameEntryError):
    """Raised if a name has no value, or none any more."""


class NameLost(NameEntryError):
    """Raised to the owner of a name that was deleted, or that another has taken after it had expired."""


class ParameterDBError(RuntimeError):
    """Raised if a parameter database has no such name, version or tag, or if what it has is damaged."""


def headline(error: BaseException) -> str:
    """Returns `ValueError: message`, even if the exception's own `__str__` raises."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"(its message could not be formatted: {type(broken).__name__})"
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
        text += " (no file descriptors are left; raise the limit, `ulimit -n`)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(error: BaseException) -> str:
    """Returns the headline as one line of at most 300 characters, because torch's messages have many lines."""
    return " ".join(headline(error).split())[:300]


def shortened(error: BaseException) -> BaseException:
    """Returns the error to raise from a public call in place of `error`.

    Ctrl-C loses the frames below the call, because a user who stops a program needs no long traceback. A SamplerError
    without a cause loses them too: it happened in another process, whose traceback is in its text. "Too many open
    files" becomes a SamplerError. Other errors are returned unchanged.
    """
    if isinstance(error, SamplerError) and error.__cause__ is None:
        return error.with_traceback(None)
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
        return SamplerError(headline(error))
    return KeyboardInterrupt() if isinstance(error, KeyboardInterrupt) else error


def traceback_of(error: BaseException) -> str:
    """Returns the traceback of `error` as text, even if its `__str__` raises."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__)) + headline(error)
