"""Flags of one step of a ring, one byte for each row and column, and the positions of rows in the ring."""

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

VALID = 1  #: a step, not padding
FIRST = 2  #: the agent saw no previous action and reward
FOLLOWS = 4  #: the row before holds the previous step of the same episode
TERMINATED = 8
TRUNCATED = 16
PADDED = 32  #: stacked frames: the frames before this one repeat it
ZEROS = 64  #: stacked frames: the frames before this one are zero


def row_slices(first: int, count: int, n_rows: int) -> Iterator[tuple[slice, slice]]:
    """Yields one or two pairs of slices: into an array of rows first, first + 1, …, and into the ring."""
    at = first % n_rows
    head = min(count, n_rows - at)
    yield slice(0, head), slice(at, at + head)
    if head < count:
        yield slice(head, count), slice(0, count - head)
