"""The sample stream between machines whose addresses are in a name service, so that they may change."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol, get_args

from headrace.errors import NameEntryError, NameEntryNotFoundError
from headrace.streams.codec import LIMITS, Frame, Limits, encoded
from headrace.streams.ip import IpSampleConsumer, Sender
from headrace.streams.outbox import BufferedProducer, Message
from headrace.streams.packing import Post, packed
from headrace.streams.sample import Policy, remaining
from headrace.streams.sockets import AllowList, Keys
from headrace.types import Tree

__all__ = ["NameResolvingSampleConsumer", "NameResolvingSampleProducer", "Names", "Spread"]

#: How samples are spread over the consumers of a stream: all of a producer to the one that its rank chooses, to one
#: after the other, or each to all.
Spread = Literal["rank", "round_robin", "broadcast"]
_HIGH_WATER = 8
_RETRY_SECONDS = 0.05  # between looks for a first consumer


class Names(Protocol):
    """What of a `headrace.services.NameRecordRepository` streams use."""

    def add_subentry(self, name: str, value: str, *, keepalive_ttl: float | None = None) -> str:
        """Adds a value under a new name below `name`, which it returns; kept alive as long as this process lives."""

    def get_subtree(self, name: str) -> list[str]:
        """Returns the values below `name`."""

    def delete(self, name: str) -> Any:
        """Deletes a name."""


def _root(name: str) -> str:
    return f"sample_streams/{name}/consumers"


class NameResolvingSampleConsumer(IpSampleConsumer):
    """Takes samples, and says in a name service where.

    Args:
        names: the name service.
        name: the stream; one stream's name must not continue another's after a slash.
        address: where to listen, an address of this machine that producers can reach; port 0: any free port.
        example: see `IpSampleConsumer`, as the other arguments.
        batch_size: samples in a batch.
        limits: what a message may contain.
        keys: of this server.
        allowed: the producers that may send.
        high_water: how many messages may wait on each side of a connection.
        ttl: seconds after which the record of a consumer that died is gone.
    """

    def __init__(
        self,
        names: Names,
        name: str,
        *,
        address: str = "127.0.0.1:0",
        example: Tree = None,
        batch_size: int | None = None,
        limits: Limits = LIMITS,
        keys: Keys | None = None,
        allowed: AllowList | None = None,
        high_water: int = _HIGH_WATER,
        ttl: float = 15.0,
    ) -> None:
        if any(wildcard in address for wildcard in ("*:", "0.0.0.0:", "[::]:")):
            raise ValueError(f"address is {address!r}, which producers cannot connect to; name one of this machine's")
        super().__init__(
            address,
            name,
            example=example,
            batch_size=batch_size,
            limits=limits,
            keys=keys,
            allowed=allowed,
            high_water=high_water,
        )
        self._names = names
        try:
            self._entry = names.add_subentry(_root(name), self.address, keepalive_ttl=ttl)
        except BaseException:
            super()._shut()
            raise

    def _shut(self) -> None:
        with suppress(NameEntryError, OSError):  # gone, or the service is not there
            self._names.delete(self._entry)
        super()._shut()


class NameResolvingSampleProducer(BufferedProducer):
    """Sends samples to the consumers that a name service lists, which may come, go and move.

    Args:
        names: the name service.
        name: the stream.
        method: how to spread samples over consumers; see `Spread`. By rank, the consumer is number `rank % n` of the n
            that there are. Broadcasting waits for the slowest.
        rank: number of this producer.
        policy: see `BufferedProducer`, as the next two arguments.
        capacity: how many samples wait at most.
        compressed: paths of fields to compress.
        keys: of this client, with the public key of the consumers; None: plain text, only on this machine.
        high_water: how many messages may be on their way on each side of a connection.
        refresh: seconds between looks into the name service.
    """

    def __init__(
        self,
        names: Names,
        name: str,
        *,
        method: Spread = "rank",
        rank: int = 0,
        policy: Policy = "block",
        capacity: int = 4096,
        compressed: Sequence[str] = (),
        keys: Keys | None = None,
        high_water: int = _HIGH_WATER,
        refresh: float = 1.0,
    ) -> None:
        if method not in get_args(Spread):
            raise ValueError(f"method is {method!r}, expected one of {get_args(Spread)}")
        # One after the other: one sample in a message, which gets its number when it is known who it goes to.
        rotates = method == "round_robin"
        super().__init__(name, policy=policy, capacity=capacity, compressed=compressed, pack=1 if rotates else None)
        self._names = names
        self._method = method
        self._turn = rank
        self._keys = keys
        self._high_water = high_water
        self._refresh_seconds = refresh
        self._senders: dict[str, Sender] = {}
        self._next_refresh = 0.0
        self._numbers: dict[str, int] = defaultdict(int)
        self._sent_to: tuple[Message | None, set[str]] = (None, set())

    def _send(self, message: Message, deadline: float) -> bool:
        while True:
            self._refresh()
            end = min(deadline, time.monotonic() + self._refresh_seconds)  # a consumer that has moved is found then
            if self._offered(message, end):
                return True
            left = remaining(deadline)
            if not left:
                return False
            if not self._senders:
                time.sleep(min(_RETRY_SECONDS, left))
            self._next_refresh = 0.0

    def _offered(self, message: Message, deadline: float) -> bool:
        senders = [self._senders[address] for address in sorted(self._senders)]
        if not senders:
            return False
        if self._method == "rank":
            return senders[self._turn % len(senders)].send(message.parts, len(message.posts), deadline)
        if self._method == "broadcast":
            return self._broadcast(message, senders, deadline)
        first = self._turn
        self._turn += 1
        for number, sender in enumerate(senders[(first + index) % len(senders)] for index in range(len(senders))):
            (post,) = message.posts
            # Those that come first wait for their turn; the others only step in for one that does not take anything.
            if sender.send(self._numbered(post, sender.address), 1, deadline if number == 0 else 0.0):
                self._numbers[sender.address] += 1
                return True
        return False

    def _broadcast(self, message: Message, senders: Sequence[Sender], deadline: float) -> bool:
        if self._sent_to[0] is not message:
            self._sent_to = (message, set())
        done = self._sent_to[1]
        for sender in senders:
            if sender.address not in done and sender.send(message.parts, len(message.posts), deadline):
                done.add(sender.address)
        return done.issuperset(sender.address for sender in senders)

    def _formed(self, posts: Sequence[Post]) -> Message:
        return Message((), posts) if self._method == "round_robin" else super()._formed(posts)

    def _numbered(self, post: Post, address: str) -> Sequence[Any]:
        """Returns the message of one sample, numbered among those that go to this address."""
        producer = self._id + address.encode()
        frame = Frame(packed([post]), self.name, post.version, producer, 0, self._numbers[address])
        return encoded(frame, compressed=self._compressed)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._next_refresh:
            return
        self._next_refresh = now + self._refresh_seconds
        try:
            found = {*self._names.get_subtree(_root(self.name))}
        except NameEntryNotFoundError:
            found = set()
        except (NameEntryError, OSError):  # the service is not there: go on with what is known
            return
        for address in self._senders.keys() - found:
            self._close(address)
        for address in found - self._senders.keys():
            self._senders[address] = Sender(address, self._keys, self._high_water)

    def _shut(self, deadline: float) -> None:
        for address in [*self._senders]:
            self._close(address, deadline)

    def _close(self, address: str, deadline: float = 0.0) -> None:
        sender = self._senders.pop(address)
        sender.close(deadline)
        self.counts.uncertain += sender.uncertain
