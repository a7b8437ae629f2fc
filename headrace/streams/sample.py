"""The interface of sample streams: producers post samples, a consumer takes them, singly or in batches.

A sample is a tree of arrays that its producer has batched along time, `[T, ...]`. Consumers batch along the second
axis, `[T, n, ...]`. Each sample is delivered at most once (or `reuses` times, if the stream says so).
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np

from headrace.errors import NothingToConsume, StreamClosed
from headrace.streams.closing import Closing
from headrace.streams.codec import Frame
from headrace.streams.packing import stacked
from headrace.types import Tree

__all__ = [
    "NullSampleProducer",
    "Policy",
    "SampleBatch",
    "SampleConsumer",
    "SampleProducer",
    "SampleSink",
    "StreamCounts",
    "remaining",
]

_log = logging.getLogger("headrace.streams")

#: What a producer does whose samples are not taken: wait until the deadline, or drop the oldest ones.
Policy = Literal["block", "drop_oldest"]


def remaining(deadline: float) -> float:
    """Returns the seconds until a time of `time.monotonic`, 0 if it has passed."""
    return max(0.0, deadline - time.monotonic())


@dataclass
class StreamCounts:
    """What became of the samples, as one side of a stream knows it.

    Args:
        posted: of a producer, all samples that were posted.
        delivered: of a producer, those that the transport has taken; of a consumer, those that its user has got.
        rejected: damaged, too large, or not what the stream transports. A message that cannot be read counts as one.
        lost: of a producer, those that it dropped or still had when it was closed; of a consumer, those that never
            arrived, as the numbers of those that did show, and in shared memory those that any process of the stream
            was writing or reading when it died.
        reused: of a consumer, deliveries of samples that had been delivered before.
        duplicates: of a consumer, those that arrived again and were ignored.
        uncertain: of a producer on sockets, those that were sent last when a connection ended, or when the producer was
            closed at its deadline; of one on a queue, those that were being written then: nobody here knows whether
            they have arrived.
    """

    posted: int = 0
    delivered: int = 0
    rejected: int = 0
    lost: int = 0
    reused: int = 0
    duplicates: int = 0
    uncertain: int = 0


@dataclass(frozen=True)
class SampleBatch:
    """Several samples as one.

    Args:
        tree: arrays `[T, n, ...]`, for samples of `[T, ...]`; numbers and strings are arrays `[n]`.
        versions: int64 `[n]`, the versions of the parameters that the samples belong to, -1: none.
    """

    tree: Tree
    versions: np.ndarray

    @property
    def version(self) -> int:
        """The oldest of the versions."""
        return int(self.versions.min())


class SampleSink(Protocol):
    """Receives samples, such as a buffer of `headrace.streams`."""

    def put(self, sample: Any) -> object:
        """Takes a sample (`Frame`) or a batch (`SampleBatch`)."""


class SampleProducer(ABC):
    """Sends samples. `post` may be called from any thread."""

    counts: StreamCounts

    @abstractmethod
    def post(self, tree: Tree, version: int = -1) -> None:
        """Buffers a sample, without copying it: change its arrays only after a flush that has sent it.

        Args:
            tree: arrays, numbers and strings nested in dicts, tuples and dataclasses.
            version: of the parameters that the sample was collected with, -1: none.

        Raises:
            TypeError, ValueError: if the version is no whole number of 64 bits.
            StreamTimeout: if as many samples wait as the producer may hold.
            StreamClosed: after `close`.
        """

    @abstractmethod
    def flush(self, timeout: float = 60.0) -> None:
        """Sends everything that was posted.

        Args:
            timeout: seconds to wait for the other side at most.

        Raises:
            StreamTimeout: if the other side did not take everything; what was not sent stays buffered.
            TypeError: for a sample that cannot be transported; it is discarded.
            ValueError: for a sample that is too large; it is discarded.
            StreamClosed: after `close`.
        """

    @abstractmethod
    def close(self, timeout: float = 5.0) -> int:
        """Sends what it can before the deadline, and releases what the producer holds. Safe to call twice.

        Args:
            timeout: seconds.

        Returns:
            How many samples this lost; they are also in `counts.lost`.
        """

    @property
    def waiting(self) -> int:
        """How many samples were posted and not yet sent."""
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if lost := self.close():
            _log.warning("a producer of samples was closed before %d samples were taken", lost)


class NullSampleProducer(SampleProducer):
    """Discards all samples."""

    def __init__(self) -> None:
        self.counts = StreamCounts()
        self._closed = False

    def post(self, tree: Tree, version: int = -1) -> None:
        """See `SampleProducer`."""
        if self._closed:
            raise StreamClosed("post() after close(); make another producer")
        self.counts.posted += 1

    def flush(self, timeout: float = 60.0) -> None:
        """See `SampleProducer`."""
        if self._closed:
            raise StreamClosed("flush() after close(); make another producer")

    def close(self, timeout: float = 5.0) -> int:
        """See `SampleProducer`."""
        self._closed = True
        return 0


class SampleConsumer(Closing):
    """Takes samples. It belongs to one thread.

    Args:
        name: the stream, for errors.
        batch_size: number of samples in what `consume` returns; None: single samples.
    """

    def __init__(self, name: str, batch_size: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected None or a positive number")
        self.name = name
        self.batch_size = batch_size
        self.counts = StreamCounts()
        self._closed = False

    def consume(self, timeout: float = 0.0) -> Frame | SampleBatch:
        """Returns the next sample, or the next batch if the consumer has a `batch_size`.

        Args:
            timeout: seconds to wait for it.

        Raises:
            NothingToConsume: if it has not arrived; samples of an incomplete batch stay.
            StreamError: if the samples of a batch have different shapes; they are discarded.
            StreamClosed: after `close`.
        """
        self._require_open("consume")
        n = 1 if self.batch_size is None else self.batch_size
        frames = self._take(n, n, time.monotonic() + timeout, borrow=self.batch_size is not None)
        if not frames:
            raise NothingToConsume(f"the sample stream {self.name!r} has no {'batch of ' * (n > 1)}{n} sample(s) yet")
        try:
            return frames[0] if self.batch_size is None else self._batch(frames)
        finally:
            self._give_back()

    def consume_to(self, buffer: SampleSink, max_iter: int = 64) -> int:
        """Moves what has arrived into a buffer, without waiting.

        Args:
            buffer: anything with `put(sample)`.
            max_iter: how many samples, or batches, to move at most.

        Returns:
            How many were moved.
        """
        self._require_open("consume_to")
        count = 0
        while count < max_iter:
            if self.batch_size is None:
                frames = self._take(1, max_iter - count, time.monotonic(), borrow=False)
                for frame in frames:
                    buffer.put(frame)
                moved = len(frames)
            else:
                try:
                    buffer.put(self.consume())
                except NothingToConsume:
                    break
                moved = 1
            if not moved:
                break
            count += moved
        return count

    def close(self) -> None:
        """Releases what the consumer holds. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._shut()

    @abstractmethod
    def _take(self, least: int, most: int, deadline: float, *, borrow: bool) -> Sequence[Frame]:
        """Returns between `least` and `most` samples, in order; none at all if there are fewer until the deadline.

        With `borrow`, the arrays are valid until `_give_back`.
        """

    def _give_back(self) -> None:
        """Ends the use of borrowed samples."""

    @abstractmethod
    def _shut(self) -> None:
        """Releases what the consumer holds; called once."""

    def _batch(self, frames: Sequence[Frame]) -> SampleBatch:
        return SampleBatch(stacked(frames), np.array([frame.version for frame in frames], np.int64))

    def _require_open(self, call: str) -> None:
        if self._closed:
            raise StreamClosed(f"{call}() of the sample stream {self.name!r} after close(); make another consumer")
