"""Anonymous shared memory, how much memory there is, and the order in which other processes see it written.

Anonymous (`memfd_create`, or an unlinked temporary file where there is none), so a crash leaves no name behind, and
`/dev/shm` may be as small as a container makes it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
import tempfile
import threading
from pathlib import Path

import psutil

from headrace.errors import NotEnoughMemory

__all__ = ["WEAKLY_ORDERED", "anonymous_file", "available_memory", "fence", "keep_to_itself"]

_NAME = "headrace"  # of our memory, in lists of what a process has
_MAP_FIXED = 0x10

#: Where stores may pass each other, and loads; on x86 only a store may pass a load behind it.
WEAKLY_ORDERED = platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686")


def fence(lock: threading.Lock) -> None:
    """No load or store behind it comes before one ahead of it; 60 ns. lock: any that nobody holds.

    A lock is an atomic exchange, which is a full fence on x86. Elsewhere taking it acquires and leaving it releases,
    and only a release followed by an acquire keeps the order of store and load: hence twice.
    """
    with lock:
        pass
    if WEAKLY_ORDERED:
        with lock:
            pass


def anonymous_file(nbytes: int) -> int:
    """A descriptor of `nbytes` of zeroed memory, reserved now: a machine without memory says so here.

    Raises NotEnoughMemory, with what is needed and what is free. (`ftruncate` would promise pages that may not exist,
    and a process would die of SIGBUS at its first write.)
    """
    free = available_memory()
    if nbytes > free:
        raise NotEnoughMemory(
            f"a batch needs {_readable(nbytes)} of shared memory and {_readable(free)} are free; "
            "make batch_T or batch_B smaller, or the observations (dtype, resolution)"
        )
    linux = sys.platform == "linux"
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC) if linux else _temporary_file()
    try:
        if linux and nbytes:
            os.posix_fallocate(fd, 0, nbytes)
        elif nbytes:
            os.ftruncate(fd, nbytes)
    except OSError as error:
        os.close(fd)
        raise NotEnoughMemory(
            f"the system refused {_readable(nbytes)} of shared memory ({error.strerror}); "
            "make batch_T or batch_B smaller, or the observations (dtype, resolution)"
        ) from error
    return fd


def keep_to_itself() -> None:
    """In a process that was forked: memory shared with others is zeroed memory of its own from now on. Linux only.

    For who may run on by mistake as if it were the one it was forked from. It costs a look at /proc/self/maps, 1 ms.
    """
    if sys.platform != "linux":
        return
    replace = ctypes.CDLL(None).mmap
    replace.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f"/memfd:{_NAME}" in line:
            begin, end = (int(address, 16) for address in line.split()[0].split("-"))
            replace(begin, end - begin, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)


def available_memory() -> int:
    """Bytes this process may still use: the kernel's `MemAvailable`, or what a cgroup limit leaves, if less."""
    free = int(psutil.virtual_memory().available)
    for limit, usage in _cgroup_limits():
        free = min(free, limit - usage)
    return max(free, 0)


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, usage) of the cgroups this process is in, both versions; unlimited ones are left out."""
    try:
        lines = Path("/proc/self/cgroup").read_text().split()
    except OSError:
        return []
    groups = [line.split(":", 2) for line in lines]
    files = [("/sys/fs/cgroup" + path, "memory.max", "memory.current") for _, name, path in groups if not name]
    files += [
        ("/sys/fs/cgroup/memory" + path, "memory.limit_in_bytes", "memory.usage_in_bytes")
        for _, name, path in groups
        if "memory" in name.split(",")
    ]
    files += [("/sys/fs/cgroup", *files[0][1:])] if files else []  # inside a container the mount is the group itself
    found = []
    for folder, limit_name, usage_name in files:
        try:
            limit = Path(folder, limit_name).read_text().strip()
            if limit != "max":
                found.append((int(limit), int(Path(folder, usage_name).read_text())))
        except (OSError, ValueError):
            continue
    return found


def _temporary_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _readable(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**28 else f"{nbytes / 2**20:.1f} MiB"
