"""Parameters on their way to other processes: slots of bytes in shared memory, and a version that says which.

The writer fills a slot that no reader was told to read; the batch command names the version. So nobody waits, nobody
locks, and no reader sees half of an update.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from headrace.agents.base import Agent
from headrace.buffers.shared import Allocate

__all__ = ["ParameterSlots"]

_BYTE = np.dtype("uint8")


class ParameterSlots:
    """Room for some versions of `agent.acting_state()`; constructed alike in two processes, they meet on one arena.

    n: versions at a time: one that is being written, and as many as commands may name that are not carried out yet.
    """

    def __init__(self, agent: Agent, allocate: Allocate, n: int = 2) -> None:
        self._layout = [(tensor.dtype, tensor.shape) for tensor in agent.acting_state()]
        sizes = [tensor.nbytes for tensor in agent.acting_state()]
        self._agent: Agent | None = None
        self._live: list[torch.Tensor] = []
        self._bytes = [[allocate((size,), _BYTE) for size in sizes] for _ in range(n)]

    @torch.no_grad()
    def publish(self, agent: Agent, version: int) -> None:
        """Writes the agent's acting state as `version`."""
        for slot, live in zip(self._tensors[version % len(self._bytes)], agent.acting_state(), strict=True):
            slot.copy_(live)

    @torch.no_grad()
    def load(self, agent: Agent, version: int) -> None:
        """Puts `version` into the agent, in place."""
        if self._agent is not agent:
            self._agent, self._live = agent, agent.acting_state()  # a reader's agent stays as it is: collect once
        for slot, live in zip(self._tensors[version % len(self._bytes)], self._live, strict=True):
            live.copy_(slot)

    @cached_property
    def _tensors(self) -> list[list[torch.Tensor]]:
        """The slots as tensors over their bytes (as bytes, because NumPy has no bfloat16)."""
        return [
            [
                torch.from_numpy(raw).view(dtype).reshape(shape) if raw.size else torch.empty(shape, dtype=dtype)
                for raw, (dtype, shape) in zip(slot, self._layout, strict=True)
            ]
            for slot in self._bytes
        ]
