"""A connection to one consumer: what it takes, whether the consumer is there, and what was on its way when it ended."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from headrace.streams.codec import Part
from headrace.streams.sample import remaining
from headrace.streams.sockets import Keys, close, connected, load_zmq

__all__ = ["HIGH_WATER", "Sender", "milliseconds", "wait_for_room", "wait_while_connecting"]

#: Messages on either side of a connection.
HIGH_WATER = 8
#: Bytes that the kernel holds between two processes: its buffers grow to 4 MB on the one side and 6 on the other.
_IN_KERNEL = 2**24
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
        uncertain: see `StreamCounts`.
    """

    def __init__(self, address: str, keys: Keys | None, high_water: int) -> None:
        self.address = address
        self._zmq = load_zmq()
        events = self._zmq.Event
        self._gone = {events.DISCONNECTED, events.CLOSED, events.HANDSHAKE_FAILED_AUTH}  # CLOSED: was refused
        self._socket = connected(self._zmq.PUSH, address, keys, high_water=high_water)
        self._monitor = self._socket.get_monitor_socket(sum(self._gone) | events.HANDSHAKE_SUCCEEDED)
        self._most_queued = 2 * high_water
        self._queued: deque[tuple[int, int]] = deque()  # samples and bytes of messages that may be in ZeroMQ's queues
        self._travelling: deque[tuple[int, int]] = deque()  # of those before, which may be in the kernel
        self._n_travelling_bytes = 0
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

    def poll_entries(self) -> list[tuple[Any, int]]:
        """Returns what to poll for room, and for the begin or the end of the connection."""
        return [(self._socket, self._zmq.POLLOUT), (self._monitor, self._zmq.POLLIN)]

    def send(self, parts: Sequence[Part], n: int, deadline: float) -> bool:
        """Sends a message of `n` samples; returns whether there was a connection with room until the deadline."""
        self._look()
        self._socket.sndtimeo = milliseconds(deadline)
        try:
            self._socket.send_multipart(parts)  # copies: ZeroMQ sends later, when the arrays may have changed
        except self._zmq.Again:
            return False
        self._note(n, sum(map(len, parts)))
        return True

    def close(self, deadline: float = 0.0) -> None:
        """Sends what ZeroMQ still has until the deadline, and closes the connection."""
        self._look()
        self._socket.disable_monitor()
        self._monitor.close(0)
        if not close(self._socket, deadline):
            self._lose()

    def _note(self, n: int, nbytes: int) -> None:
        """Notes that a message is on its way, and forgets those that must have arrived by now."""
        self._queued.append((n, nbytes))
        if len(self._queued) > self._most_queued:
            moved = self._queued.popleft()
            self._travelling.append(moved)
            self._n_travelling_bytes += moved[1]
            while self._n_travelling_bytes - self._travelling[0][1] > _IN_KERNEL:
                self._n_travelling_bytes -= self._travelling.popleft()[1]

    def _lose(self) -> None:
        """Counts what is on its way."""
        self.uncertain += sum(n for n, _ in self._queued) + sum(n for n, _ in self._travelling)
        self._queued.clear()
        self._travelling.clear()
        self._n_travelling_bytes = 0

    def _look(self) -> None:
        """Notes what has happened to the connection, and counts what was on its way when it ended."""
        while self._monitor.events & self._zmq.POLLIN:
            number = int.from_bytes(self._monitor.recv_multipart(self._zmq.NOBLOCK)[0][:2], "little")
            self._absent = number in self._gone
            if number == self._zmq.Event.DISCONNECTED:
                self._lose()


def wait_for_room(senders: Sequence[Sender], deadline: float) -> None:
    """Waits until one of several connections takes a message, begins or ends, or until the deadline."""
    zmq = load_zmq()
    entries = [entry for sender in senders for entry in sender.poll_entries()]
    zmq.zmq_poll(entries, milliseconds(deadline))


def wait_while_connecting(senders: Sequence[Sender], deadline: float) -> None:
    """Waits until the first connection to each consumer was made or refused, or until the deadline."""
    while (connecting := [sender for sender in senders if sender.connecting]) and remaining(deadline):
        wait_for_room(connecting, deadline)
