"""What consumers of messages share: decoding, checks, duplicates and gaps, and the samples that have arrived."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

from headrace.errors import FrameRejected
from headrace.streams.codec import LIMITS, Frame, Limits
from headrace.streams.packing import Sequences
from headrace.streams.reader import SampleReader
from headrace.streams.sample import SampleConsumer
from headrace.types import Tree

__all__ = ["MessageConsumer"]


class MessageConsumer(SampleConsumer):
    """Takes samples from messages; subclasses receive these.

    Args:
        name: the stream; messages of other streams are rejected.
        example: a sample, for its keys, dtypes and dataclasses; None: samples of any kind, dataclasses as dicts.
        batch_size: see `SampleConsumer`.
        limits: what a message may contain.
        only: whether this is the only consumer, so that numbers that do not arrive are lost samples.
    """

    def __init__(
        self,
        name: str,
        *,
        example: Tree = None,
        batch_size: int | None = None,
        limits: Limits = LIMITS,
        only: bool = True,
    ) -> None:
        super().__init__(name, batch_size)
        self._reader = SampleReader(name, example, limits)
        self._only = only
        self._sequences = Sequences()
        self._ready: deque[Frame] = deque()

    @abstractmethod
    def _receive(self, deadline: float) -> Sequence[Any] | None:
        """Returns the parts of a message; None if none arrives until the deadline."""

    def _take(self, least: int, most: int, deadline: float, *, borrow: bool) -> Sequence[Frame]:
        ready = self._ready
        while len(ready) < most:
            parts = self._receive(deadline if len(ready) < least else 0.0)
            if parts is None:
                break
            try:
                self._accept(parts)
            except FrameRejected as error:
                self._reject(parts, error)
                if time.monotonic() > deadline:  # who sends garbage must not keep this call for ever
                    break
        if len(ready) < least:
            return []
        count = min(most, len(ready))
        self.counts.delivered += count
        return [ready.popleft() for _ in range(count)]

    def _accept(self, parts: Sequence[Any]) -> None:
        message, n = self._reader.opened(parts)
        before, missing = self._sequences.arrived(message.producer, message.epoch, message.sequence, n)
        self.counts.duplicates += before
        if self._only:
            self.counts.lost += missing
        try:
            samples = self._reader.samples(message, before, n)
        except FrameRejected:
            self.counts.rejected += n - before - 1  # and one as a message
            raise
        self._ready.extend(samples)

    def _reject(self, parts: Sequence[Any], error: FrameRejected) -> None:
        """Counts a message that was rejected."""
        self.counts.rejected += 1
