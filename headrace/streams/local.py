"""The sample stream between the processes of one program, on `multiprocessing.Pipe`.

A queue is made before the processes start and passed to them. It has one lock for all writers: a process that is killed
while it writes blocks the others, which then report StreamTimeout, and the reader reports StreamError. Where processes
may be killed, use "shared_memory".
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from typing import Any

from headrace.errors import StreamError
from headrace.processes.members import set_deadline
from headrace.streams.codec import LIMITS, Limits
from headrace.streams.inbox import MessageConsumer
from headrace.streams.outbox import BufferedProducer, Message
from headrace.streams.sample import Policy, remaining
from headrace.types import Tree

__all__ = ["LocalSampleConsumer", "LocalSampleProducer", "SampleQueue"]

_STALL_SECONDS = 10.0  # for the rest of a message that has begun to arrive
_TICK = 1.0  # seconds between looks of a writer that waits for its turn whether its producer was closed


class SampleQueue:
    """A bounded queue of messages between processes, for any number of writers and readers.

    It does what `multiprocessing.Queue` does. But there the thread that writes belongs to the queue, which does not say
    what it has written; here it belongs to the producer, which therefore knows what it has lost when it is closed.

    Args:
        qsize: how many messages it holds, each of one large sample or many small ones.
        context: of the processes that use it, as `multiprocessing.get_context` returns it; None: the default.
    """

    def __init__(self, qsize: int = 64, context: BaseContext | None = None) -> None:
        context = context or multiprocessing.get_context()
        self._reader, self._writer = context.Pipe()  # sockets, which can have a deadline where a pipe cannot
        set_deadline(self._reader, _STALL_SECONDS)
        self._reading, self._writing = context.Lock(), context.Lock()
        self._free = context.Semaphore(qsize)

    def reserve(self, deadline: float) -> bool:
        """Reserves the place of a message; returns whether there was one until the deadline."""
        return self._free.acquire(timeout=remaining(deadline))

    def write(self, message: Sequence[bytes], closed: threading.Event) -> bool:
        """Writes a message whose place is reserved, when it is this process's turn and readers have made room.

        Returns:
            False if `closed` was set before the turn of this process came.
        """
        while not self._writing.acquire(timeout=_TICK):
            if closed.is_set():
                return False
        try:
            self._writer.send(message)
        finally:
            self._writing.release()
        return True

    def read(self, deadline: float) -> Sequence[bytes] | None:
        """Returns the next message; None if none arrives until the deadline.

        Raises:
            StreamError: if a process was killed in the middle of a write.
        """
        if not self._reading.acquire(timeout=remaining(deadline)):
            return None
        try:
            if not self._reader.poll(remaining(deadline)):
                return None
            message: Sequence[bytes] = self._reader.recv()
        except BlockingIOError:
            raise StreamError(
                f"a message in a queue was not completed within {_STALL_SECONDS:g} s: its producer was killed or "
                "stopped while it wrote; make the queue and its processes anew, or use the type 'shared_memory'"
            ) from None
        finally:
            self._reading.release()
        self._free.release()
        return message


class _Writer:
    """Writes the messages of one producer in a thread, since a write waits for readers and has no deadline.

    Args:
        samples: where to write.
    """

    def __init__(self, samples: SampleQueue) -> None:
        self._samples = samples
        self._messages: queue.SimpleQueue[tuple[list[bytes], int] | None] = queue.SimpleQueue()
        self._unwritten = 0  # samples
        self._begun = 0  # those of them that are being written
        self._written = threading.Condition()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, message: list[bytes], n: int) -> None:
        """Writes a message of `n` samples soon; its place in the queue is reserved."""
        with self._written:
            self._unwritten += n
        self._messages.put((message, n))
        if self._thread is None:
            # A daemon: the end of the program must not wait for a reader that has gone.
            self._thread = threading.Thread(target=self._run, name="headrace-stream-writer", daemon=True)
            self._thread.start()

    def close(self, deadline: float) -> tuple[int, int]:
        """Ends the thread, and returns how many samples it has not written by the deadline, and was just writing."""
        with self._written:
            self._written.wait_for(lambda: not self._unwritten, remaining(deadline))
            begun = self._begun
            unwritten = self._unwritten - begun
            self._closed.set()
        self._messages.put(None)
        if self._thread is not None and not begun:
            self._thread.join(_TICK)
        return unwritten, begun

    def _run(self) -> None:
        while (entry := self._messages.get()) is not None:
            message, n = entry
            with self._written:
                if self._closed.is_set():
                    return
                self._begun = n
            if not self._samples.write(message, self._closed):
                return
            with self._written:
                self._unwritten -= n
                self._begun = 0
                self._written.notify_all()


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
        self._writer = _Writer(samples)

    def _send(self, message: Message, deadline: float) -> bool:
        if not self._queue.reserve(deadline):
            return False
        # Copies: they are written later.
        self._writer.put([bytes(part) for part in message.parts], len(message.posts))
        return True

    def _shut(self, deadline: float) -> None:
        unwritten, begun = self._writer.close(deadline)
        self.counts.delivered -= unwritten  # which the queue had taken, and will not have
        self.counts.lost += unwritten
        self.counts.uncertain += begun


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
        return self._queue.read(deadline)

    def _shut(self) -> None:
        pass


def _checked(samples: Any) -> SampleQueue:
    if not isinstance(samples, SampleQueue):
        raise TypeError(
            f"samples is a {type(samples).__name__}, expected a SampleQueue, made before the processes start"
        )
    return samples
