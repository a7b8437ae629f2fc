"""Buffers of a consumer, which batch samples: filled by `consumer.consume_to(buffer)`, emptied by `buffer.get()`.

A buffer takes single samples and returns batches `[T, n, ...]`. `Appending(writer.append)` passes them to a replay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.errors import NothingToConsume
from headrace.streams.codec import Frame
from headrace.streams.packing import stacked
from headrace.streams.sample import SampleBatch
from headrace.types import Tree

__all__ = ["Appending", "BufferCounts", "FifoBuffer", "PriorityBuffer"]


@dataclass
class BufferCounts:
    """What became of the samples of a buffer.

    Args:
        put: samples that were put in.
        got: samples that were taken out, each time.
        reused: those of them that had been taken out before.
        dropped: samples that made room for others before they were ever taken out.
        unused: times that samples could have been taken out again when they made room for others.
    """

    put: int = 0
    got: int = 0
    reused: int = 0
    dropped: int = 0
    unused: int = 0


def _batch(frames: list[Frame]) -> SampleBatch:
    return SampleBatch(stacked(frames), np.array([frame.version for frame in frames], np.int64))


class FifoBuffer:
    """First in, first out.

    Args:
        batch_size: number of samples in a batch.
        capacity: how many samples to hold; the oldest one makes room for the next. None: any number.
    """

    def __init__(self, batch_size: int, capacity: int | None = None) -> None:
        _check(batch_size, capacity)
        self.batch_size = batch_size
        self.counts = BufferCounts()
        self._capacity = capacity
        self._frames: deque[Frame] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, sample: Frame) -> None:
        """Takes a sample."""
        self.counts.put += 1
        self._frames.append(sample)
        if self._capacity is not None and len(self._frames) > self._capacity:
            self._frames.popleft()
            self.counts.dropped += 1

    def get(self) -> SampleBatch:
        """Returns the next batch.

        Raises:
            NothingToConsume: if there are fewer samples than a batch has.
            StreamError: if they have different shapes; they are discarded.
        """
        _require(len(self._frames), self.batch_size)
        self.counts.got += self.batch_size
        return _batch([self._frames.popleft() for _ in range(self.batch_size)])


@dataclass
class _Entry:
    frame: Frame
    number: int
    uses: int


class PriorityBuffer:
    """Samples that were used least come first, and the newest of these; each is used several times.

    Args:
        batch_size: number of samples in a batch, all different.
        reuses: how often each sample is taken out.
        capacity: how many samples to hold; one that was used most, and the oldest of these, makes room for the next.
    """

    def __init__(self, batch_size: int = 1, reuses: int = 1, capacity: int = 16) -> None:
        _check(batch_size, capacity)
        if reuses < 1:
            raise ValueError(f"reuses is {reuses}, expected a positive number")
        self.batch_size = batch_size
        self.counts = BufferCounts()
        self._reuses = reuses
        self._capacity = capacity
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, sample: Frame) -> None:
        """Takes a sample."""
        entries = self._entries
        entries.append(_Entry(sample, self.counts.put, 0))
        self.counts.put += 1
        if len(entries) > self._capacity:
            out = max(entries, key=lambda entry: (entry.uses, -entry.number))
            entries.remove(out)
            self.counts.dropped += out.uses == 0
            self.counts.unused += (self._reuses - out.uses) * (out.uses > 0)

    def get(self) -> SampleBatch:
        """Returns the next batch.

        Raises:
            NothingToConsume: if there are fewer samples than a batch has.
            StreamError: if they have different shapes.
        """
        _require(len(self._entries), self.batch_size)
        chosen = sorted(self._entries, key=lambda entry: (entry.uses, -entry.number))[: self.batch_size]
        for entry in chosen:
            self.counts.got += 1
            self.counts.reused += entry.uses > 0
            entry.uses += 1
        self._entries = [entry for entry in self._entries if entry.uses < self._reuses]
        return _batch([entry.frame for entry in chosen])


class Appending:
    """Passes the tree of each sample, or batch, to a function, such as `ReplayWriter.append`.

    Args:
        append: takes a tree.
    """

    def __init__(self, append: Callable[[Tree], Any]) -> None:
        self._append = append

    def put(self, sample: Frame | SampleBatch) -> None:
        """Takes a sample or a batch."""
        self._append(sample.tree)


def _check(batch_size: int, capacity: int | None) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected a positive number")
    if capacity is not None and capacity < batch_size:
        raise ValueError(f"capacity is {capacity}, expected at least batch_size, which is {batch_size}")


def _require(found: int, batch_size: int) -> None:
    if found < batch_size:
        raise NothingToConsume(f"the buffer has {found} samples, and a batch has {batch_size}")
