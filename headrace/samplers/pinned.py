"""Shared memory that a GPU may read and write directly."""

from __future__ import annotations

import logging

import torch

from headrace.buffers.shared import Arena

__all__ = ["Pinned"]

_log = logging.getLogger("headrace.samplers")


class Pinned:
    """An arena registered with CUDA: copies from it need no staging and do not hold up the host.

    Registering locks the pages, which takes a while, once. Where the system refuses (a limit on locked memory), copies
    are slower, and the log says so.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena: Arena | None = arena
        error = torch.cuda.cudart().cudaHostRegister(arena.address, arena.nbytes, 0)  # type: ignore[no-untyped-call]
        if int(error) != 0:
            self._arena = None
            _log.warning("the batch's memory could not be registered with CUDA (error %d); copies are slower", error)

    def release(self) -> None:
        """Before the memory goes away."""
        arena, self._arena = self._arena, None
        if arena is not None:
            torch.cuda.cudart().cudaHostUnregister(arena.address)  # type: ignore[no-untyped-call]
