"""Inference streams between processes of one program: a pair of connected sockets for each client."""

from __future__ import annotations

import math
import select
import socket
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
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
    at all if its sender is killed. A hundred small messages fit, or four of 60 KB; then a client waits in `flush`.

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


class _Sockets:
    """The sockets on which one end of a stream receives; they take turns.

    Args:
        sockets: by the rank of the client.
    """

    def __init__(self, sockets: Mapping[int, socket.socket]) -> None:
        self.connections = {rank: Connection(each, _MOST_BYTES) for rank, each in sockets.items()}
        self._ranks = {each.fileno(): rank for rank, each in sockets.items()}
        self._ready: deque[int] = deque()  # those that had messages when all were looked at
        self._poll = select.poll()
        for fd in self._ranks:
            self._poll.register(fd, select.POLLIN)
        self._waiting = Waiting(self._look, self._sleep)

    def receive(self) -> tuple[int, list[memoryview]] | None:
        """Returns a rank and the parts of a message, or None."""
        while self._ready or self._look():
            rank = self._ready.popleft()
            try:
                parts, fds = self.connections[rank].receive()
            except BlockingIOError:  # another server of the stream was faster
                continue
            except FrameRejected:
                return rank, []  # which is no message, and is counted as such
            except Ended:
                raise StreamError("the program that made the queues of this local stream has ended") from None
            close_all(fds)
            return rank, parts
        return None

    def wait(self, seconds: float) -> None:
        """Waits until a message arrives, for `seconds` at most."""
        if not self._ready:
            self._waiting.wait(seconds)

    def _look(self) -> bool:
        return self._sleep(0.0)

    def _sleep(self, seconds: float) -> bool:
        found = self._poll.poll(math.ceil(max(seconds, 0.0) * 1e3))
        self._ready.extend([self._ranks[fd] for fd, _ in found])
        return bool(found)


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
        self._sockets = _Sockets({rank: queues.of_clients[rank]})
        self._connection = self._sockets.connections[rank]
        self._writable = select.poll()
        self._writable.register(self._connection, select.POLLOUT)

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
        found = self._sockets.receive()
        return None if found is None else found[1]

    def sleep(self, seconds: float) -> None:
        """See `ClientChannel`."""
        self._sockets.wait(seconds)

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
        self._sockets = _Sockets(dict(enumerate(queues.of_server)))

    def receive(self) -> tuple[Hashable, Sequence[Any]] | None:
        """See `ServerChannel`."""
        return self._sockets.receive()

    def send(self, peer: Hashable, parts: Sequence[Part]) -> bool:
        """See `ServerChannel`."""
        assert isinstance(peer, int)
        try:
            self._sockets.connections[peer].send(parts)
        except (BlockingIOError, Ended):
            return False
        return True

    def sleep(self, seconds: float) -> None:
        """See `ServerChannel`."""
        self._sockets.wait(seconds)

    def close(self) -> None:
        """The queues belong to who made them."""
