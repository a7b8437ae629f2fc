"""A connection to one consumer: what it takes, whether the consumer is there, and what was on its way when it ended."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

from headrace.streams.codec import Part
from headrace.streams.sample import remaining
from headrace.streams.sockets import Keys, close, connected, load_zmq

__all__ = ["HIGH_WATER", "Sender", "milliseconds", "wait_for_room"]

#: Messages on either side of a connection.
HIGH_WATER = 8
_CONNECT_SECONDS = 5.0  # after which a consumer whose connection was neither made nor refused counts as absent


def milliseconds(deadline: float) -> int:
    """Returns the time left, rounded up, as libzmq takes it."""
    return min(math.ceil(remaining(deadline) * 1e3), 2**31 - 1)


class Sender:
    """A connection to a consumer, which comes back by itself.

    Args:
        address: of the consumer.
        keys: see `headrace.streams.sockets.connected`.
        high_water: how many messages may be on their way on each side.

    Attributes:
        socket: of the type PUSH.
        uncertain: see `StreamCounts`.
    """

    def __init__(self, address: str, keys: Keys | None, high_water: int) -> None:
        self.address = address
        self._zmq = load_zmq()
        events = self._zmq.Event
        self._gone = {events.DISCONNECTED, events.CLOSED, events.HANDSHAKE_FAILED_AUTH}  # CLOSED: was refused
        self.socket = connected(self._zmq.PUSH, address, keys, high_water=high_water)
        self._monitor = self.socket.get_monitor_socket(sum(self._gone) | events.HANDSHAKE_SUCCEEDED)
        self._recent: deque[int] = deque(maxlen=2 * high_water)
        self._absent: bool | None = None  # None: nobody knows yet
        self._known_by = time.monotonic() + _CONNECT_SECONDS
        self.uncertain = 0

    @property
    def absent(self) -> bool:
        """Whether the consumer was not there, when its connection was tried last, or has gone since."""
        self._look()
        return time.monotonic() > self._known_by if self._absent is None else self._absent

    @property
    def connecting(self) -> bool:
        """Whether the first connection is being made."""
        return self._absent is None and not self.absent

    def send(self, parts: Sequence[Part], n: int, deadline: float) -> bool:
        """Sends a message of `n` samples; returns whether there was a connection with room until the deadline."""
        self._look()
        self.socket.sndtimeo = milliseconds(deadline)
        try:
            self.socket.send_multipart(parts)  # copies: ZeroMQ sends later, when the arrays may have changed
        except self._zmq.Again:
            return False
        self._recent.append(n)
        return True

    def close(self, deadline: float = 0.0) -> None:
        """Sends what ZeroMQ still has until the deadline, and closes the connection."""
        self._look()
        self.socket.disable_monitor()
        self._monitor.close(0)
        if not close(self.socket, deadline):
            self.uncertain += sum(self._recent)

    def _look(self) -> None:
        """Notes what has happened to the connection, and counts what was on its way when it ended."""
        while self._monitor.events & self._zmq.POLLIN:
            number = int.from_bytes(self._monitor.recv_multipart(self._zmq.NOBLOCK)[0][:2], "little")
            self._absent = number in self._gone
            if number == self._zmq.Event.DISCONNECTED:
                self.uncertain += sum(self._recent)
                self._recent.clear()


def wait_for_room(senders: Sequence[Sender], deadline: float) -> None:
    """Waits until one of several connections takes a message, or until the deadline."""
    zmq = load_zmq()
    zmq.zmq_poll([(sender.socket, zmq.POLLOUT) for sender in senders], milliseconds(deadline))
