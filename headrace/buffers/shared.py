"""The arena: one anonymous block of shared memory that holds all arrays of a batch.

It needs a single file descriptor for any number of arrays, and has no name that a crash could leave behind.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from headrace.errors import NO_DESCRIPTORS, NotEnoughMemory
from headrace.memory import anonymous_file

__all__ = ["Allocate", "Arena", "Block", "measure", "private", "shared"]

#: Returns a new array of the given shape and dtype.
Allocate = Callable[[tuple[int, ...], "np.dtype[Any]"], np.ndarray]

_ALIGNMENT = 64
_Built = TypeVar("_Built")


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Returns the bytes of one array, rounded up so that the next array starts on a cache line."""
    return math.ceil(math.prod(shape) * dtype.itemsize / _ALIGNMENT) * _ALIGNMENT


def measure(build: Callable[[Allocate], object]) -> int:
    """Returns the bytes that an arena needs for the arrays of `build(allocate)`, without reserving memory."""
    total = 0

    def count(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        nonlocal total
        total += _nbytes(shape, dtype)
        return np.broadcast_to(np.zeros((), dtype), shape)

    build(count)
    return total


class Block:
    """Memory that allocates arrays one after another; the same calls give the same offsets in every process.

    Args:
        memory: an object with the buffer protocol, such as an array of bytes.
        nbytes: its size in bytes.
    """

    def __init__(self, memory: Any, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = memory
        self._offset = 0

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Returns the next array, at a multiple of 64 bytes; raises ValueError if the memory is full."""
        size = _nbytes(shape, dtype)
        if self._offset + size > self.nbytes:
            raise ValueError(f"{size} bytes at offset {self._offset} do not fit in {self.nbytes} bytes")
        array: np.ndarray = np.ndarray(shape, dtype, buffer=self._memory, offset=self._offset)
        self._offset += size
        return array


class Arena(Block):
    """Shared memory that allocates arrays, which are zero in a new arena.

    The process that creates the arena passes `fd` to others, which call `Arena(nbytes, fd)`, and then calls `close_fd`.
    The memory exists as long as any array in it does, in any process.

    Args:
        nbytes: size in bytes.
        fd: file descriptor of another process's arena, to attach to it. None: a new arena.

    Raises:
        NotEnoughMemory: if the memory is not available, or cannot be mapped.
        OSError: if no file descriptors are left.
    """

    def __init__(self, nbytes: int, fd: int | None = None) -> None:
        nbytes = max(nbytes, _ALIGNMENT)
        self.fd: int | None = anonymous_file(nbytes) if fd is None else fd
        try:
            memory = mmap.mmap(self.fd, nbytes)
        except OSError as error:  # the address space is limited
            self.close_fd()
            if error.errno in NO_DESCRIPTORS:  # a map has a descriptor of its own
                raise
            raise NotEnoughMemory(
                f"the operating system refused to map {nbytes / 2**20:.1f} MiB of shared memory "
                f"({error.strerror}); reduce batch_T, batch_B, or the size of observations (dtype, resolution)"
            ) from error
        super().__init__(memory, nbytes)

    @property
    def address(self) -> int:
        """Address of the arena in this process."""
        whole: np.ndarray = np.ndarray((self.nbytes,), np.uint8, buffer=self._memory)
        return int(whole.ctypes.data)

    def close_fd(self) -> None:
        """Closes the file descriptor; arrays stay valid."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def shared(build: Callable[[Allocate], _Built], fd: int | None = None) -> tuple[Arena, _Built]:
    """Returns an arena just large enough for `build(allocate)`, and the result of `build`.

    Args:
        build: allocates the arrays.
        fd: file descriptor of another process's arena, to attach to it with the same `build`. None: a new arena.

    Returns:
        The arena, and the result of `build(arena.allocate)`.

    Raises:
        NotEnoughMemory: if the memory is not available, or cannot be mapped.
    """
    arena = Arena(measure(build), fd)
    return arena, build(arena.allocate)


def private(build: Callable[[Allocate], _Built]) -> tuple[np.ndarray, _Built]:
    """Returns memory of this process just large enough for `build(allocate)`, and the result of `build`.

    Returns:
        The memory, uint8 `[n]`, and the result. Another process that gets a copy of the memory finds the same arrays
        in it with `build(Block(copy, len(copy)).allocate)`.
    """
    memory = np.zeros(measure(build), np.uint8)
    return memory, build(Block(memory, len(memory)).allocate)
