"""Assembles a trainer's next batch, on its device, while it learns from the present one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map
from headrace.errors import FrameRejected, NothingToConsume
from headrace.streams import Frame, SampleConsumer
from headrace.system.chunks import returns_of, samples_of
from headrace.system.worker import TICK
from headrace.types import Tree

__all__ = ["Batch", "Prefetch"]


@dataclass(frozen=True)
class Batch:
    """A batch to learn from.

    Args:
        samples: on the device.
        returns: discounted returns of the running episodes up to row 0, float32 `[B]`.
        frames: the chunks that it is made of.
    """

    samples: Samples
    returns: torch.Tensor
    frames: Sequence[Frame]


class Prefetch:
    """A thread that consumes chunks and makes batches of them, one ahead.

    Args:
        consumer: of the chunks; it belongs to the thread from now on.
        n_chunks: chunks of a batch.
        agent_info, state: examples, see `samples_of`.
        device: where batches are moved to.
    """

    def __init__(self, consumer: SampleConsumer, n_chunks: int, agent_info: Tree, state: Tree, device: Any) -> None:
        self._consumer = consumer
        self._n_chunks = n_chunks
        self._examples = agent_info, state
        self._device = torch.device(device)
        self._side = None if self._device.type != "cuda" else torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._ready: queue.Queue[Batch] = queue.Queue(1)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="headrace-prefetch", daemon=True)
        self._thread.start()

    def next(self, timeout: float) -> Batch | None:
        """Returns the next batch; None if there is none within `timeout` seconds.

        Raises:
            BaseException: what the thread raised.
        """
        try:
            batch = self._ready.get(timeout=timeout)
        except queue.Empty:
            if self._failure is not None:
                raise self._failure from None
            return None
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)
        return batch

    @property
    def gone(self) -> int:
        """How many chunks were accepted and did not get here: they were lost or rejected on their way."""
        counts = self._consumer.counts
        return counts.lost + counts.rejected

    def close(self) -> None:
        """Ends the thread, and closes the consumer."""
        self._stop.set()
        self._thread.join(10.0)
        self._consumer.close()

    def _run(self) -> None:
        frames: list[Frame] = []
        try:
            while not self._stop.is_set():
                with suppress(NothingToConsume, FrameRejected):  # the consumer counts what it rejects
                    frame = self._consumer.consume(TICK)
                    assert isinstance(frame, Frame)
                    frames.append(frame)
                if len(frames) == self._n_chunks:
                    self._put(self._batch(frames))
                    frames = []
        except BaseException as error:
            self._failure = error

    def _batch(self, frames: Sequence[Frame]) -> Batch:
        chunks = [frame.tree for frame in frames]
        return Batch(self._moved(samples_of(chunks, *self._examples)), returns_of(chunks), frames)

    def _put(self, batch: Batch) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._ready.put(batch, timeout=TICK)
                return

    def _moved(self, samples: Samples) -> Samples:
        """Returns the samples on the device; on a GPU the copy runs beside the computation of the present batch."""
        if self._side is None:
            return samples
        with torch.cuda.stream(self._side):
            moved: Samples = tree_map(lambda leaf: leaf.pin_memory().to(self._device, non_blocking=True), samples)
        return moved
