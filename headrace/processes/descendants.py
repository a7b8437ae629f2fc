"""The descendants of a worker: programs that its environments started, and programs started by those."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

import psutil

__all__ = ["end", "lead", "wait"]

_PR_SET_CHILD_SUBREAPER = 36
_EXIT_SECONDS = 1.0  # seconds that a killed process may take to disappear


def lead() -> None:
    """Makes this process the leader of a process group, which can be killed as a whole, and the reaper of its orphaned
    descendants.

    A program that became a daemon has left the group, and is then found as a child of this process.
    """
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wait(seconds: float) -> None:
    """Waits for at most `seconds` for the children to end by themselves."""
    psutil.wait_procs(psutil.Process().children(), timeout=seconds)


def end() -> None:
    """Kills all descendants."""
    while _has_children():
        children = psutil.Process().children(recursive=True)
        for process in children:
            with suppress(psutil.Error):  # it ended by itself
                process.kill()
        if psutil.wait_procs(children, timeout=_EXIT_SECONDS)[1]:
            return  # the kernel holds it: there is nothing more to do


def _has_children() -> bool:
    """Returns whether there are children: looking through all processes takes milliseconds."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
