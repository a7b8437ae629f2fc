"""Inference streams between processes of one program: a pair of connected sockets for each client."""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Hashable, Sequence
from types import TracebackType
from typing import Any

from headrace.errors import FrameRejected, StreamError, StreamTimeout
from headrace.streams.codec import LIMITS, Part
from headrace.streams.connections import Connection, Ended
from headrace.streams.inference.control import close_all
from headrace.streams.inference.waiting import Waiting

__all__ = ["LocalClientChannel", "LocalInferenceQueues", "LocalServerChannel"]

_MOST_BYTES = 2 * LIMITS.payload_bytes  # of a message; what it may contain is checked by who receives it


class LocalInferenceQueues:
    """The queues of a local stream. Make them before the processes that use them, and pass them in `InferenceStream`.

    A queue is a Unix socket of this process and its children, under any start method. A message arrives whole, or not
    at all if its sender is killed. About a hundred messages fit, then a client waits in `flush`.

    Args:
        n_clients: clients of the stream; each has its own pair of queues, with the number `rank` of its
            `InferenceStream`.
    """

    def __init__(self, n_clients: int = 1) -> None:
        pairs = [Connection.pair() for _ in range(n_clients)]
        self.of_clients: list[socket.socket] = [client for client, _ in pairs]
        self.of_server: list[socket.socket] = [server for _, server in pairs]
        for each in (*self.of_clients, *self.of_server):
            each.setblocking(False)

    def close(self) -> None:
        """Closes the queues in this process."""
        for each in (*self.of_clients, *self.of_server):
            each.close()

    def __enter__(self) -> LocalInferenceQueues:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _received(connection: Connection) -> list[memoryview] | None:
    try:
        parts, fds = connection.receive()
    except BlockingIOError:
        return None
    except FrameRejected:
        return []  # which is no message, and is counted as such
    except Ended:
        raise StreamError("the program that made the queues of this local stream has ended") from None
    close_all(fds)
    return parts


class _Sleep:
    """Waits until one of some sockets is readable."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._poll = select.poll()
        for each in sockets:
            self._poll.register(each, select.POLLIN)

    def ready(self) -> bool:
        return bool(self._poll.poll(0))

    def sleep(self, seconds: float) -> None:
        self._poll.poll(math.ceil(max(seconds, 0.0) * 1e3))


class LocalClientChannel:
    """Carries the messages of one client.

    Args:
        queues: of the stream.
        rank: the pair of queues that this client has.
    """

    def __init__(self, queues: LocalInferenceQueues, rank: int) -> None:
        if not 0 <= rank < len(queues.of_clients):
            raise ValueError(
                f"rank is {rank}, but there are queues for {len(queues.of_clients)} clients; give a larger n_clients "
                "to LocalInferenceQueues"
            )
        self._socket = queues.of_clients[rank]
        self._connection = Connection(self._socket, _MOST_BYTES)
        poll = _Sleep([self._socket])
        self._waiting = Waiting(poll.ready, poll.sleep)
        self._writable = select.poll()
        self._writable.register(self._socket, select.POLLOUT)

    def send(self, parts: Sequence[Part], seconds: float) -> None:
        """See `ClientChannel`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._connection.send(parts)
                return
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise StreamTimeout(
                        "no server read any of the last messages of this client in time, and its queue is full"
                    ) from None
                self._writable.poll(math.ceil(left * 1e3))

    def receive(self) -> list[memoryview] | None:
        """See `ClientChannel`."""
        return _received(self._connection)

    def sleep(self, seconds: float) -> None:
        """See `ClientChannel`."""
        self._waiting.wait(seconds)

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
        self._connections = [Connection(each, _MOST_BYTES) for each in queues.of_server]
        self._next = 0
        poll = _Sleep(queues.of_server)
        self._waiting = Waiting(poll.ready, poll.sleep)

    def receive(self) -> tuple[Hashable, Sequence[Any]] | None:
        """See `ServerChannel`; the queues are read in turn."""
        n = len(self._connections)
        for step in range(n):
            rank = (self._next + step) % n
            parts = _received(self._connections[rank])
            if parts is not None:
                self._next = rank + 1
                return rank, parts
        return None

    def send(self, peer: Hashable, parts: Sequence[Part]) -> bool:
        """See `ServerChannel`."""
        assert isinstance(peer, int)
        try:
            self._connections[peer].send(parts)
        except (BlockingIOError, Ended):
            return False
        return True

    def sleep(self, seconds: float) -> None:
        """See `ServerChannel`."""
        self._waiting.wait(seconds)

    def close(self) -> None:
        """The queues belong to who made them."""
