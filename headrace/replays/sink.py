"""A replay that an asynchronous sampler fills from its own process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from headrace.buffers.samples import Samples, SlotSpec
from headrace.replays.make import replay_spec, shared_ring
from headrace.replays.ring import ReplayRing, ReplaySpec
from headrace.replays.writer import ReplayWriter

__all__ = ["ReplaySink"]


class ReplaySink:
    """Passes the batches of an asynchronous sampler to a replay ring.

    Pass it to `sampler.feed`; after the sampler is initialized, `spec` and `ring` are set and a replay can read them::

        sink = ReplaySink(100_000)
        sampler.feed(sink)
        with sampler.initialize(agent, seed=0):
            replay = UniformReplay(sink.spec, sink.ring, n_step=3)

    The sampler process is the only writer of the ring.

    Args:
        size: capacity in environment steps.
        frames: see `ReplaySpec`.
        n_finals: see `replay_spec`.
        all_finals: see `ReplaySpec`.
        states: whether to store the recurrent states that the sampler records, for a replay of sequences.
        errors: see `ReplaySpec`.
    """

    spec: ReplaySpec
    ring: ReplayRing

    def __init__(
        self,
        size: int,
        *,
        frames: int = 0,
        n_finals: int | None = None,
        all_finals: bool = False,
        states: bool = False,
        errors: Callable[[Samples], np.ndarray] | None = None,
    ) -> None:
        self._size, self._frames, self._n_finals, self._all_finals = size, frames, n_finals, all_finals
        self._states, self._errors = states, errors

    def open(self, spec: SlotSpec) -> int:
        """See `headrace.samplers.Sink`.

        Raises:
            NotEnoughMemory: if the ring does not fit into the available memory.
        """
        self.spec = self._spec(spec)
        arena, self.ring = shared_ring(self.spec)
        assert arena.fd is not None
        fd = os.dup(arena.fd)
        arena.close_fd()
        return fd

    def attach(self, spec: SlotSpec, fd: int) -> Callable[[Samples], None]:
        """See `headrace.samplers.Sink`."""
        own = self._spec(spec)
        arena, ring = shared_ring(own, fd)
        arena.close_fd()
        return ReplayWriter(own, ring).append

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the ring, because the other process attaches to it by descriptor."""
        return {name: value for name, value in vars(self).items() if name not in ("spec", "ring")}

    def _spec(self, spec: SlotSpec) -> ReplaySpec:
        return replay_spec(
            spec.batch,
            spec.observation,
            spec.action,
            self._size,
            frames=self._frames,
            n_finals=self._n_finals,
            all_finals=self._all_finals,
            state=spec.state if self._states else None,
            errors=self._errors,
        )
