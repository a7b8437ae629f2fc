"""Builds replay buffers from their size in environment steps."""

from __future__ import annotations

import math

import numpy as np

from headrace.buffers.shared import Allocate, Arena, measure, shared
from headrace.errors import NotEnoughMemory
from headrace.memory import available_memory
from headrace.replays.hindsight import HindsightConfig
from headrace.replays.prioritized import PrioritizedReplay
from headrace.replays.ring import ReplayRing, ReplaySpec, build_ring
from headrace.replays.uniform import UniformReplay
from headrace.replays.writer import ReplayWriter
from headrace.types import BatchSpec, Tree

__all__ = ["make_replay", "replay_over", "replay_spec", "shared_ring"]


def replay_spec(
    batch_spec: BatchSpec,
    observation: Tree,
    action: Tree,
    size: int,
    *,
    frames: int = 0,
    n_finals: int | None = None,
    all_finals: bool = False,
) -> ReplaySpec:
    """Returns the spec of a replay of `size` environment steps, rounded up to whole rows.

    Args:
        batch_spec: T and B of the batches that will be appended.
        observation: example, a tree of arrays for one environment.
        action: example, a tree of arrays for one environment.
        size: capacity in environment steps.
        frames: see `ReplaySpec`.
        n_finals: see `ReplaySpec`. Default: room for one truncated episode in every 16 steps, or in every 64 steps if
            frames are stored, for one end of an episode in every 4 steps with `all_finals`, and at least T · B.
        all_finals: see `ReplaySpec`.
    """
    if n_finals is None:
        n_finals = max(size // (4 if all_finals else 64 if frames else 16), batch_spec.size)
    return ReplaySpec(batch_spec, math.ceil(size / batch_spec.B), observation, action, n_finals, frames, all_finals)


def shared_ring(spec: ReplaySpec, fd: int | None = None) -> tuple[Arena, ReplayRing]:
    """Returns a ring in shared memory and the arena that holds it.

    Args:
        spec: layout of the ring.
        fd: file descriptor of another process's arena, to attach to its ring (the spec must be the same). None: a new
            arena, whose `fd` is to be passed to the other process.

    Returns:
        The arena and the ring.

    Raises:
        NotEnoughMemory: if a new ring does not fit into the available memory.
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
    hindsight: HindsightConfig | None = None,
    allocate: Allocate | None = None,
) -> tuple[ReplayWriter, UniformReplay]:
    """Returns a writer and a replay over the same memory.

    The memory is private to this process unless `allocate` provides another. For the arguments, see `replay_spec`,
    `UniformReplay` and `PrioritizedReplay`.

    Returns:
        The writer and a `UniformReplay`, or a `PrioritizedReplay` if `prioritized`.

    Raises:
        NotEnoughMemory: if the ring does not fit into the available memory (checked only without `allocate`).
    """
    all_finals = hindsight is not None
    spec = replay_spec(batch_spec, observation, action, size, frames=frames, n_finals=n_finals, all_finals=all_finals)
    if allocate is None:
        _require_memory(spec)
    ring = build_ring(spec, allocate or np.zeros)
    replay = replay_over(
        spec,
        ring,
        prioritized=prioritized,
        n_step=n_step,
        discount=discount,
        seed=seed,
        alpha=alpha,
        beta=beta,
        hindsight=hindsight,
    )
    return ReplayWriter(spec, ring), replay


def replay_over(
    spec: ReplaySpec,
    ring: ReplayRing,
    *,
    prioritized: bool,
    n_step: int,
    discount: float,
    seed: int,
    alpha: float = 0.6,
    beta: float = 0.4,
    hindsight: HindsightConfig | None = None,
) -> UniformReplay:
    """Returns a replay over a ring that another object or process fills.

    For the arguments, see `UniformReplay` and `PrioritizedReplay`.
    """
    if prioritized:
        return PrioritizedReplay(
            spec, ring, n_step=n_step, discount=discount, seed=seed, alpha=alpha, beta=beta, hindsight=hindsight
        )
    return UniformReplay(spec, ring, n_step=n_step, discount=discount, seed=seed, hindsight=hindsight)


def _require_memory(spec: ReplaySpec) -> None:
    """Raises NotEnoughMemory if too little memory is left: the system only allocates pages when first written."""
    needed, free = measure(lambda allocate: build_ring(spec, allocate)), available_memory()
    if needed > free:
        raise NotEnoughMemory(
            f"a replay of {spec.size:,} steps needs {needed / 2**30:.2f} GiB, but only {free / 2**30:.2f} are free; "
            "make it smaller, or store stacked frames once (frames=...)"
        )
