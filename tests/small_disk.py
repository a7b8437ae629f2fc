"""A disk of a few kilobytes, which fills up as any disk does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.leftovers import DEADLINE

__all__ = ["fill", "on_small_disk"]

_NEW_MOUNTS = 0x00020000
_PRIVATE, _RECURSIVE = 1 << 18, 1 << 14
_NOT_ALLOWED = 77


def on_small_disk(folder: Path, n_bytes: int, act: Callable[[], None]) -> None:
    """Runs a function in a forked process for which `folder` is a disk of its own; skips the test if that is forbidden.

    The disk is in memory, and ends with the process, which alone sees it.
    """
    folder.mkdir(exist_ok=True)

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if (
            libc.unshare(_NEW_MOUNTS) != 0
            or libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None) != 0
            or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={n_bytes}".encode()) != 0
        ):
            os._exit(_NOT_ALLOWED)
        act()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(DEADLINE)
    code = process.exitcode
    process.kill()
    process.join(DEADLINE)
    if code == _NOT_ALLOWED:
        pytest.skip("mounts a file system, which root alone may do")
    assert code == 0


def fill(path: Path) -> None:
    """Writes a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
