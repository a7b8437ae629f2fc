"""The sample stream between machines, on ZeroMQ: producers push to the address of a consumer."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from headrace.streams.codec import LIMITS, Limits, Part
from headrace.streams.inbox import MessageConsumer
from headrace.streams.outbox import BufferedProducer, Message
from headrace.streams.sample import Policy, remaining
from headrace.streams.sockets import AllowList, Keys, bound, close, connected, load_zmq
from headrace.types import Tree

__all__ = ["IpSampleConsumer", "IpSampleProducer", "Sender"]

_HIGH_WATER = 8  # messages on either side of a connection
_MOST_REJECTED = 100  # messages of one client, after which the others are not looked at
_MARGIN_BYTES = 2**16  # of a part over the bytes of an array, for the header


def _milliseconds(deadline: float) -> int:
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
        self._socket = connected(self._zmq.PUSH, address, keys, high_water=high_water)
        self._ends = self._socket.get_monitor_socket(self._zmq.EVENT_DISCONNECTED)
        self._recent: deque[int] = deque(maxlen=2 * high_water)
        self.uncertain = 0

    def send(self, parts: Sequence[Part], n: int, deadline: float) -> bool:
        """Sends a message of `n` samples; returns whether there was a connection with room until the deadline."""
        self._look()
        self._socket.sndtimeo = _milliseconds(deadline)
        try:
            self._socket.send_multipart(parts)  # copies: ZeroMQ sends later, when the arrays may have changed
        except self._zmq.Again:
            return False
        self._recent.append(n)
        return True

    def close(self, deadline: float = 0.0) -> None:
        """Sends what ZeroMQ still has until the deadline, and closes the connection."""
        self._look()
        self._socket.disable_monitor()
        self._ends.close(0)
        if not close(self._socket, deadline):
            self.uncertain += sum(self._recent)

    def _look(self) -> None:
        """Counts what was on its way when the connection ended."""
        while self._ends.events & self._zmq.POLLIN:
            self._ends.recv_multipart(self._zmq.NOBLOCK)
            self.uncertain += sum(self._recent)
            self._recent.clear()


class IpSampleProducer(BufferedProducer):
    """Sends samples to the address of a consumer.

    What ZeroMQ has accepted counts as delivered. If the consumer dies, what was on the way is lost; a consumer that
    comes back at the same address, or another one there, gets what follows.

    Args:
        address: of the consumer, "host:port".
        name: see `BufferedProducer`, as the next three arguments.
        policy: what to do while the consumer is behind, or absent.
        capacity: how many samples wait at most.
        compressed: paths of fields to compress.
        keys: of this client, with the public key of the consumer; None: plain text, only on this machine.
        high_water: how many messages may be on their way on each side of the connection.

    Raises:
        ImportError: without pyzmq.
        ValueError: for plain text to another machine.
    """

    def __init__(
        self,
        address: str,
        name: str = "",
        *,
        policy: Policy = "block",
        capacity: int = 4096,
        compressed: Sequence[str] = (),
        keys: Keys | None = None,
        high_water: int = _HIGH_WATER,
    ) -> None:
        super().__init__(name, policy=policy, capacity=capacity, compressed=compressed)
        self._sender = Sender(address, keys, high_water)

    def _send(self, message: Message, deadline: float) -> bool:
        try:
            return self._sender.send(message.parts, len(message.posts), deadline)
        finally:
            self.counts.uncertain = self._sender.uncertain

    def _shut(self, deadline: float) -> None:
        self._sender.close(deadline)
        self.counts.uncertain = self._sender.uncertain


class IpSampleConsumer(MessageConsumer):
    """Takes samples that producers send to its address.

    A client that has sent 100 messages that were rejected is no longer listened to (with keys, which tell clients
    apart).

    Args:
        address: where to listen, "host:port"; port 0: any free port.
        name: see `MessageConsumer`, as the next three arguments.
        example: a sample.
        batch_size: samples in a batch.
        limits: what a message may contain.
        keys: of this server; None: plain text, only on this machine.
        allowed: the producers that may send, with keys.
        high_water: how many messages may wait on each side of a connection.

    Attributes:
        address: where producers send to, "tcp://host:port".

    Raises:
        ImportError: without pyzmq.
        StreamError: if the port is in use.
        ValueError: for plain text on an address that other machines can reach.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        name: str = "",
        *,
        example: Tree = None,
        batch_size: int | None = None,
        limits: Limits = LIMITS,
        keys: Keys | None = None,
        allowed: AllowList | None = None,
        high_water: int = _HIGH_WATER,
    ) -> None:
        super().__init__(name, example=example, batch_size=batch_size, limits=limits)
        self._zmq = load_zmq()
        most = limits.payload_bytes + _MARGIN_BYTES
        self._socket, self.address = bound(
            self._zmq.PULL, address, keys, allowed, high_water=high_water, most_bytes=most
        )
        self._named = keys is not None
        self._sender = ""
        self._rejected: Counter[str] = Counter()

    def _receive(self, deadline: float) -> Sequence[Any] | None:
        while True:
            self._socket.rcvtimeo = _milliseconds(deadline)
            try:
                frames = self._socket.recv_multipart(copy=False)
            except self._zmq.Again:
                return None
            if self._named:
                self._sender = frames[0].get("User-Id")
                if self._rejected[self._sender] >= _MOST_REJECTED:
                    self.counts.rejected += 1
                    continue
            return [frame.buffer for frame in frames]

    def _reject(self, parts: Sequence[Any], error: Exception) -> None:
        self.counts.rejected += 1
        if self._named:
            self._rejected[self._sender] += 1

    def _shut(self) -> None:
        close(self._socket)
