"""`FreshInterpreter`: a newly executed Python, which calls one function with bytes and answers with a line of text.

It is for code that must not run in this process, nor in a copy of it: a forked process shares its sockets, files and
devices, and the processes of multiprocessing run the user's program again. This interpreter shares with its parent only
the import path and a socket for the answer. Its code may read, compute and change its own state, but not what other
processes see: Python refuses it to write files, to connect, and to start or signal processes.

This module imports neither torch nor an environment.
"""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from headrace.memory import anonymous_file
from headrace.processes.child import watch_parent
from headrace.processes.members import EXIT_SECONDS, sigint_blocked

__all__ = ["FreshInterpreter", "main"]

_TICK = 0.05  # seconds between calls of `tick` while waiting
#: The folder that Python puts first for `-c` is removed: a `pickle.py` of the user's would be imported from there.
_PROGRAM = (
    "import sys; sys.path[:] = filter(None, sys.path); import pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from headrace.processes.fresh import main; main()"
)


class FreshInterpreter:
    """Starts the interpreter without waiting for it; use `ended` and `close` later.

    Args:
        function: "module:name" of the function to call there, which takes bytes and returns a line of text.
        argument: its argument.
        seconds: time after which the process ends itself, by SIGALRM.

    Raises:
        OSError: the interpreter cannot be started.
        NotEnoughMemory: there is no memory for the argument.
    """

    #: What the function returned; None before the end, and if the process ended in another way.
    answer: str | None = None

    def __init__(self, function: str, argument: bytes, seconds: float) -> None:
        head = pickle.dumps(sys.path) + pickle.dumps((function, seconds, os.getpid()))
        content = anonymous_file(len(head) + len(argument))  # a pipe would block the writer until it is read
        try:
            for part in (head, argument):
                while part:
                    part = part[os.write(content, part) :]
            os.lseek(content, 0, os.SEEK_SET)
            self._pipe, self._process = _started(content)
        finally:
            os.close(content)
        self._received = b""
        self._close = weakref.finalize(self, _kill, self._process, self._pipe, os.getpid())

    def ended(self, seconds: float, tick: Callable[[], None]) -> bool:
        """Returns whether the process has ended, after waiting for at most `seconds`.

        Args:
            seconds: time to wait.
            tick: called 20 times a second meanwhile.
        """
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while self._close.alive:
            tick()
            left = max(0.0, deadline - time.monotonic())
            gone = self._process.poll() is not None  # before reading the pipe, to which it may have written just before
            if poll.poll(0 if gone else min(_TICK, left) * 1e3):
                said = self._pipe.recv(1 << 16)
                self._received += said
                gone = not said
            if gone:
                self._finish()
            elif not left:
                return False
        return True

    @property
    def exitcode(self) -> int | None:
        """Exit code after the end; negative: the signal that killed it."""
        code: int | None = self._process.returncode
        return code

    def close(self) -> None:
        """Kills the process if it still runs. Safe to call twice.

        It also runs when this object is garbage collected, and when the interpreter exits.
        """
        self._close()

    def _finish(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        if self._received.endswith(b"\n"):
            self.answer = self._received.decode(errors="replace").rstrip("\n")
        self.close()


def _started(content: int) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Returns our end of the answer's socket and the process, which has a group of its own so that Ctrl-C does not
    reach it.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs, sigint_blocked():
            return ours, subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=content,
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
    except BaseException:
        ours.close()
        raise


def _kill(process: subprocess.Popen[bytes], pipe: socket.socket, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child has a copy of this object
    with sigint_blocked():
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        pipe.close()


# ---- in the process ----


def main() -> None:
    """Runs the process: reads everything it needs from standard input and writes its answer to standard output."""
    function, seconds, parent_pid = pickle.load(sys.stdin.buffer)
    argument = sys.stdin.buffer.read()
    answer = os.dup(1)  # not inherited by programs executed from here
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    signal.setitimer(signal.ITIMER_REAL, seconds)  # the kernel's, so that it ends whatever blocks Python
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch_parent(answer, parent_pid)
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    sys.dont_write_bytecode = True
    _refuse_shared_memory()
    sys.addaudithook(_refuse)
    text = " ".join(call(argument).split()) + "\n"
    os.write(answer, text.encode(errors="replace")[-(1 << 15) :])
    os._exit(0)  # no destructors, no exit handlers: they belong to what was copied


#: Python's audit events for actions that would change what other processes see, or reach another process.
_REFUSED = {
    *(f"socket.{name}" for name in ("connect", "bind", "sendto", "sendmsg")),
    *(f"os.{name}" for name in ("chmod", "chown", "link", "mkdir", "remove", "rename", "rmdir", "symlink", "truncate")),
    *(f"os.{name}" for name in ("exec", "fork", "forkpty", "killpg", "posix_spawn", "spawn", "system")),
    *("pty.spawn", "shutil.move", "shutil.rmtree", "subprocess.Popen"),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Raises the errors of a read-only file system and of a machine without network.

    Modules may do these things while they are imported (glfw runs a program to ask for its version): they would do so
    in any process.
    """
    if event == "open":
        path, _, flags = args
        refused = (
            not isinstance(path, int) and bool(flags & _WRITING) and path != os.devnull
        )  # a number is a descriptor that is open already
    elif event in ("os.kill", "os.killpg"):
        refused = args[0] != os.getpid()  # its own group has the same number; `watch_parent` kills that
    else:
        refused = event in _REFUSED or (event == "sqlite3.connect" and args[0] != ":memory:")
    if refused and not _importing():
        raise PermissionError(_REFUSAL.format(event, repr(args[1] if event.startswith("socket.") else args[0])[:100]))


def _importing() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


_REFUSAL = "a copy that is being tested must not affect other processes or files: {} {}"


def _refuse_shared_memory() -> None:
    """Refuses to open shared memory by name, which is not an audit event."""

    def refuse(name: str, flags: int, mode: int = 0o777) -> int:
        raise PermissionError(_REFUSAL.format("shm_open", repr(name)))

    with suppress(ImportError):
        vars(importlib.import_module("_posixshmem"))["shm_open"] = refuse
