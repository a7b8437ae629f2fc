"""The ring buffer that replays read: one writer, in any process, and readers that the writer never waits for.

Rows (all columns of one time step) are numbered from 0 without end; row i is stored at position i modulo `n_rows`. Two
numbers in shared memory say which rows are intact: `oldest` to `cursor` − 1. The writer first advances `oldest` past
the rows it is about to overwrite, then writes, then advances `cursor`. A reader reads both numbers, copies what it
needs, and reads `oldest` again: rows below the new value may be torn, all others are intact. There is no lock, so no
process can die while it holds one: if a writer is killed in the middle of an append, only the rows it had announced to
overwrite are lost.

Importing this module loads no torch, because the writer may be a process without it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.buffers.samples import Samples
from headrace.buffers.shared import Allocate
from headrace.buffers.tree import allocate_like, tree_copy_into, tree_leaves, tree_map, tree_paths, tree_rows
from headrace.memory import fence
from headrace.replays.frames import check_joint, check_slides, padding
from headrace.replays.rows import FIRST, FOLLOWS, TERMINATED, TRUNCATED, VALID, row_slices
from headrace.types import BatchSpec, Tree

__all__ = ["ReplayRing", "ReplaySpec", "ReplayWriter", "build_ring"]


@dataclass(frozen=True)
class ReplaySpec:
    """What a replay stores: sizes, and examples (arrays for one environment) of observation and action.

    Args:
        batch: T and B of the batches that are appended.
        n_rows: capacity in rows, more than `batch.T`.
        observation: example, a tree of arrays.
        action: example, a tree of arrays.
        n_finals: room for final observations of truncated episodes. When it is used up, the rows up to and including
            the one with the oldest final observation are dropped.
        frames: number of frames stacked along the first axis of the observation (a uint8 array), newest last; each
            frame is then stored once. 0: observations are stored whole.
    """

    batch: BatchSpec
    n_rows: int
    observation: Tree
    action: Tree
    n_finals: int
    frames: int = 0

    def __post_init__(self) -> None:
        least = self.batch.T + max(self.frames, 1)
        if self.n_rows < least:
            raise ValueError(
                f"a replay of {self.n_rows} time steps is too small for batches of {self.batch.T}; make it at least "
                f"{least} time steps, {least * self.batch.B} steps in all"
            )
        if self.n_finals < 1:
            raise ValueError(f"n_finals must be at least 1, for truncated episodes, got {self.n_finals}")
        if self.frames < 0:
            raise ValueError(
                f"frames must be the number of stacked frames, or 0 to store whole stacks, got {self.frames}"
            )
        if self.frames:
            self._check_frames()

    def _check_frames(self) -> None:
        leaf = self.observation
        if not isinstance(leaf, np.ndarray) or leaf.dtype != np.uint8 or leaf.ndim < 2 or leaf.shape[0] != self.frames:
            found = ", ".join(f"{value.dtype} {list(value.shape)}" for _, value in tree_paths(self.observation))
            raise ValueError(
                f"frames={self.frames} needs observations of one uint8 array [{self.frames}, ...], got {found}; "
                "use frames=0, which stores observations as they come"
            )

    @property
    def size(self) -> int:
        """Capacity in environment steps."""
        return self.n_rows * self.batch.B

    @property
    def stored(self) -> Tree:
        """Example of the stored part of an observation: the whole observation, or its newest frame."""
        return self.observation[-1] if self.frames else self.observation


@dataclass
class ReplayRing:
    """The arrays of a replay, in shared or private memory.

    Args:
        observation: tree of `[n_rows, B, ...]`.
        action: tree of `[n_rows, B, ...]`.
        reward: float32 `[n_rows, B]`.
        flags: uint8 `[n_rows, B]`, see `headrace.replays.rows`.
        final: int32 `[n_rows, B]`, for truncated episodes the position of their last observation in
            `final_observation`.
        totals: int64 `[n_rows, 2]`, the numbers of steps and of final observations ever appended, up to and including
            this row.
        final_observation: tree of `[n_finals, ...]`.
        final_row: int64 `[n_finals]`, the row that each final observation belongs to.
        oldest: number of the first intact row, see the module docstring.
        cursor: number of the row after the last intact one, see the module docstring.
        cut: number of a row that does not continue the row before it although it may look so, see `ReplayWriter.cut`.
    """

    observation: Tree
    action: Tree
    reward: np.ndarray
    flags: np.ndarray
    final: np.ndarray
    totals: np.ndarray
    final_observation: Tree
    final_row: np.ndarray
    oldest: memoryview
    cursor: memoryview
    cut: memoryview


def build_ring(spec: ReplaySpec, allocate: Allocate) -> ReplayRing:
    """Builds a ring whose arrays come from `allocate(shape, dtype)`: an arena's method, or `numpy.zeros`.

    Every process that attaches to the same arena with the same spec finds the arrays at the same offsets.
    """
    rows, B, n_finals = spec.n_rows, spec.batch.B, spec.n_finals
    int64 = np.dtype(np.int64)
    return ReplayRing(
        observation=allocate_like(spec.stored, (rows, B), allocate),
        action=allocate_like(spec.action, (rows, B), allocate),
        reward=allocate((rows, B), np.dtype(np.float32)),
        flags=allocate((rows, B), np.dtype(np.uint8)),
        final=allocate((rows, B), np.dtype(np.int32)),
        totals=allocate((rows, 2), int64),
        final_observation=allocate_like(spec.stored, (n_finals,), allocate),
        final_row=allocate((n_finals,), int64),
        # Each counter has two cache lines, because the processor fetches them in pairs.
        oldest=allocate((16,), int64).data,
        cursor=allocate((16,), int64).data,
        cut=allocate((16,), int64).data,
    )


class ReplayWriter:
    """The only writer of a ring. If the writer process died, a new writer may continue."""

    def __init__(self, spec: ReplaySpec, ring: ReplayRing) -> None:
        self.spec = spec
        self.ring = ring
        self._lock = threading.Lock()

    def cut(self) -> None:
        """Marks that the next batch does not continue the last one: batches between the two were lost."""
        self.ring.cut[0] = self.ring.cursor[0]

    def append(self, samples: Samples) -> None:
        """Copies a batch `[T, B]` into the ring; its memory may be reused afterwards.

        Append all batches of one sampler, in order: episodes continue from one batch to the next.

        Args:
            samples: batch of the spec's shapes and dtypes.

        Raises:
            ValueError: if the batch has other shapes than the spec, lacks the final observation of a truncated episode,
                has more truncated episodes than `n_finals`, or stacks frames in another way than
                `gymnasium.wrappers.FrameStackObservation`. The ring is then unchanged.
        """
        spec, ring = self.spec, self.ring
        first: int = ring.cursor[0]
        observation, action = self._checked(samples)
        flags = self._flags(samples, first, observation)
        time, column, entries = _finals(samples, flags, observation, spec)
        n_steps, n_entries = (ring.totals[(first - 1) % spec.n_rows] if first else np.zeros(2, np.int64)).tolist()
        if len(time) > spec.n_finals:
            raise ValueError(
                f"{len(time)} episodes of one batch were truncated and there is room for n_finals={spec.n_finals}; "
                "give the replay more"
            )
        numbers = n_entries + np.arange(len(time))
        slots = numbers % spec.n_finals
        given_up = ring.final_row[slots[numbers >= spec.n_finals]]
        given_up = given_up[given_up < first]  # the others belong to an append that was never finished
        truncated = np.bincount(time, minlength=spec.batch.T)
        totals = np.stack([n_steps + _counts(flags & VALID), n_entries + truncated.cumsum()], axis=1)

        # `oldest` must never move back: a writer that died may have overwritten rows up to its value.
        ring.oldest[0] = max(ring.oldest[0], first + spec.batch.T - spec.n_rows, given_up.max(initial=-1) + 1)
        fence(self._lock)
        reward = _array(samples.env.reward)
        stored = observation[:, :, -1] if spec.frames else observation
        for here, there in row_slices(first, spec.batch.T, spec.n_rows):
            tree_copy_into(tree_rows(ring.observation, there), tree_rows(stored, here))
            tree_copy_into(tree_rows(ring.action, there), tree_rows(action, here))
            ring.reward[there] = reward[here]
            ring.flags[there] = flags[here]
            ring.totals[there] = totals[here]
        if len(time):
            ring.final[(first + time) % spec.n_rows, column] = slots
            ring.final_row[slots] = first + time
            for to, value in zip(tree_leaves(ring.final_observation), tree_leaves(entries), strict=True):
                to[slots] = value
        fence(self._lock)
        ring.cursor[0] = first + spec.batch.T

    def _checked(self, samples: Samples) -> tuple[Tree, Tree]:
        """Returns observation (all of its frames) and action as arrays; raises ValueError for other shapes."""
        T, B = self.spec.batch.T, self.spec.batch.B
        observation, action = tree_map(_array, samples.env.observation), tree_map(_array, samples.agent.action)
        for name, example, tree in (
            ("env.observation", self.spec.observation, observation),
            ("agent.action", self.spec.action, action),
        ):
            expected = [(path, (T, B, *leaf.shape), leaf.dtype) for path, leaf in tree_paths(example)]
            found = [(path, leaf.shape, leaf.dtype) for path, leaf in tree_paths(tree)]
            if expected != found:
                raise ValueError(
                    f"samples.{name} is {_described(found)} and this replay was made for {_described(expected)}; make "
                    "it for the sampler's batch_spec and spaces"
                )
        return observation, action

    def _flags(self, samples: Samples, first: int, observation: Tree) -> np.ndarray:
        """Returns the flags `[T, B]`, see `headrace.replays.rows`."""
        env, ring = samples.env, self.ring
        valid, is_first = _array(env.valid), _array(env.is_first) & _array(env.valid)
        flags = np.where(valid, np.uint8(VALID), np.uint8(0))
        for mask, flag in ((is_first, FIRST), (_array(env.terminated), TERMINATED), (_array(env.truncated), TRUNCATED)):
            flags[mask & valid] |= flag
        before = np.zeros_like(flags)
        before[1:] = flags[:-1]
        joined = first > 0 and ring.cut[0] != first
        if joined:
            before[0] = ring.flags[(first - 1) % self.spec.n_rows]
        goes_on = (before & (VALID | TERMINATED | TRUNCATED)) == VALID
        follows = valid & ~is_first & goes_on
        flags[follows] |= FOLLOWS
        if self.spec.frames:
            check_slides(observation, follows)
            if joined:
                check_joint(ring, first, observation[0], follows[0])
            # The first row of a sampler may be in the middle of an episode and hold frames of its beginning.
            ended = ~goes_on
            ended[0] &= joined
            flags |= padding(observation, is_first, ended)
        return flags


def _finals(
    samples: Samples, flags: np.ndarray, observation: Tree, spec: ReplaySpec
) -> tuple[np.ndarray, np.ndarray, Tree]:
    """Returns (time `[N]`, column `[N]`, stored part of the final observation `[N, ...]`) of truncated episodes."""
    cut = (flags & (TERMINATED | TRUNCATED)) == TRUNCATED
    time, column = _array(samples.final.time), _array(samples.final.column)
    chosen = cut[time, column]
    time, column = time[chosen], column[chosen]
    if len(time) != np.count_nonzero(cut):
        raise ValueError(
            f"{np.count_nonzero(cut)} episodes of the batch were truncated and samples.final has the last observation "
            f"of {len(time)}; append batches as the sampler gave them"
        )
    if not len(time):
        return time, column, tree_map(lambda leaf: np.empty((0, *leaf.shape), leaf.dtype), spec.stored)
    entries = tree_map(lambda leaf: _array(leaf)[chosen], samples.final.observation)
    if spec.frames:
        if not np.array_equal(entries[:, :-1], observation[time, column, 1:]):
            raise ValueError(
                "a final observation does not stack the frames of the row before it; use frames=0, which stores "
                "observations as they come"
            )
        entries = entries[:, -1]
    return time, column, entries


def _counts(mask: np.ndarray) -> np.ndarray:
    """Returns, for each row, the number of set entries up to and including it."""
    return np.cumsum(np.count_nonzero(mask, axis=1))


def _array(leaf: Any) -> np.ndarray:
    """Returns a tensor on any device, or an array, as an array."""
    array: np.ndarray = leaf if isinstance(leaf, np.ndarray) else leaf.numpy(force=True)
    return array


def _described(leaves: list[tuple[str, tuple[int, ...], np.dtype[Any]]]) -> str:
    return ", ".join(f"{path} {dtype} {list(shape)}".strip() for path, shape, dtype in leaves)
