"""Inference streams on `multiprocessing.Queue`: two queues for each client, one for requests and one for answers."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Hashable, Sequence
from multiprocessing import connection, queues
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TYPE_CHECKING, Any

from headrace.errors import StreamTimeout
from headrace.streams.codec import Part

if TYPE_CHECKING:
    _Base = queues.Queue[list[bytes]]
else:
    _Base = queues.Queue

__all__ = ["LocalClientChannel", "LocalInferenceQueues", "LocalServerChannel"]

_Reader = connection.Connection


class _Queue(_Base):
    """A queue that can be waited for together with others. (`get` with a timeout holds a lock while it waits, which a
    killed process would keep.)
    """

    _reader: _Reader

    def fileno(self) -> int:
        """Returns the descriptor that is readable when a message is there."""
        return self._reader.fileno()


class LocalInferenceQueues:
    """The queues of a local stream. Make them before the processes that use them, and pass them in `InferenceStream`.

    A process that is killed while it writes a message of more than 4 KiB leaves half of the message in the pipe of its
    queue, whose reader then waits for the rest. Where processes may be killed, use another type of stream.

    Args:
        n_clients: clients of the stream; each has its own pair of queues, with the number `rank` of its
            `InferenceStream`.
        context: of multiprocessing, such as `multiprocessing.get_context("forkserver")`; None: the default.
        most_messages: messages in a queue, at most; a client that has sent so many waits in `flush`.
    """

    def __init__(self, n_clients: int = 1, context: BaseContext | None = None, most_messages: int = 1024) -> None:
        made = multiprocessing.get_context() if context is None else context
        self.requests = [_Queue(most_messages, ctx=made) for _ in range(n_clients)]
        self.answers = [_Queue(most_messages, ctx=made) for _ in range(n_clients)]

    def close(self) -> None:
        """Closes the queues in this process."""
        for each in (*self.requests, *self.answers):
            each.close()

    def __enter__(self) -> LocalInferenceQueues:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _put(to: _Queue, parts: Sequence[Part], seconds: float) -> None:
    """Adds a message; raises `queue.Full` after `seconds`."""
    to.put([bytes(part) for part in parts], timeout=max(seconds, 0.0))


def _get(source: _Queue) -> list[bytes] | None:
    try:
        return source.get_nowait()
    except queue.Empty:
        return None


class LocalClientChannel:
    """Carries the messages of one client.

    Args:
        queues: of the stream.
        rank: the pair of queues that this client has.
    """

    def __init__(self, queues: LocalInferenceQueues, rank: int) -> None:
        if not 0 <= rank < len(queues.requests):
            raise ValueError(
                f"rank is {rank}, but there are queues for {len(queues.requests)} clients; give a larger n_clients to "
                "LocalInferenceQueues"
            )
        self._requests, self._answers = queues.requests[rank], queues.answers[rank]
        # A process ends though nobody reads what it sent last.
        self._requests.cancel_join_thread()

    def send(self, parts: Sequence[Part], seconds: float) -> None:
        """See `ClientChannel`."""
        try:
            _put(self._requests, parts, seconds)
        except queue.Full:
            raise StreamTimeout(
                f"no server read one of the last {self._requests.qsize()} messages of this client in time"
            ) from None

    def receive(self) -> list[bytes] | None:
        """See `ClientChannel`."""
        return _get(self._answers)

    def sleep(self, seconds: float) -> None:
        """See `ClientChannel`."""
        connection.wait([self._answers.fileno()], seconds)

    def renew(self) -> None:
        """Another server reads the same queue."""

    def close(self) -> None:
        """The queues belong to who made them."""


class LocalServerChannel:
    """Carries the messages of a server; the peers are the ranks of the clients.

    Args:
        queues: of the stream.
    """

    def __init__(self, queues: LocalInferenceQueues) -> None:
        self._queues = queues
        self._next = 0
        for each in queues.answers:
            each.cancel_join_thread()

    def receive(self) -> tuple[Hashable, Sequence[Any]] | None:
        """See `ServerChannel`; the queues are read in turn."""
        requests = self._queues.requests
        for step in range(len(requests)):
            rank = (self._next + step) % len(requests)
            parts = _get(requests[rank])
            if parts is not None:
                self._next = rank + 1
                return rank, parts
        return None

    def send(self, peer: Hashable, parts: Sequence[Part]) -> bool:
        """See `ServerChannel`."""
        assert isinstance(peer, int)
        try:
            _put(self._queues.answers[peer], parts, 0.0)
        except queue.Full:
            return False
        return True

    def sleep(self, seconds: float) -> None:
        """See `ServerChannel`."""
        connection.wait([each.fileno() for each in self._queues.requests], max(seconds, 0.0))

    def close(self) -> None:
        """The queues belong to who made them."""
