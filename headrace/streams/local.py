"""The sample stream between the processes of one program, on `multiprocessing.Queue`.

A queue is made before the processes start and passed to them. It has one lock for all writers: a process that is killed
while it writes blocks the others, which then report StreamTimeout. Where processes may be killed, use "shared_memory".
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import queue
import time
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from headrace.streams.codec import LIMITS, Limits
from headrace.streams.inbox import MessageConsumer
from headrace.streams.outbox import BufferedProducer, Message
from headrace.streams.sample import Policy, remaining
from headrace.types import Tree

__all__ = ["LocalSampleConsumer", "LocalSampleProducer", "SampleQueue"]

if TYPE_CHECKING:
    _Queue = multiprocessing.queues.Queue[list[bytes]]
else:  # it has no parameters at run time
    _Queue = multiprocessing.queues.Queue

_TICK = 0.002  # seconds between looks at what is still to be written, when a producer is closed


class SampleQueue(_Queue):
    """A `multiprocessing.Queue` that can say whether this process has written everything.

    Args:
        qsize: how many messages it holds, each of one large sample or many small ones.
        context: of the processes that use it, as `multiprocessing.get_context` returns it; None: the default.
    """

    def __init__(self, qsize: int = 64, context: BaseContext | None = None) -> None:
        super().__init__(qsize, ctx=context or multiprocessing.get_context())

    def unwritten(self, deadline: float) -> int:
        """Returns how many messages of this process are not in the pipe at the deadline; it waits for them until then.

        Afterwards, the exit of this process does not wait for them if there are any.
        """
        buffer = self._buffer  # type: ignore[attr-defined]
        while buffer and remaining(deadline):
            time.sleep(_TICK)  # the thread that writes tells nobody
        lock = self._wlock  # type: ignore[attr-defined]
        if not lock.acquire(timeout=max(_TICK, remaining(deadline))):
            self.cancel_join_thread()
            return len(buffer) + 1
        lock.release()
        if buffer:
            self.cancel_join_thread()
        return len(buffer)


class LocalSampleProducer(BufferedProducer):
    """Sends samples through a queue.

    Args:
        samples: the queue, which other producers and the consumer have too.
        name: see `BufferedProducer`, as the other arguments.
        policy: what to do while the queue is full.
        capacity: how many samples wait at most.
        compressed: paths of fields to compress.
    """

    def __init__(
        self,
        samples: SampleQueue,
        name: str = "",
        *,
        policy: Policy = "block",
        capacity: int = 4096,
        compressed: Sequence[str] = (),
    ) -> None:
        super().__init__(name, policy=policy, capacity=capacity, compressed=compressed, checksum=False)
        self._queue = _checked(samples)

    def _send(self, message: Message, deadline: float) -> bool:
        try:
            # Copies: a thread of the queue writes them later.
            self._queue.put([bytes(part) for part in message.parts], timeout=remaining(deadline))
        except queue.Full:
            return False
        return True

    def _shut(self, deadline: float) -> None:
        self.counts.lost += self._queue.unwritten(deadline)


class LocalSampleConsumer(MessageConsumer):
    """Takes samples from a queue. Several consumers share them; each keeps what it has begun to collect for a batch.

    Args:
        samples: the queue.
        name: see `MessageConsumer`, as the other arguments.
        example: a sample.
        batch_size: samples in a batch.
        limits: what a message may contain.
    """

    def __init__(
        self,
        samples: SampleQueue,
        name: str = "",
        *,
        example: Tree = None,
        batch_size: int | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        super().__init__(name, example=example, batch_size=batch_size, limits=limits, only=False)
        self._queue = _checked(samples)

    def _receive(self, deadline: float) -> Sequence[Any] | None:
        try:
            return self._queue.get(timeout=remaining(deadline))
        except queue.Empty:
            return None

    def _shut(self) -> None:
        pass


def _checked(samples: Any) -> SampleQueue:
    if not isinstance(samples, SampleQueue):
        raise TypeError(
            f"samples is a {type(samples).__name__}, expected a SampleQueue, made before the processes start: it is a "
            "multiprocessing.Queue that also knows what it has written"
        )
    return samples
