"""Replays by their size in environment steps."""

from __future__ import annotations

import math

import numpy as np

from headrace.buffers.shared import Allocate, measure
from headrace.errors import NotEnoughMemory
from headrace.memory import available_memory
from headrace.replays.prioritized import PrioritizedReplay
from headrace.replays.ring import ReplaySpec, ReplayWriter, build_ring
from headrace.replays.uniform import UniformReplay
from headrace.types import BatchSpec, Tree

__all__ = ["make_replay", "replay_spec"]


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
    needed, free = measure(lambda allocate: build_ring(spec, allocate)), available_memory()
    if allocate is None and needed > free:
        raise NotEnoughMemory(
            f"a replay of {spec.size:,} steps needs {needed / 2**30:.2f} GiB and {free / 2**30:.2f} are free; make its "
            "size smaller, or store stacked frames once (frames=...)"
        )
    ring = build_ring(spec, allocate or np.zeros)
    writer = ReplayWriter(spec, ring)
    if prioritized:
        return writer, PrioritizedReplay(
            spec, ring, n_step=n_step, discount=discount, seed=seed, alpha=alpha, beta=beta
        )
    return writer, UniformReplay(spec, ring, n_step=n_step, discount=discount, seed=seed)
