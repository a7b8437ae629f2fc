"""The arena: one anonymous piece of shared memory that holds every array of a batch.

One descriptor whatever the number of arrays, no name that a crash could leave behind.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from headrace.errors import NotEnoughMemory
from headrace.memory import anonymous_file

__all__ = ["Allocate", "Arena", "measure", "shared"]

#: Makes an array of a shape and dtype.
Allocate = Callable[[tuple[int, ...], "np.dtype[Any]"], np.ndarray]

_ALIGNMENT = 64
_Built = TypeVar("_Built")


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of one array, rounded up so that the next one starts on a cache line."""
    return math.ceil(math.prod(shape) * dtype.itemsize / _ALIGNMENT) * _ALIGNMENT


def measure(build: Callable[[Allocate], object]) -> int:
    """The bytes an arena needs for what `build(allocate)` allocates. Nothing is reserved."""
    total = 0

    def count(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        nonlocal total
        total += _nbytes(shape, dtype)
        return np.broadcast_to(np.zeros((), dtype), shape)

    build(count)
    return total


class Arena:
    """Shared memory that hands out arrays one after the other; the same calls give the same places in every process.

    The creating process passes `fd` to others (`Arena(nbytes, fd)` there) and then calls `close_fd`. The memory lives
    as long as any array in it does, in any process.
    """

    def __init__(self, nbytes: int, fd: int | None = None) -> None:
        self.nbytes = max(nbytes, _ALIGNMENT)
        self.fd: int | None = anonymous_file(self.nbytes) if fd is None else fd
        try:
            self._map = mmap.mmap(self.fd, self.nbytes)
        except OSError as error:  # a limit on the address space
            self.close_fd()
            raise NotEnoughMemory(
                f"the system refused to map {self.nbytes / 2**20:.1f} MiB of shared memory ({error.strerror}); "
                "make batch_T or batch_B smaller, or the observations (dtype, resolution)"
            ) from error
        self._offset = 0

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """The next array, 64-byte aligned, zero in a fresh arena."""
        size = _nbytes(shape, dtype)
        if self._offset + size > self.nbytes:
            raise ValueError(f"arena of {self.nbytes} bytes is full: {size} more bytes asked at offset {self._offset}")
        array: np.ndarray = np.ndarray(shape, dtype, buffer=self._map, offset=self._offset)
        self._offset += size
        return array

    @property
    def address(self) -> int:
        """Where it begins in this process's memory."""
        whole: np.ndarray = np.ndarray((self.nbytes,), np.uint8, buffer=self._map)
        return int(whole.ctypes.data)

    def close_fd(self) -> None:
        """Closes the descriptor; arrays stay valid."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def shared(build: Callable[[Allocate], _Built], fd: int | None = None) -> tuple[Arena, _Built]:
    """An arena just large enough for `build(allocate)`, and what that built in it.

    Made anew, or, with the descriptor of another process's arena and the same `build`, attached to.
    """
    arena = Arena(measure(build), fd)
    return arena, build(arena.allocate)
