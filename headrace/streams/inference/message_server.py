"""The server of inference streams of messages; see `headrace.streams.inference.messages` for what is sent."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from headrace.errors import FrameRejected
from headrace.streams.codec import LIMITS, Frame, Limits, Part, decoded
from headrace.streams.inference.endpoint import Clock
from headrace.streams.inference.messages import MOST_AT_ONCE, content_of, fields, message
from headrace.streams.inference.server import InferenceBatch, InferenceServer
from headrace.streams.inference.trees import Layout, Leaves, copied
from headrace.types import Tree

__all__ = ["MessageServer", "ServerChannel"]

_REQUESTS = {"ids": np.ndarray, "agents": np.ndarray, "requests": object, "oldest": int}
_MOST_CLIENTS = 4096  # those that were silent for longest are forgotten
_MOST_WAITING = 2**16  # requests that are received before the first of them is taken
_MOST_UNANSWERED = 2**16  # ids of one client that are remembered


class ServerChannel(Protocol):
    """Carries the messages of a server. A peer is where a message came from, and where answers go."""

    def receive(self) -> tuple[Hashable, Sequence[Any]] | None:
        """Returns a peer and the parts of its message, or None."""

    def send(self, peer: Hashable, parts: Sequence[Part]) -> bool:
        """Sends a message without waiting; returns False if the peer is gone, or does not read."""

    def sleep(self, seconds: float) -> None:
        """Waits until a message arrives, for `seconds` at most."""

    def close(self) -> None:
        """Releases everything."""


@dataclass
class _Chunk:
    """Requests of one client that arrived together, at the time `arrived`."""

    ids: np.ndarray
    agents: np.ndarray
    leaves: Leaves
    arrived: float

    def split(self, n: int) -> tuple[_Chunk, _Chunk]:
        """Returns the first n requests, and the others."""
        return self._rows(slice(0, n)), self._rows(slice(n, None))

    def _rows(self, rows: slice | np.ndarray) -> _Chunk:
        return _Chunk(self.ids[rows], self.agents[rows], [leaf[rows] for leaf in self.leaves], self.arrived)

    def only(self, mask: np.ndarray) -> _Chunk:
        """Returns the requests where `mask`, bool `[n]`, is set."""
        return self._rows(np.flatnonzero(mask))


@dataclass
class _Client:
    """A client. id: its `client_id`; epoch: tells it from another with the same id; peer: where it is reached; seen:
    ids that ran, except those below `oldest`, for which it does not wait any more; answers: the ids and the parts of
    messages that it may not have received.
    """

    id: bytes
    epoch: int
    peer: Hashable
    chunks: deque[_Chunk] = field(default_factory=deque)
    seen: set[int] = field(default_factory=set)
    oldest: int = 0
    answers: deque[tuple[list[int], list[bytes]]] = field(default_factory=deque)

    def is_new(self, ids: np.ndarray) -> np.ndarray | None:
        """Returns which of the ids have not been seen, bool `[n]`, None if all are new; and remembers them."""
        numbers = ids.tolist()
        if min(numbers) >= self.oldest and len({*numbers}) == len(numbers) and self.seen.isdisjoint(numbers):
            self.seen.update(numbers)
            return None
        new = np.empty(len(ids), np.bool_)
        for row, number in enumerate(numbers):
            new[row] = number >= self.oldest and number not in self.seen
            self.seen.add(number)
        return new

    def forget_below(self, oldest: int) -> None:
        """Forgets ids for which the client does not wait any more."""
        if oldest > self.oldest:
            self.oldest = oldest
            self.seen = {number for number in self.seen if number >= oldest}
            while self.answers and max(self.answers[0][0]) < oldest:
                self.answers.popleft()

    def answers_to(self, ids: Collection[int]) -> Iterator[list[bytes]]:
        """Gives the messages with the answers to these requests, as far as they were answered."""
        for answered, parts in self.answers:
            if not {*answered}.isdisjoint(ids):
                yield parts


class MessageServer(InferenceServer):
    """A server that sends messages.

    Args:
        name: name of the stream.
        channel: carries the messages; it is closed with the server.
        address: where clients find it.
        example: an example of a request and of a result.
        limits: what requests may contain.
        most_rejected: rejected messages of one peer after which its messages are not read any more.
        clock: returns seconds.
    """

    def __init__(
        self,
        name: str,
        channel: ServerChannel,
        address: str = "",
        *,
        example: tuple[Tree, Tree] | None = None,
        limits: Limits = LIMITS,
        most_rejected: int = 16,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name, address, example=example, clock=clock)
        self._channel = channel
        self._limits = limits
        self._most_rejected = most_rejected
        self._clients: OrderedDict[bytes, _Client] = OrderedDict()  # the one silent for longest first
        self._turns: deque[_Client] = deque()  # clients whose requests wait, in the order of their turns
        self._n_waiting = 0
        self._arrival = clock()  # of what is received now
        self._rejections: OrderedDict[Hashable, int] = OrderedDict()
        self._constants: dict[str, Tree] = {}
        self._askers: dict[str, dict[bytes, Hashable]] = {}  # who waits for a constant that is not set

    def set_constant(self, name: str, tree: Tree) -> None:
        """See `InferenceServer`; the constant is sent when the server polls."""
        self._check_open()
        message("constant", {"name": name, "value": tree})  # raises TypeError here if it cannot be sent
        self._constants[name] = copied(tree)
        for client_id, peer in self._askers.pop(name, {}).items():
            self._send_constant(peer, client_id, name)

    @property
    def n_remembered(self) -> int:
        """How many ids of requests are remembered, so that none runs twice."""
        return sum(len(client.seen) for client in self._clients.values())

    # ---- receiving ----

    def _look(self, since: float, enough: Callable[[int], bool]) -> int:
        self._arrival = since
        for _ in range(MOST_AT_ONCE):
            if self._n_waiting >= _MOST_WAITING or enough(self._n_waiting):
                break  # the transport holds the clients back
            arrived = self._channel.receive()
            if arrived is None:
                break
            peer, parts = arrived
            if self._rejections.get(peer, 0) >= self._most_rejected:
                continue  # dropped
            try:
                self._received(peer, decoded(parts, self._limits))
            except FrameRejected:
                self._reject(peer)
        return self._n_waiting

    def _reject(self, peer: Hashable) -> None:
        self.counts.rejected += 1
        self._rejections[peer] = n = self._rejections.pop(peer, 0) + 1
        self.counts.dropped += n == self._most_rejected
        if len(self._rejections) > _MOST_CLIENTS:
            self._rejections.popitem(last=False)

    def _received(self, peer: Hashable, frame: Frame) -> None:
        kind, content = content_of(frame)
        client = self._client(peer, frame)
        if client is None:
            return
        if kind == "requests":
            fields(content, _REQUESTS)
            self._receive_requests(client, content)
        elif kind == "constant":
            fields(content, {"name": str})
            name = content["name"]
            if name in self._constants:
                self._send_constant(peer, client.id, name)
            elif name in self._askers or len(self._askers) < _MOST_CLIENTS:
                self._askers.setdefault(name, {})[client.id] = peer
        elif kind == "bye":
            self._forget(client)
        else:
            raise FrameRejected(f"a message is of the kind {kind!r}, which clients do not send")

    def _client(self, peer: Hashable, frame: Frame) -> _Client | None:
        """Returns who sent a message; None if that is a second holder of the id."""
        if not 1 <= len(frame.producer) <= 64:
            raise FrameRejected("a message has no client id")
        client = self._clients.get(frame.producer)
        if client is None:
            client = self._clients[frame.producer] = _Client(frame.producer, frame.epoch, peer)
            if len(self._clients) > _MOST_CLIENTS:
                self._forget(next(iter(self._clients.values())))
        if client.epoch != frame.epoch:
            self.counts.rejected += 1
            self._refuse(peer, frame.producer, np.empty(0, np.int64), "another client has the same client_id")
            return None
        client.peer = peer  # it may have connected again
        self._clients.move_to_end(client.id)
        return client

    def _receive_requests(self, client: _Client, found: dict[str, Any]) -> None:
        ids, agents = found["ids"], found["agents"]
        n = len(ids)
        if not n or len(agents) != n:
            raise FrameRejected("a message of requests has not as many agents as it has ids")
        client.forget_below(found["oldest"])
        if len(client.seen) + n > _MOST_UNANSWERED:
            raise FrameRejected(f"a client waits for more than {_MOST_UNANSWERED} answers")
        try:
            layout = self._requests or Layout.of_batch(found["requests"], "request")
            leaves = layout.leaves(found["requests"], n)
            self._requests = layout
        except (TypeError, ValueError) as error:
            self.counts.rejected += 1
            self._refuse(client.peer, client.id, ids, str(error))
            return
        chunk = _Chunk(ids, agents, leaves, self._arrival)
        new = client.is_new(ids)
        if new is not None:
            self.counts.duplicates += n - int(new.sum())
            for parts in client.answers_to(ids[~new].tolist()):  # they were lost
                self._channel.send(client.peer, parts)
            chunk = chunk.only(new)
        if len(chunk.ids):
            if not client.chunks:
                self._turns.append(client)
            client.chunks.append(chunk)
            self._n_waiting += len(chunk.ids)

    def _forget(self, client: _Client) -> None:
        del self._clients[client.id]
        if client.chunks:
            self._turns.remove(client)
            self._n_waiting -= sum(len(chunk.ids) for chunk in client.chunks)
            client.chunks.clear()

    # ---- batches ----

    def _oldest(self) -> float:
        return min(client.chunks[0].arrived for client in self._turns)

    def _take(self, n: int) -> InferenceBatch:
        assert self._requests is not None
        taken: list[tuple[_Client, _Chunk]] = []
        left = n
        while left:
            client = self._turns.popleft()
            while client.chunks and left:
                chunk = client.chunks.popleft()
                if len(chunk.ids) > left:
                    chunk, rest = chunk.split(left)
                    client.chunks.appendleft(rest)
                left -= len(chunk.ids)
                taken.append((client, chunk))
            if client.chunks:
                self._turns.append(client)
        self._n_waiting -= n
        chunks = [chunk for _, chunk in taken]
        return InferenceBatch(
            # In arrays of their own even if there is one chunk, because what was received is read-only.
            requests=self._requests.tree(
                [np.concatenate(leaves) for leaves in zip(*[chunk.leaves for chunk in chunks], strict=True)]
            ),
            clients=[client.id for client, chunk in taken for _ in range(len(chunk.ids))],
            agents=np.concatenate([chunk.agents for chunk in chunks]),
            ids=np.concatenate([chunk.ids for chunk in chunks]),
            places=[(client, len(chunk.ids)) for client, chunk in taken],
        )

    def _sleep(self, seconds: float) -> None:
        self._channel.sleep(seconds)

    # ---- sending ----

    def _answer(self, batch: InferenceBatch, leaves: Leaves, policy_name: str, policy_version: int) -> None:
        assert self._results is not None
        begin = 0
        for client, n in batch.places:
            rows = slice(begin, begin + n)
            begin += n
            ids = batch.ids[rows]
            content = {"ids": ids, "results": self._results.plain([leaf[rows] for leaf in leaves])}
            parts = message("answers", content, name=policy_name, version=policy_version, producer=client.id)
            client.answers.append((ids.tolist(), [bytes(part) for part in parts]))  # the results may be overwritten
            if self._channel.send(client.peer, parts):
                self.counts.answered += n
            else:
                self.counts.lost += n

    def _send(self, peer: Hashable, client_id: bytes, kind: str, content: Tree) -> None:
        self._channel.send(peer, message(kind, content, producer=client_id))

    def _refuse(self, peer: Hashable, client_id: bytes, ids: np.ndarray, reason: str) -> None:
        self._send(peer, client_id, "refused", {"ids": ids, "reason": reason[:1000]})

    def _send_constant(self, peer: Hashable, client_id: bytes, name: str) -> None:
        self._send(peer, client_id, "constant", {"name": name, "value": self._constants[name]})

    def _leave(self) -> None:
        self._channel.close()
