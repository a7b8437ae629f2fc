"""Anonymous shared memory, the amount of available memory, and memory ordering between processes.

Shared memory is anonymous (`memfd_create`, or an unlinked temporary file where that is missing), so a crash leaves no
name behind and the size of `/dev/shm`, which containers may limit, does not matter.
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

__all__ = ["WEAKLY_ORDERED", "anonymous_file", "available_memory", "fence", "make_private"]

_NAME = "headrace"  # name of the memory in the memory maps of a process
_MAP_FIXED = 0x10

#: Whether stores may be reordered with stores, and loads with loads; x86 only reorders a store with a later load.
WEAKLY_ORDERED = platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686")


def fence(lock: threading.Lock) -> None:
    """Prevents any load or store after the call from being reordered with one before it; takes 60 ns.

    Acquiring a lock is an atomic exchange, which is a full fence on x86. On other machines, taking a lock acquires and
    leaving it releases, and only a release followed by an acquire orders a store before a load: hence twice.

    Args:
        lock: any lock that is not held.
    """
    with lock:
        pass
    if WEAKLY_ORDERED:
        with lock:
            pass


def anonymous_file(nbytes: int) -> int:
    """Returns a file descriptor of `nbytes` of zeroed memory.

    The memory is reserved immediately, so missing memory is reported here. (`ftruncate` would promise pages that may
    not exist, and the process would die of SIGBUS when it first writes to one.)

    Raises:
        NotEnoughMemory: with the needed and the available memory.
    """
    free = available_memory()
    if nbytes > free:
        raise NotEnoughMemory(
            f"a batch needs {_readable(nbytes)} of shared memory, but only {_readable(free)} are free; "
            "reduce batch_T, batch_B, or the size of observations (dtype, resolution)"
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
            f"the operating system refused {_readable(nbytes)} of shared memory ({error.strerror}); "
            "reduce batch_T, batch_B, or the size of observations (dtype, resolution)"
        ) from error
    return fd


def make_private() -> None:
    """Replaces shared memory by private zeroed memory in a forked process. Linux only.

    This is for child processes that might continue by mistake as if they were their parent. Reading /proc/self/maps
    takes 1 ms.
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
    """Returns the bytes this process may still use: the kernel's `MemAvailable`, or less under a cgroup limit."""
    free = int(psutil.virtual_memory().available)
    for limit, usage in _cgroup_limits():
        free = min(free, limit - usage)
    return max(free, 0)


def _cgroup_limits() -> list[tuple[int, int]]:
    """Returns (limit, usage) of the cgroups, v1 and v2, of this process, without unlimited ones."""
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
    files += [("/sys/fs/cgroup", *files[0][1:])] if files else []  # inside a container, the mount is the group itself
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
