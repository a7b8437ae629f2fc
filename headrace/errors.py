"""Every exception headrace raises on purpose.

::

    SamplerError                  a sampler ended; the message says who, where and what to do
    ├── EnvFailed                 an environment's own code raised
    ├── AgentFailed               an agent's own code raised
    ├── SinkFailed                what takes the batches of an asynchronous sampler raised
    ├── EnvContractError          an environment answered with something Gymnasium does not allow
    ├── WorkerCrashed             a worker process died: a signal, or an exit code
    ├── WorkerHung                a worker process made no progress for `timeout` seconds
    ├── NotEnoughMemory           a batch does not fit (also a MemoryError)
    └── SamplerClosed             a call after shutdown() or after an error
    CheckpointError               a checkpoint is not ours, not whole, or not of this run; or a run's folder is in use

Wrong arguments are plain `TypeError` and `ValueError` that name the argument.

What happened in another process arrives as text (`traceback_text`), never as a pickled exception: an exception that
cannot be pickled, or whose constructor wants other arguments, must not hide the failure it reports.
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
    "NotEnoughMemory",
    "SamplerClosed",
    "SamplerError",
    "SinkFailed",
    "Where",
    "WorkerCrashed",
    "WorkerHung",
    "headline",
    "one_line",
    "shortened",
    "traceback_of",
]

#: What the system says when this process, or the machine, has no file descriptors left.
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True)
class Where:
    """The place of a failure; a field is None where it does not apply.

    `step` counts rows of the current batch (or steps of the current phase), from 0.
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
    """A sampler ended. `where`: in which process, environment and phase; `traceback_text`: the user code's own."""

    def __init__(self, message: str, where: Where | None = None, traceback_text: str = "") -> None:
        super().__init__(message, where, traceback_text)
        self.message = message
        self.where = where
        self.traceback_text = traceback_text

    def at(self, where: Where) -> SamplerError:
        """The same error, placed."""
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
    """An environment raised in its constructor, `reset`, `step` or `close`."""


class AgentFailed(SamplerError):
    """An agent raised while it was choosing actions."""


class SinkFailed(SamplerError):
    """What a sampler process gives its batches to raised: a replay, for what it cannot store."""


class EnvContractError(SamplerError):
    """An environment returned something its spaces or the Gymnasium API do not allow."""


class WorkerCrashed(SamplerError):
    """A worker process died: killed by a signal, or left with an exit code."""


class WorkerHung(SamplerError):
    """A worker process made no progress for the sampler's `timeout`."""


class NotEnoughMemory(SamplerError, MemoryError):
    """A batch needs more memory than the machine, or its memory limit, has left."""


class SamplerClosed(SamplerError):
    """The sampler was shut down, or an earlier error closed it; that error is the cause."""


class CheckpointError(RuntimeError):
    """A file is not a checkpoint written by headrace, not whole, or not of this run; or its folder is in use."""


def headline(error: BaseException) -> str:
    """`ValueError: what it said`, even if the exception's own `__str__` is broken."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"(its message could not be formatted: {type(broken).__name__})"
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
        text += " (no file descriptors are left: raise the limit, `ulimit -n`)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(error: BaseException) -> str:
    """The headline in a single line of at most 300 characters: errors of torch have many."""
    return " ".join(headline(error).split())[:300]


def shortened(error: BaseException) -> BaseException:
    """Ctrl-C without the frames below the public call: a person who stops a program wants no page of traceback. And
    too many open files, as one of our errors.
    """
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
        return SamplerError(headline(error))
    return KeyboardInterrupt() if isinstance(error, KeyboardInterrupt) else error


def traceback_of(error: BaseException) -> str:
    """The traceback of `error` as text, even if its own `__str__` is broken."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__)) + headline(error)
