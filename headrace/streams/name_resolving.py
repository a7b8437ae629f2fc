"""The sample stream between machines whose addresses are in a name service, so that they may change."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol, get_args

from headrace.errors import NameEntryError, NameEntryNotFoundError
from headrace.streams.codec import LIMITS, Limits, Part
from headrace.streams.ip import IpSampleConsumer
from headrace.streams.outbox import BufferedProducer, Message
from headrace.streams.packing import Post
from headrace.streams.sample import Policy, remaining
from headrace.streams.sender import HIGH_WATER, Sender
from headrace.streams.sockets import AllowList, Keys
from headrace.streams.spreading import ConsumerCounts, InTurn, Spreading, ToAll, ToOne
from headrace.types import Tree

__all__ = ["NameResolvingSampleConsumer", "NameResolvingSampleProducer", "Names", "Spread"]

#: How samples are spread over the consumers of a stream: all of a producer to the one that its rank chooses, to one
#: after the other, or each to all.
Spread = Literal["rank", "round_robin", "broadcast"]
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
        high_water: int = HIGH_WATER,
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

    A consumer that is slow, was stopped or has died delays no other. By rank, a producer whose consumer has gone sends
    to another one. In turn, a consumer without room is passed over. Broadcasting follows the fastest consumer: `flush`
    waits for that one alone (with `policy="block"`), and for each of the others up to `backlog` messages wait, which
    further flushes send; a consumer that is further behind loses its oldest ones, which `consumer_counts` counts.

    Args:
        names: the name service.
        name: the stream.
        method: how to spread samples over consumers; see `Spread`. By rank, the consumer is number `rank % n` of the n
            that there are.
        rank: number of this producer.
        policy: see `BufferedProducer`, as the next two arguments.
        capacity: how many samples wait at most.
        compressed: paths of fields to compress.
        keys: of this client, with the public key of the consumers; None: plain text, only on this machine.
        high_water: how many messages may be on their way on each side of a connection.
        backlog: how many messages wait for a consumer of a broadcast that is behind.
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
        high_water: int = HIGH_WATER,
        backlog: int = 64,
        refresh: float = 1.0,
    ) -> None:
        if method not in get_args(Spread):
            raise ValueError(f"method is {method!r}, expected one of {get_args(Spread)}")
        if backlog < 1:
            raise ValueError(f"backlog is {backlog}, expected a positive number")
        super().__init__(
            name,
            policy=policy,
            capacity=capacity,
            compressed=compressed,
            pack=1 if method == "round_robin" else None,  # one sample in a message: consumers get equal shares
        )
        self._names = names
        self._to_all = ToAll(backlog)
        self._spreading: Spreading = self._to_all
        if method == "rank":
            self._spreading = ToOne(self._encoded_for, rank)
        elif method == "round_robin":
            self._spreading = InTurn(self._encoded_for, rank)
        self._keys = keys
        self._high_water = high_water
        self._refresh_seconds = refresh
        self._senders: dict[str, Sender] = {}
        self._next_refresh = 0.0
        self._uncertain = 0  # with consumers that have left

    @property
    def consumer_counts(self) -> Mapping[str, ConsumerCounts]:
        """Of a broadcast, what became of the samples for each consumer, by its address."""
        return self._to_all.counts

    def flush(self, timeout: float = 60.0) -> None:
        """See `SampleProducer`; also sends what waits for consumers that are behind, as far as they take it now."""
        try:
            super().flush(timeout)
        finally:
            if not self._closed:
                self._refresh()
                self._to_all.catch_up(self._in_order(), 0.0)
                self._count_uncertain()

    def _send(self, message: Message, deadline: float) -> bool:
        while True:
            self._refresh()
            end = min(deadline, time.monotonic() + self._refresh_seconds)  # a consumer that has moved is found then
            if self._spreading.offer(message, self._in_order(), end):
                return True
            left = remaining(deadline)
            if not left:
                return False
            if not self._senders:
                time.sleep(min(_RETRY_SECONDS, left))  # a name service has no event for the first consumer
            self._next_refresh = 0.0

    def _in_order(self) -> list[Sender]:
        return [self._senders[address] for address in sorted(self._senders)]

    def _encoded_for(self, posts: Sequence[Post], address: str, number: int) -> Sequence[Part]:
        """Returns the message of posts as it is for one consumer, with the numbers of those that it got."""
        return self._encoded(posts, self._id + address.encode(), number)

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
        self._to_all.catch_up(self._in_order(), deadline)
        for address in [*self._senders]:
            self._close(address, deadline)

    def _close(self, address: str, deadline: float = 0.0) -> None:
        sender = self._senders.pop(address)
        self._to_all.forget(address)
        sender.close(deadline)
        self._uncertain += sender.uncertain
        self._count_uncertain()

    def _count_uncertain(self) -> None:
        self.counts.uncertain = self._uncertain + sum(sender.uncertain for sender in self._senders.values())
