"""Inference streams on ZeroMQ: clients are DEALER sockets, a server is a ROUTER; addresses are given or looked up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from headrace.errors import FrameRejected, NameEntryError, StreamTimeout
from headrace.streams.codec import Part
from headrace.streams.inference.waiting import Waiting
from headrace.streams.pieces import joined, separated
from headrace.streams.sockets import AllowList, Keys, bound, close, connected, load_zmq

__all__ = ["Names", "ZmqClientChannel", "ZmqServerChannel", "subtree_of"]

_HIGH_WATER = 1024  # messages that wait on each side of a connection
_LOOK_SECONDS = 0.05  # between two looks for a server that is not there
_TIME_TO_LIVE = 10.0  # seconds after which the address of a killed server is gone


_PIECE = 2**16  # bytes of messages that are sent in one piece: each further one costs more than to copy so many


class Names(Protocol):
    """What streams need of a `NameRecordRepository`."""

    def add_subentry(
        self, name: str, value: str, *, delete_on_exit: bool = True, keepalive_ttl: float | None = None
    ) -> str:
        """Publishes a value; returns its name."""

    def get_subtree(self, name: str) -> list[str]:
        """Returns the values below a name."""

    def delete(self, name: str) -> None:
        """Removes a name."""


def subtree_of(stream: str) -> str:
    """Returns the name below which the servers of a stream publish their addresses."""
    return f"inference_stream/{stream}"


class ZmqClientChannel:
    """Carries the messages of one client.

    Args:
        find: returns the addresses of the servers; the one with the number `rank`, modulo how many there are, is taken.
        rank: number of the client.
        keys: of this client, with the key of the server; None: plain text, which loopback addresses alone allow.
        none: what to say if there is no address.
    """

    def __init__(self, find: Callable[[], Sequence[str]], rank: int, keys: Keys | None, none: str) -> None:
        self._find = find
        self._rank = rank
        self._keys = keys
        self._none = none
        self._zmq = load_zmq()
        self._address = ""
        self._socket: Any = None
        self._poll: Any = None
        self._waiting = Waiting(self._ready, self._sleep)
        self.renew()

    def send(self, parts: Sequence[Part], seconds: float) -> None:
        """See `ClientChannel`."""
        deadline = time.monotonic() + seconds
        while True:
            if self._socket is not None:
                with suppress(self._zmq.Again):
                    self._socket.send_multipart(_pieces(parts))
                    return
            left = deadline - time.monotonic()
            if left > 0:
                if self._socket is None:
                    time.sleep(min(left, _LOOK_SECONDS))  # not all repositories tell of new names
                    self.renew()
                elif not self._socket.poll(_milliseconds(min(left, 0.25)), self._zmq.POLLOUT):
                    self.renew()
            else:
                raise StreamTimeout(
                    f"nothing could be sent in time: {self._none}"
                    if self._socket is None
                    else f"nothing could be sent to the server at {self._address} in time: it is not running, does not "
                    "read, or refuses the keys of this client"
                )

    def receive(self) -> Sequence[Part] | None:
        """See `ClientChannel`."""
        if self._ready():
            with suppress(self._zmq.Again):
                return _parts(self._socket.recv_multipart())
        return None

    def sleep(self, seconds: float) -> None:
        """See `ClientChannel`."""
        if self._socket is None:
            time.sleep(min(seconds, _LOOK_SECONDS))
        else:
            self._waiting.wait(seconds)

    def _ready(self) -> bool:
        return self._socket is not None and bool(self._poll.poll(0))

    def _sleep(self, seconds: float) -> None:
        self._poll.poll(_milliseconds(seconds))

    def renew(self) -> None:
        """Looks the address up. A connected server is kept; one that is not is replaced, if there is another."""
        try:
            addresses = self._find()
        except NameEntryError:  # who knows the names cannot be reached; the server may be
            return
        if not addresses:
            return
        turn = self._rank
        if self._address in addresses:
            if self._socket is not None and self._socket.poll(0, self._zmq.POLLOUT):
                return
            turn = addresses.index(self._address) + 1
        address = addresses[turn % len(addresses)]
        if address != self._address:
            self.close()
            self._socket = connected(self._zmq.DEALER, address, self._keys, high_water=_HIGH_WATER)
            self._address = address
            self._poll = self._zmq.Poller()  # to make one costs as much as to send a message
            self._poll.register(self._socket, self._zmq.POLLIN)

    def close(self) -> None:
        """Closes the socket."""
        if self._socket is not None:
            close(self._socket)
            self._socket = None


class ZmqServerChannel:
    """Carries the messages of a server; a peer is the identity that its socket gave a connection.

    Args:
        address: "host:port" to receive on; port 0: any free port.
        keys: of the server; None: plain text, which loopback addresses alone allow.
        allowed: the clients that are let in, with keys.
        most_bytes: of a part of a message; who sends more is disconnected before memory is allocated.
        names: where to publish the address; None: nowhere.
        subtree: below which name.
    """

    def __init__(
        self,
        address: str,
        keys: Keys | None,
        allowed: AllowList | None,
        most_bytes: int,
        names: Names | None = None,
        subtree: str = "",
    ) -> None:
        self._zmq = load_zmq()
        self._socket, self.address = bound(
            self._zmq.ROUTER, address, keys, allowed, high_water=_HIGH_WATER, most_bytes=most_bytes
        )
        self._socket.router_mandatory = True  # an answer to a client that is gone is reported, and counted
        self._poll = self._zmq.Poller()
        self._poll.register(self._socket, self._zmq.POLLIN)
        self._waiting = Waiting(self._ready, self._sleep)
        self._names = names
        self._entry = ""
        if names is not None:
            try:
                self._entry = names.add_subentry(subtree, self.address, keepalive_ttl=_TIME_TO_LIVE)
            except BaseException:
                self.close()
                raise

    def receive(self) -> tuple[Hashable, Sequence[Any]] | None:
        """See `ServerChannel`."""
        if self._ready():
            with suppress(self._zmq.Again):
                peer, *pieces = self._socket.recv_multipart()
                return peer, _parts(pieces)
        return None

    def send(self, peer: Hashable, parts: Sequence[Part]) -> bool:
        """See `ServerChannel`."""
        try:
            self._socket.send_multipart([peer, *_pieces(parts)])
        except self._zmq.ZMQError:  # it is gone, or reads nothing
            return False
        return True

    def sleep(self, seconds: float) -> None:
        """See `ServerChannel`."""
        self._waiting.wait(seconds)

    def _ready(self) -> bool:
        return bool(self._poll.poll(0))

    def _sleep(self, seconds: float) -> None:
        self._poll.poll(_milliseconds(seconds))

    def close(self) -> None:
        """Closes the socket and withdraws the address."""
        if self._names is not None and self._entry:
            with suppress(NameEntryError):  # it expires
                self._names.delete(self._entry)
        self._entry = ""
        close(self._socket)


def _pieces(parts: Sequence[Part]) -> Sequence[Part]:
    """Returns what is sent: the parts, or one piece with all of them."""
    return [joined(parts)] if len(parts) == 1 or sum(map(len, parts)) < _PIECE else parts


def _parts(pieces: Sequence[bytes]) -> Sequence[Part]:
    """Returns the parts of what was received; none, which is no message and is counted as such, if it is damaged."""
    if len(pieces) != 1:
        return pieces
    try:
        return separated(pieces[0])
    except FrameRejected:
        return []


def _milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1e3))
