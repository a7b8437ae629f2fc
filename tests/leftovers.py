"""Finds what a test left behind (processes, threads, names of shared memory, descriptors), and waits for its end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import psutil

__all__ = ["DEADLINE", "Leftovers", "all_gone", "descriptors", "other_processes", "until"]

#: Seconds for what takes one, or none, on a machine that has no other work. It costs nothing where all is well.
DEADLINE = 180.0
_GRACE = 10.0  # seconds for what is on its way out when a test ends
_SHARED_MEMORY = Path("/dev/shm")


def until(condition: Callable[[], object], seconds: float = DEADLINE) -> bool:
    """Waits until a condition is true; returns False if it does not become true before the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def all_gone(processes: Iterable[psutil.Process], seconds: float = DEADLINE) -> bool:
    """Waits until processes have ended, even if another process must reap them; kills those that do not end."""
    alive = [*processes]

    def ended() -> bool:
        alive[:] = [process for process in alive if _lives(process)]
        return not alive

    if until(ended, seconds):
        return True
    _kill(alive)
    return False


def other_processes() -> set[int]:
    """Returns descendants of this process, except the fork server and the resource tracker, which Python keeps."""
    return {process.pid for process in _family()}


def descriptors() -> set[tuple[int, str]]:
    """Returns the open descriptors of this process with their targets, except those of Python's helper processes.

    Collects garbage first. Compare with `<=`, because descriptors that an earlier test left may close in the meantime.
    """
    gc.collect()
    python = {
        getattr(resource_tracker._resource_tracker, "_fd", None),
        getattr(forkserver._forkserver, "_forkserver_alive_fd", None),
    }
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of the listing itself
            target = os.readlink(f"/proc/self/fd/{name}")
            if int(name) not in python and target != "/dev/urandom":
                found.add((int(name), target))
    return found


@dataclass
class Leftovers:
    """Records what exists now; `new` returns what was added since and remains."""

    processes: set[int] = field(default_factory=lambda: other_processes())
    threads: set[threading.Thread] = field(default_factory=lambda: set(threading.enumerate()))
    names: set[Path] = field(default_factory=lambda: set(_SHARED_MEMORY.iterdir()))

    def new(self) -> list[str]:
        """Describes what was added and did not go away within the grace period; then removes processes and names."""
        until(lambda: not any(self._found()), _GRACE)
        processes, threads, names = self._found()
        words = [_described(process) for process in processes]
        words += [f"thread {thread.name}" for thread in threads]
        words += [str(name) for name in names]
        _kill(processes)
        for name in names:
            name.unlink(missing_ok=True)
        return words

    def _found(self) -> tuple[list[psutil.Process], list[threading.Thread], list[Path]]:
        multiprocessing.active_children()  # reaps
        processes = [process for process in _family() if process.pid not in self.processes]
        threads = [thread for thread in threading.enumerate() if thread not in self.threads]
        # Semaphores of multiprocessing, of which the library makes none, come and go with other programs.
        made = [name for name in _SHARED_MEMORY.iterdir() if not name.name.startswith("sem.mp-")]
        names = [name for name in made if name not in self.names]
        return processes, threads, [name for name in names if not _is_of_others(name)] if names else []


def _family() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in _descendants():
        with suppress(psutil.NoSuchProcess):
            if not _is_pythons_own(child):
                found.append(child)
    return found


def _descendants() -> list[psutil.Process]:
    """Returns descendants, by asking Linux for the children of each; psutil would look through all processes."""
    if not Path(f"/proc/self/task/{threading.get_native_id()}/children").exists():
        return psutil.Process().children(recursive=True)
    found: list[psutil.Process] = []
    left = [os.getpid()]
    while left:
        for thread in Path(f"/proc/{left.pop()}/task").glob("*/children"):
            with suppress(OSError, psutil.NoSuchProcess):  # of what ended meanwhile
                for pid in map(int, thread.read_text().split()):
                    found.append(psutil.Process(pid))
                    if found[-1].name() != "raylet":  # Ray keeps workers for later, and ends them with it
                        left.append(pid)
    return found


def _is_pythons_own(child: psutil.Process) -> bool:
    try:
        command = " ".join(child.cmdline())
    except psutil.Error:
        return False
    own_server = "multiprocessing.forkserver" in command and child.ppid() == os.getpid()
    return own_server or "multiprocessing.resource_tracker" in command


def _is_of_others(name: Path) -> bool:
    """Returns whether a name in shared memory is gone, or in use by a program that is not related to this one."""
    own = {os.getpid(), *other_processes()}
    for pid in psutil.pids():
        if pid in own:
            continue
        with suppress(OSError):
            if str(name) in Path(f"/proc/{pid}/maps").read_text():
                return True
    return not name.exists()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _described(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"process {process.pid}: {process.name()} ({process.status()}) {' '.join(process.cmdline())}"
    return f"process {process.pid}"


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    multiprocessing.active_children()
