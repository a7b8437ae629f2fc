"""A replay that an asynchronous sampler fills in its own process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from headrace.buffers.samples import Samples, SlotSpec
from headrace.replays.make import replay_spec, shared_ring
from headrace.replays.ring import ReplayRing, ReplaySpec, ReplayWriter

__all__ = ["ReplaySink"]


class ReplaySink:
    """Give it to `sampler.feed`; once the sampler is initialized, `spec` and `ring` are there for a replay to read::

        sink = ReplaySink(100_000)
        sampler.feed(sink)
        with sampler.initialize(agent, seed=0):
            replay = UniformReplay(sink.spec, sink.ring, n_step=3)

    size, frames, n_finals: as in `replay_spec`. The sampler process is the ring's one writer.
    """

    spec: ReplaySpec
    ring: ReplayRing

    def __init__(self, size: int, *, frames: int = 0, n_finals: int | None = None) -> None:
        self._size, self._frames, self._n_finals = size, frames, n_finals

    def open(self, spec: SlotSpec) -> int:
        """See `headrace.samplers.Sink`. Raises NotEnoughMemory."""
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
        """Without the ring, which the other process attaches to."""
        return {name: value for name, value in vars(self).items() if name not in ("spec", "ring")}

    def _spec(self, spec: SlotSpec) -> ReplaySpec:
        return replay_spec(
            spec.batch, spec.observation, spec.action, self._size, frames=self._frames, n_finals=self._n_finals
        )
