"""Replays by their size in environment steps."""

from __future__ import annotations

import math

import numpy as np

from headrace.buffers.shared import Allocate, Arena, measure, shared
from headrace.errors import NotEnoughMemory
from headrace.memory import available_memory
from headrace.replays.prioritized import PrioritizedReplay
from headrace.replays.ring import ReplayRing, ReplaySpec, ReplayWriter, build_ring
from headrace.replays.uniform import UniformReplay
from headrace.types import BatchSpec, Tree

__all__ = ["make_replay", "replay_spec", "shared_ring"]


def replay_spec(
    batch_spec: BatchSpec,
    observation: Tree,
    action: Tree,
    size: int,
    *,
    frames: int = 0,
    n_finals: int | None = None,
) -> ReplaySpec:
    """The spec of a replay of `size` environment steps, rounded up to whole rows of time.

    observation, action: examples, trees of arrays of one row; frames, n_finals: see `ReplaySpec`. By default there is
    room for a truncated episode in every 16 steps, in every 64 where frames are stored.
    """
    if n_finals is None:
        n_finals = max(size // (64 if frames else 16), batch_spec.size)
    return ReplaySpec(batch_spec, math.ceil(size / batch_spec.B), observation, action, n_finals, frames)


def shared_ring(spec: ReplaySpec, fd: int | None = None) -> tuple[Arena, ReplayRing]:
    """A ring in shared memory, and the arena it lies in, whose `fd` goes to the other process.

    With the descriptor of another process's arena and the same spec: that ring. Raises NotEnoughMemory.
    """
    if fd is None:
        _require_memory(spec)
    return shared(lambda allocate: build_ring(spec, allocate), fd)


def make_replay(
    batch_spec: BatchSpec,
    observation: Tree,
    action: Tree,
    size: int,
    *,
    prioritized: bool = False,
    n_step: int = 1,
    discount: float = 0.99,
    seed: int = 0,
    frames: int = 0,
    n_finals: int | None = None,
    alpha: float = 0.6,
    beta: float = 0.4,
    allocate: Allocate | None = None,
) -> tuple[ReplayWriter, UniformReplay]:
    """A writer and a replay over the same memory, this process's own unless `allocate` gives another.

    Arguments as in `replay_spec`, `UniformReplay` and `PrioritizedReplay`. Raises NotEnoughMemory.
    """
    spec = replay_spec(batch_spec, observation, action, size, frames=frames, n_finals=n_finals)
    if allocate is None:
        _require_memory(spec)
    ring = build_ring(spec, allocate or np.zeros)
    writer = ReplayWriter(spec, ring)
    if prioritized:
        return writer, PrioritizedReplay(
            spec, ring, n_step=n_step, discount=discount, seed=seed, alpha=alpha, beta=beta
        )
    return writer, UniformReplay(spec, ring, n_step=n_step, discount=discount, seed=seed)


def _require_memory(spec: ReplaySpec) -> None:
    """Raises NotEnoughMemory if the machine has not enough left: pages are only taken when they are first written."""
    needed, free = measure(lambda allocate: build_ring(spec, allocate)), available_memory()
    if needed > free:
        raise NotEnoughMemory(
            f"a replay of {spec.size:,} steps needs {needed / 2**30:.2f} GiB and {free / 2**30:.2f} are free; make its "
            "size smaller, or store stacked frames once (frames=...)"
        )
