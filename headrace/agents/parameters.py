"""Publishes parameters to other processes, in buffers in shared memory that are numbered by version.

The writer fills a buffer that no pending command refers to, and the command of a batch names the version to load. So no
process waits or locks, and no reader sees half of an update.
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
    """Shared memory for several versions of `agent.acting_state()`.

    Two processes that construct it in the same way on one arena share the memory.

    Args:
        agent: an initialized agent, whose tensors set the sizes.
        allocate: allocates an array `(shape, dtype)` in shared memory.
        n: number of versions that are kept: one that is being written, and those that pending commands may name.
    """

    def __init__(self, agent: Agent, allocate: Allocate, n: int = 2) -> None:
        self._layout = [(tensor.dtype, tensor.shape) for tensor in agent.acting_state()]
        sizes = [tensor.nbytes for tensor in agent.acting_state()]
        self._agent: Agent | None = None
        self._live: list[torch.Tensor] = []
        self._bytes = [[allocate((size,), _BYTE) for size in sizes] for _ in range(n)]

    @torch.no_grad()
    def publish(self, agent: Agent, version: int) -> None:
        """Writes the agent's parameters and buffers as `version`."""
        for slot, live in zip(self._tensors[version % len(self._bytes)], agent.acting_state(), strict=True):
            slot.copy_(live)

    @torch.no_grad()
    def load(self, agent: Agent, version: int) -> None:
        """Loads `version` into the agent, in place."""
        if self._agent is not agent:
            # List the tensors once: the agent of a process that only acts never replaces them.
            self._agent, self._live = agent, agent.acting_state()
        for slot, live in zip(self._tensors[version % len(self._bytes)], self._live, strict=True):
            live.copy_(slot)

    @cached_property
    def _tensors(self) -> list[list[torch.Tensor]]:
        """The buffers as tensors; they are allocated as bytes because NumPy has no bfloat16."""
        return [
            [
                torch.from_numpy(raw).view(dtype).reshape(shape) if raw.size else torch.empty(shape, dtype=dtype)
                for raw, (dtype, shape) in zip(slot, self._layout, strict=True)
            ]
            for slot in self._bytes
        ]
