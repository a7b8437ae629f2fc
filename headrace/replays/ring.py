"""The memory of a replay: one writer, in any process, and readers that the writer never waits for.

Rows (all columns of one time step) are numbered from 0 without end; row i is stored at position i modulo `n_rows`. Two
numbers in shared memory say which rows are intact: `oldest` to `cursor` − 1. The writer first advances `oldest` past
the rows it is about to overwrite, then writes, then advances `cursor`. A reader reads both numbers, copies what it
needs, and reads `oldest` again: rows below the new value may be torn, all others are intact. There is no lock, so no
process can die while it holds one: if a writer is killed in the middle of an append, only the rows it had announced to
overwrite are lost.

Importing this module loads no torch, because the writer may be a process without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from headrace.buffers.samples import Samples
from headrace.buffers.shared import Allocate
from headrace.buffers.tree import allocate_like, tree_paths
from headrace.types import BatchSpec, Tree

__all__ = [
    "FIRST",
    "FOLLOWS",
    "PADDED",
    "TERMINATED",
    "TRUNCATED",
    "VALID",
    "ZEROS",
    "ReplayRing",
    "ReplaySpec",
    "build_ring",
    "row_slices",
    "with_final",
]

# Flags of one step, one byte for each row and column.
VALID = 1  #: a step, not padding
FIRST = 2  #: the agent saw no previous action and reward
FOLLOWS = 4  #: the row before holds the previous step of the same episode
TERMINATED = 8
TRUNCATED = 16
PADDED = 32  #: stacked frames: the frames before this one repeat it
ZEROS = 64  #: stacked frames: the frames before this one are zero


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
        all_finals: keep the final observations of terminated episodes as well.
        frames: number of frames stacked along the first axis of the observation (a uint8 array), newest last; each
            frame is then stored once. 0: observations are stored whole.
        state: example of the recurrent state, which is stored every `batch.state_interval` rows; `n_rows` must be a
            multiple of the interval. None: states are not stored.
        errors: returns the errors of a batch's steps, float32 `[T, B]`, NaN where they are not known, from which new
            sequences get their priorities; it is called where batches are appended, and pickled to get there. None: no
            errors are stored.
    """

    batch: BatchSpec
    n_rows: int
    observation: Tree
    action: Tree
    n_finals: int
    frames: int = 0
    all_finals: bool = False
    state: Tree = None
    errors: Callable[[Samples], np.ndarray] | None = None

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
        if self.state is not None and (not self.every or self.n_rows % self.every or self.batch.T % self.every):
            raise ValueError(
                f"a replay with recurrent states needs time steps and batch_T in multiples of the sampler's "
                f"state_interval, got n_rows={self.n_rows}, batch_T={self.batch.T} and "
                f"state_interval={self.batch.state_interval}; give the sampler a state_interval"
            )

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
    def every(self) -> int:
        """Rows from one stored state to the next; 0 if batches have no states."""
        return self.batch.state_interval or 0

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
        flags: uint8 `[n_rows, B]`, `VALID`, `FIRST` and so on.
        final: int32 `[n_rows, B]`, where `with_final` the position of the last observation in `final_observation`.
        totals: int64 `[n_rows, 2]`, the numbers of steps and of final observations ever appended, up to and including
            this row.
        final_observation: tree of `[n_finals, ...]`.
        final_row: int64 `[n_finals]`, the row that each final observation belongs to.
        oldest: number of the first intact row, see the module docstring.
        cursor: number of the row after the last intact one, see the module docstring.
        cut: number of a row that does not continue the row before it although it may look so, see `ReplayWriter.cut`.
        state: tree of `[n_rows / k, B, ...]`, recurrent states before rows 0, k, 2k, ..., or None.
        error: float32 `[n_rows, B]`, NaN where it is not known, or None; see `ReplaySpec`.
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
    state: Tree = None
    error: np.ndarray | None = None


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
        state=None if spec.state is None else allocate_like(spec.state, (rows // spec.every, B), allocate),
        error=None if spec.errors is None else allocate((rows, B), np.dtype(np.float32)),
    )


def with_final(spec: ReplaySpec, flags: np.ndarray) -> np.ndarray:
    """Returns the steps after which a final observation is kept, bool, from flags of the same shape."""
    ends = flags & (TERMINATED | TRUNCATED)
    kept: np.ndarray = ends != 0 if spec.all_finals else ends == TRUNCATED
    return kept


def row_slices(first: int, count: int, n_rows: int) -> Iterator[tuple[slice, slice]]:
    """Yields one or two pairs of slices: into an array of rows first, first + 1, …, and into the ring."""
    at = first % n_rows
    head = min(count, n_rows - at)
    yield slice(0, head), slice(at, at + head)
    if head < count:
        yield slice(head, count), slice(0, count - head)
