"""Describes how a process died, with the usual cause."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.errors import NO_DESCRIPTORS, SamplerError
from headrace.processes.start_method import UNGUARDED
from headrace.processes.status import Phase

__all__ = ["MACHINE_LEFT", "after_a_fork", "cause_of_actor_death", "cause_of_death", "enough_descriptors"]


#: Why an actor died whose machine is gone.
MACHINE_LEFT = "its machine left the cluster"
_FAULTS = {"SIGABRT", "SIGBUS", "SIGILL", "SIGSEGV", "SIGTRAP"}
_ENVIRONMENT_PHASES = {
    phase.words
    for phase in (
        Phase.CONSTRUCTING,
        Phase.RESETTING,
        Phase.DECORRELATING,
        Phase.STEPPING,
        Phase.EVALUATING,
        Phase.CALLING,
    )
}


def after_a_fork(phase: str | None) -> str:
    """Returns the likely cause if a forked worker ended or hung in a call of an environment; empty for other phases."""
    if phase not in _ENVIRONMENT_PHASES:
        return ""
    return (
        "; OpenGL, JAX and other libraries that this program has already used may not work after a fork: they need "
        'start_method="forkserver" (command line: --start-method forkserver)'
    )


def cause_of_death(exitcode: int | None, who: str, phase: str | None, ended: bool, forked: bool = False) -> str:
    """Returns the message for a process that ended.

    Args:
        exitcode: its exit code; negative: a signal; None: unknown, or the process still runs.
        who: its name.
        phase: what it was doing.
        ended: whether it ended.
        forked: whether it was forked from this process.
    """
    fork = after_a_fork(phase) if forked else ""
    if exitcode is None and ended:
        return (
            f"{who} ended with an unknown exit code: this program ignores SIGCHLD or waits for all of its children, "
            "which discards their exit codes"
        )
    if exitcode is None:
        return f"{who} closed its pipe but still runs; its environment may have closed file descriptors"
    if exitcode < 0:
        name = signal.Signals(-exitcode).name
        usual = {
            "SIGKILL": "; often the kernel's out-of-memory killer (see dmesg)",
            "SIGSEGV": "; a crash in compiled code of the environment or its libraries",
            "SIGBUS": "; often a full /dev/shm or a truncated memory-mapped file",
            "SIGABRT": "; an assertion in compiled code of the environment or its libraries",
        }.get(name, "")
        if name == "SIGABRT" and phase == Phase.EXCHANGING.words:
            usual = "; often because the ranks did not take the same number of updates"
        return f"{who} was killed by {name}{usual}{fork if name in _FAULTS else ''}"
    if phase == Phase.STARTING.words:
        return _not_started(exitcode, who)
    return f"{who} ended with exit code {exitcode}; the environment may have called exit(){fork}"


def cause_of_actor_death(error: BaseException) -> str:
    """Returns why a Ray actor died, in one sentence. error: what Ray raised for a call of the actor."""
    text = " ".join(str(error).split())
    if "creation task" in text:  # the last line has the exception
        return f"it could not be made: {str(error).strip().splitlines()[-1].strip()[:300]}"
    if "killed by `ray.kill`" in text:
        return "it was killed with ray.kill()"
    if "node" in text.lower() and ("node was terminated" in text or "node died" in text or "node has died" in text):
        return MACHINE_LEFT
    if type(error).__name__ == "ActorUnavailableError":
        return "Ray lost the connection to it, so its machine or its process may be gone"
    if type(error).__name__ == "OutOfMemoryError" or "memory on the node" in text:
        return "Ray killed it because its machine had no memory left"
    if "worker process has died" in text:
        return (
            "its process ended: killed by a signal (often by the kernel's out-of-memory killer, see dmesg there), by a "
            "crash in compiled code, or the environment called exit()"
        )
    return text[:300]


def _not_started(exitcode: int, who: str) -> str:
    """Returns the message for a process that ended while it imported the program."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    why = f'with start_method "spawn" or "forkserver", a worker first imports the program, {program}'
    if program is not None and not os.path.exists(program):
        return (
            f"{who} ended with exit code {exitcode} while starting: {why}, which is not a file; save the program to a "
            'file, or use start_method="fork"'
        )
    if exitcode == UNGUARDED:
        return (
            f"{who} did not start: {why}, and on import this program makes a sampler itself; put what it does under "
            '`if __name__ == "__main__":`'
        )
    return (
        f"{who} ended with exit code {exitcode} while starting: {why}, and that failed there, with the error above; "
        'what only the program itself should do must be under `if __name__ == "__main__":`'
    )


@contextmanager
def enough_descriptors(n_workers: int) -> Iterator[None]:
    """Turns running out of file descriptors in the block into an error that names the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_DESCRIPTORS:
            raise
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise SamplerError(
            f"no file descriptors are left: the limit is {limit}, and {n_workers} workers need up to five each, "
            "besides those that this process has open; raise the limit (`ulimit -n`) or start fewer workers"
        ) from error
