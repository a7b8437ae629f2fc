"""What is known of each row of a ring, one byte, and how rows lie in it."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = [
    "FIRST",
    "FOLLOWS",
    "PADDED",
    "TERMINATED",
    "TRUNCATED",
    "VALID",
    "ZEROS",
    "row_slices",
]

VALID = 1  #: a step, no padding
FIRST = 2  #: the agent saw no previous action and reward
FOLLOWS = 4  #: the row before it is the step before it, of the same episode
TERMINATED = 8
TRUNCATED = 16
PADDED = 32  #: of stacked frames: those before this one repeat it
ZEROS = 64  #: of stacked frames: those before this one are zero


def row_slices(first: int, count: int, n_rows: int) -> Iterator[tuple[slice, slice]]:
    """Pairs of slices, at most two: of an array of the rows first, first + 1, … and of the ring."""
    at = first % n_rows
    head = min(count, n_rows - at)
    yield slice(0, head), slice(at, at + head)
    if head < count:
        yield slice(head, count), slice(0, count - head)
