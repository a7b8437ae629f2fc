"""The sample stream between machines, on ZeroMQ: producers push to the address of a consumer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from headrace.streams.codec import LIMITS, Limits
from headrace.streams.inbox import MessageConsumer
from headrace.streams.outbox import BufferedProducer, Message
from headrace.streams.sample import Policy
from headrace.streams.sender import HIGH_WATER, Sender, milliseconds
from headrace.streams.sockets import AllowList, Keys, bound, close, load_zmq
from headrace.types import Tree

__all__ = ["IpSampleConsumer", "IpSampleProducer"]

_MOST_REJECTED = 100  # messages of one client, after which the others are not looked at
_MARGIN_BYTES = 2**16  # of a part over the bytes of an array, for the header


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
        high_water: int = HIGH_WATER,
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
        high_water: int = HIGH_WATER,
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
            self._socket.rcvtimeo = milliseconds(deadline)
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
