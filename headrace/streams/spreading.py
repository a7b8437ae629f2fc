"""How a producer spreads samples over the consumers of a stream, so that one that is slow or dead delays no other.

A consumer is *absent* if its connection was refused or has ended. Its record may stay in the name service for a while.

- `ToOne` sends all to the consumer that a rank chooses among those that are not absent.
- `InTurn` sends to one after the other, and passes over those that are absent or have no room.
- `ToAll` gives each consumer a queue of its own. It goes on as soon as the fastest one has taken a message; one that is
  too far behind the fastest loses its oldest messages, which are counted for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.streams.codec import Part
from headrace.streams.outbox import Message
from headrace.streams.packing import Post
from headrace.streams.sample import remaining
from headrace.streams.sender import Sender, wait_for_room, wait_while_connecting

__all__ = ["ConsumerCounts", "Encode", "InTurn", "Spreading", "ToAll", "ToOne"]

#: Returns the message of posts as it is for one consumer: from its address and the number of the first post there.
Encode = Callable[[Sequence[Post], str, int], Sequence[Part]]


@dataclass
class ConsumerCounts:
    """What became of the samples of a broadcast for one of its consumers.

    Args:
        sent: those that its connection has taken.
        waiting: those that wait because it is behind.
        lost: those that it was too far behind for, or that waited when it left.
    """

    sent: int = 0
    waiting: int = 0
    lost: int = 0


class Spreading(ABC):
    """Decides which consumers get a message."""

    @abstractmethod
    def offer(self, message: Message, senders: Sequence[Sender], deadline: float) -> bool:
        """Sends a message; returns whether it could be sent until the deadline, and may then be forgotten."""


class _Numbered(Spreading):
    """Numbers samples for each consumer, so that it sees no gaps where others got what is missing.

    Args:
        encode: see `Encode`.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._numbers: dict[str, int] = defaultdict(int)

    def _sent(self, message: Message, sender: Sender, deadline: float) -> bool:
        n = len(message.posts)
        parts = self._encode(message.posts, sender.address, self._numbers[sender.address])
        if sender.send(parts, n, deadline):
            self._numbers[sender.address] += n
            return True
        return False


class ToOne(_Numbered):
    """Sends everything to number `rank % n` of the n consumers that are not absent.

    Args:
        encode: see `Encode`; used from the first change of the consumer on.
        rank: number of the producer.
    """

    def __init__(self, encode: Encode, rank: int) -> None:
        super().__init__(encode)
        self._rank = rank
        self._first = ""
        self._moved = False

    def offer(self, message: Message, senders: Sequence[Sender], deadline: float) -> bool:
        """See `Spreading`."""
        present = [sender for sender in senders if not sender.absent] or senders
        if not present:
            return False
        sender = present[self._rank % len(present)]
        self._first = self._first or sender.address
        self._moved = self._moved or sender.address != self._first
        if self._moved:
            return self._sent(message, sender, deadline)
        return sender.send(message.parts, len(message.posts), deadline)


class InTurn(_Numbered):
    """Sends one sample to one consumer and the next to the next one.

    Args:
        encode: see `Encode`.
        first: number of the consumer that is first.
    """

    def __init__(self, encode: Encode, first: int) -> None:
        super().__init__(encode)
        self._turn = first

    def offer(self, message: Message, senders: Sequence[Sender], deadline: float) -> bool:
        """See `Spreading`."""
        if not senders:
            return False
        first = self._turn % len(senders)
        in_turn = [*senders[first:], *senders[:first]]
        wait_while_connecting(in_turn[:1], deadline)
        while True:
            for sender in in_turn:  # the first one that has room
                if self._sent(message, sender, 0.0):
                    self._turn += 1
                    return True
            if not remaining(deadline):
                return False
            wait_for_room(in_turn, deadline)


class ToAll(Spreading):
    """Sends each message to all consumers.

    Args:
        backlog: how many messages wait for a consumer that is behind the fastest one.
    """

    def __init__(self, backlog: int) -> None:
        self.counts: dict[str, ConsumerCounts] = defaultdict(ConsumerCounts)
        self._backlog = backlog
        self._queues: dict[str, deque[tuple[Sequence[Part], int]]] = {}
        self._offered: Message | None = None  # that nobody has taken yet: its arrays are those of the posts
        self._entry: tuple[Sequence[Part], int] = ((), 0)

    def offer(self, message: Message, senders: Sequence[Sender], deadline: float) -> bool:
        """See `Spreading`."""
        if message is not self._offered:
            self._withdraw()
            self._offered, self._entry = message, (message.parts, len(message.posts))
            for address in self._queues:
                self._append(address, self._entry)
        for sender in senders:
            if sender.address not in self._queues:
                self._queues[sender.address] = deque()
                self._append(sender.address, self._entry)
        wait_while_connecting(senders, deadline)
        while True:
            if any([self._caught_up(sender) for sender in senders]):
                self._settle()
                return True
            if not senders or not remaining(deadline):
                return False
            wait_for_room(senders, deadline)

    def forget(self, address: str) -> None:
        """Ends the queue of a consumer that has left."""
        for _, n in self._queues.pop(address, ()):
            self._lose(address, n)

    def catch_up(self, senders: Sequence[Sender], deadline: float) -> None:
        """Sends what waits for consumers that are behind, as far as they take it; waits for them until the deadline."""
        behind = [sender for sender in senders if sender.address in self._queues]
        while behind := [sender for sender in behind if not self._caught_up(sender)]:
            waited_for = [sender for sender in behind if not sender.absent]
            if not waited_for or not remaining(deadline):
                return
            wait_for_room(waited_for, deadline)

    def _caught_up(self, sender: Sender) -> bool:
        """Sends what waits for a consumer, as far as it takes it now; returns whether that is everything."""
        queue, counts = self._queues[sender.address], self.counts[sender.address]
        while queue:
            parts, n = queue[0]
            if not sender.send(parts, n, 0.0):
                return False
            queue.popleft()
            counts.waiting -= n
            counts.sent += n
        return True

    def _settle(self) -> None:
        """Ends the offer of a message; consumers that are behind get a copy, as the producer may change its arrays."""
        entry, copy = self._entry, None
        for address, queue in self._queues.items():
            if queue and queue[-1] is entry:
                copy = copy or ([bytes(part) for part in entry[0]], entry[1])
                queue[-1] = copy
            while len(queue) > self._backlog:
                self._lose(address, queue.popleft()[1])
        self._offered = None

    def _withdraw(self) -> None:
        """Takes a message back that the producer has dropped before anybody took it."""
        if self._offered is not None:
            for address, queue in self._queues.items():
                if queue and queue[-1] is self._entry:
                    self._lose(address, queue.pop()[1])
        self._offered = None

    def _append(self, address: str, entry: tuple[Sequence[Part], int]) -> None:
        self._queues[address].append(entry)
        self.counts[address].waiting += entry[1]

    def _lose(self, address: str, n: int) -> None:
        self.counts[address].waiting -= n
        self.counts[address].lost += n
