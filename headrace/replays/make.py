"""Builds replay buffers from their size in environment steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from headrace.buffers.samples import Samples
from headrace.buffers.shared import Allocate, Arena, measure, shared
from headrace.errors import NotEnoughMemory
from headrace.memory import available_memory
from headrace.replays.base import Sequences, Transitions
from headrace.replays.hindsight import HindsightConfig
from headrace.replays.prioritized import PrioritizedReplay
from headrace.replays.replay import Replay
from headrace.replays.ring import ReplayRing, ReplaySpec, build_ring
from headrace.replays.sequence import PrioritizedSequenceReplay, UniformSequenceReplay
from headrace.replays.sequences import SequenceShape
from headrace.replays.uniform import UniformReplay
from headrace.replays.writer import ReplayWriter
from headrace.types import BatchSpec, Tree

__all__ = [
    "make_replay",
    "make_sequence_replay",
    "replay_over",
    "replay_spec",
    "sequence_replay_over",
    "shared_ring",
]


def replay_spec(
    batch_spec: BatchSpec,
    observation: Tree,
    action: Tree,
    size: int,
    *,
    frames: int = 0,
    n_finals: int | None = None,
    all_finals: bool = False,
    state: Tree = None,
    errors: Callable[[Samples], np.ndarray] | None = None,
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
        state: see `ReplaySpec`.
        errors: see `ReplaySpec`.
    """
    if n_finals is None:
        n_finals = max(size // (4 if all_finals else 64 if frames else 16), batch_spec.size)
    every = batch_spec.state_interval or 1  # states are stored at the same positions in every turn of the ring
    n_rows = math.ceil(size / batch_spec.B / every) * every
    return ReplaySpec(batch_spec, n_rows, observation, action, n_finals, frames, all_finals, state, errors)


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
) -> tuple[ReplayWriter, Replay[Transitions]]:
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
) -> Replay[Transitions]:
    """Returns a replay over a ring that another object or process fills.

    For the arguments, see `UniformReplay` and `PrioritizedReplay`.
    """
    if prioritized:
        return PrioritizedReplay(
            spec, ring, n_step=n_step, discount=discount, seed=seed, alpha=alpha, beta=beta, hindsight=hindsight
        )
    return UniformReplay(spec, ring, n_step=n_step, discount=discount, seed=seed, hindsight=hindsight)


def make_sequence_replay(
    batch_spec: BatchSpec,
    observation: Tree,
    action: Tree,
    state: Tree,
    size: int,
    shape: SequenceShape,
    *,
    prioritized: bool = False,
    discount: float = 0.99,
    seed: int = 0,
    frames: int = 0,
    n_finals: int | None = None,
    alpha: float = 0.6,
    beta: float = 0.4,
    eta: float = 0.9,
    errors: Callable[[Samples], np.ndarray] | None = None,
) -> tuple[ReplayWriter, Replay[Sequences]]:
    """Returns a writer and a replay of sequences over the same memory, which is private to this process.

    For the arguments, see `replay_spec` and `PrioritizedSequenceReplay`; the sampler's `batch_spec` must have a
    `state_interval`, and without an example of the recurrent `state`, sequences start without a memory.

    Returns:
        The writer and a `UniformSequenceReplay`, or a `PrioritizedSequenceReplay` if `prioritized`.

    Raises:
        NotEnoughMemory: if the ring does not fit into the available memory.
    """
    spec = replay_spec(
        batch_spec, observation, action, size, frames=frames, n_finals=n_finals, state=state, errors=errors
    )
    _require_memory(spec)
    ring = build_ring(spec, np.zeros)
    replay = sequence_replay_over(
        spec, ring, shape, prioritized=prioritized, discount=discount, seed=seed, alpha=alpha, beta=beta, eta=eta
    )
    return ReplayWriter(spec, ring), replay


def sequence_replay_over(
    spec: ReplaySpec,
    ring: ReplayRing,
    shape: SequenceShape,
    *,
    prioritized: bool,
    discount: float,
    seed: int,
    alpha: float = 0.6,
    beta: float = 0.4,
    eta: float = 0.9,
) -> Replay[Sequences]:
    """Returns a replay of sequences over a ring that another object or process fills.

    For the arguments, see `PrioritizedSequenceReplay`.
    """
    if prioritized:
        return PrioritizedSequenceReplay(
            spec, ring, shape, discount=discount, seed=seed, alpha=alpha, beta=beta, eta=eta
        )
    return UniformSequenceReplay(spec, ring, shape, discount=discount, seed=seed)


def _require_memory(spec: ReplaySpec) -> None:
    """Raises NotEnoughMemory if too little memory is left: the system only allocates pages when first written."""
    needed, free = measure(lambda allocate: build_ring(spec, allocate)), available_memory()
    if needed > free:
        raise NotEnoughMemory(
            f"a replay of {spec.size:,} steps needs {needed / 2**30:.2f} GiB, but only {free / 2**30:.2f} are free; "
            "make it smaller, or store stacked frames once (frames=...)"
        )
