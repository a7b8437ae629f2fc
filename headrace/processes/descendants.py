"""What descends from a worker: programs that its environments started, and what these started."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

import psutil

__all__ = ["end", "lead", "wait"]

_PR_SET_CHILD_SUBREAPER = 36
_GONE = 1.0  # seconds a process that was killed may take to disappear


def lead() -> None:
    """Makes this process the head of a process group, which can be killed as a whole, and adopts what its descendants
    leave behind: a program that put itself into the background has another group, and is found as a child.
    """
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wait(seconds: float) -> None:
    """Gives children so much time to end by themselves."""
    psutil.wait_procs(psutil.Process().children(), timeout=seconds)


def end() -> None:
    """Kills all of them."""
    while _has_children():
        children = psutil.Process().children(recursive=True)
        for process in children:
            with suppress(psutil.Error):  # it ended by itself
                process.kill()
        if psutil.wait_procs(children, timeout=_GONE)[1]:
            return  # the kernel holds it: there is nothing more to do


def _has_children() -> bool:
    """Whether there is anything to do: to look through all processes takes milliseconds."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
