"""Inference streams of messages: what sockets and queues have in common.

A message is a `Frame` whose tree has one entry: what kind of message it is, and its content. Of clients::

    requests    ids and agents int64 [n], the requests stacked [n, ...], and the oldest id that the client waits for
    constant    the name of a constant
    bye         nothing: the client leaves

and of servers, where the name and the version of the frame are those of the policy::

    answers     ids int64 [n], the results [n, ...]
    refused     ids int64 [n] (none: all), the reason
    constant    its name and its value

A client sends a message again until its requests are answered, since the server may have been replaced. The server runs
each id at most once: it remembers the ids that a client still waits for, which the client says with every message.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from headrace.errors import FrameRejected, StreamError, StreamTimeout
from headrace.streams.codec import LIMITS, Frame, Limits, Part, decoded, encoded
from headrace.streams.inference.client import InferenceClient
from headrace.streams.inference.endpoint import Clock
from headrace.streams.inference.requests import Answers, Requests
from headrace.streams.inference.trees import copied
from headrace.types import Tree

__all__ = ["MOST_AT_ONCE", "ClientChannel", "MessageClient", "content_of", "fields", "message"]

#: Messages that are received before what they contain is dealt with.
MOST_AT_ONCE = 1024
#: What messages of servers contain.
_ANSWERS = {"ids": np.ndarray, "results": object}
_REFUSED = {"ids": np.ndarray, "reason": str}
_CONSTANT = {"name": str, "value": object}


class ClientChannel(Protocol):
    """Carries the messages of a client."""

    def send(self, parts: Sequence[Part], seconds: float) -> None:
        """Sends a message; raises StreamTimeout if that takes longer than `seconds`."""

    def receive(self) -> Sequence[Any] | None:
        """Returns the parts of a message that has arrived, or None."""

    def sleep(self, seconds: float) -> None:
        """Waits until a message arrives, for `seconds` at most."""

    def renew(self) -> None:
        """Looks whether the server has moved, when no answers come."""

    def close(self) -> None:
        """Releases everything."""


def message(
    kind: str, content: Tree, *, name: str = "", version: int = -1, producer: bytes = b"", epoch: int = 0
) -> list[Part]:
    """Returns the parts of a message."""
    return encoded(Frame({kind: content}, name, version, producer, epoch))


def content_of(frame: Frame) -> tuple[str, dict[str, Any]]:
    """Returns the kind and the content of a message; raises FrameRejected if it is not one of an inference stream."""
    tree = frame.tree
    if not isinstance(tree, dict) or len(tree) != 1:
        raise FrameRejected("a message is none of an inference stream")
    kind, content = next(iter(tree.items()))
    if not isinstance(content, dict):
        raise FrameRejected(f"a message of kind {kind!r} has no content")
    return kind, content


def fields(content: dict[str, Any], kinds: Mapping[str, type]) -> None:
    """Checks the content of a message.

    Args:
        content: what was received.
        kinds: type of each entry; `np.ndarray`: int64 `[n]`, `object`: what is checked elsewhere.

    Raises:
        FrameRejected: if an entry is missing, or of another type, or if there are more.
    """
    if content.keys() != kinds.keys():
        raise FrameRejected(f"a message has the entries {sorted(content)}, expected {sorted(kinds)}")
    for key, kind in kinds.items():
        value = content[key]
        if kind is np.ndarray:
            right = type(value) is np.ndarray and value.dtype == np.int64 and value.ndim == 1
        else:
            right = kind is object or type(value) is kind
        if not right:
            expected = "an array int64 [n]" if kind is np.ndarray else f"of type {kind.__name__}"
            raise FrameRejected(f"the entry {key!r} of a message is a {type(value).__name__}, expected {expected}")


@dataclass
class _Sent:
    """A message on its way. due: when it is sent again; interval: seconds until then."""

    ids: range
    parts: list[Part]
    due: float
    interval: float


class MessageClient(InferenceClient):
    """A client that sends messages.

    Args:
        name: name of the stream.
        channel: carries the messages; it is closed with the client.
        example: an example of a request and of a result.
        timeout: seconds that a call waits which is given no timeout.
        resend_after: seconds after which requests without answers are sent again; each time twice as long.
        limits: what answers may contain.
        client_id: for tests; None: random.
        clock: returns seconds.
    """

    def __init__(
        self,
        name: str,
        channel: ClientChannel,
        *,
        example: tuple[Tree, Tree] | None = None,
        timeout: float = 60.0,
        resend_after: float = 1.0,
        limits: Limits = LIMITS,
        client_id: bytes | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name, example=example, timeout=timeout, clock=clock)
        self.client_id = client_id or self.client_id
        self._channel = channel
        self._resend_after = resend_after
        self._limits = limits
        self._epoch = int.from_bytes(os.urandom(7), "little")  # tells a second holder of the id from this one
        self._sent: deque[_Sent] = deque()
        self._constants: dict[str, Tree] = {}

    def _send(self, requests: Requests, deadline: float) -> None:
        ids = requests.ids
        assert self._requests is not None
        content = {
            "ids": np.array(ids, np.int64),
            "agents": np.array(requests.agents, np.int64),
            "requests": self._requests.plain(requests.leaves),
            "oldest": next(iter(self._awaited), ids[0]),
        }
        parts = self._message("requests", content)
        now = self._clock()
        self._channel.send(parts, max(0.0, deadline - now))
        self._sent.append(_Sent(range(ids[0], ids[-1] + 1), parts, now + self._resend_after, self._resend_after))

    def _message(self, kind: str, content: Tree) -> list[Part]:
        return message(kind, content, producer=self.client_id, epoch=self._epoch)

    def _receive(self) -> Iterator[Answers]:
        for _ in range(MOST_AT_ONCE):
            parts = self._channel.receive()
            if parts is None:
                break
            try:
                answers = self._answers(decoded(parts, self._limits))
            except FrameRejected:
                self.counts.rejected += 1
                continue
            if answers is not None:
                yield answers
        self._send_again()

    def _answers(self, frame: Frame) -> Answers | None:
        """Returns the answers of a message; deals with a message of another kind."""
        if frame.producer != self.client_id:
            raise FrameRejected("a message is for another client")
        kind, content = content_of(frame)
        if kind == "answers":
            fields(content, _ANSWERS)
            ids = content["ids"].tolist()
            try:
                leaves = self._result_leaves(content["results"], len(ids))
            except (TypeError, ValueError) as error:
                self._refuse(ids, str(error))
                raise FrameRejected(str(error)) from None
            # Copies, which a program may change; what was received is read-only.
            return Answers(ids, [leaf.copy() for leaf in leaves], frame.name, frame.version)
        if kind == "refused":
            fields(content, _REFUSED)
            self._refuse(content["ids"].tolist() or [*self._awaited], content["reason"])
        elif kind == "constant":
            fields(content, _CONSTANT)
            self._constants[content["name"]] = copied(content["value"])
        else:
            raise FrameRejected(f"a message is of the kind {kind!r}, which servers do not send")
        return None

    def _send_again(self) -> None:
        """Sends requests again whose answers are late."""
        oldest = next(iter(self._awaited), self._next_id)
        while self._sent and self._sent[0].ids[-1] < oldest:
            self._sent.popleft()
        if not self._sent:
            return
        now = self._clock()
        late = [sent for sent in self._sent if sent.due <= now]
        if late:
            self._channel.renew()
        for sent in late:
            sent.interval *= 2
            sent.due = now + sent.interval
            n = sum(number in self._awaited for number in sent.ids)
            if n:
                try:
                    self._channel.send(sent.parts, 0.0)
                except StreamTimeout:
                    return  # as long as nothing can be sent, nothing is lost but time
                self.counts.resent += n

    def _sleep(self, seconds: float) -> None:
        due = min((sent.due for sent in self._sent), default=None)
        self._channel.sleep(seconds if due is None else max(0.0, min(seconds, due - self._clock())))

    def _constant(self, name: str, deadline: float) -> Tree:
        self._constants.pop(name, None)
        due = self._clock()
        while True:
            self.poll_responses()
            if name in self._constants:
                return self._constants.pop(name)
            now = self._clock()
            if now >= deadline:
                raise StreamTimeout(
                    f"no server of stream {self._name!r} has sent the constant {name!r} in time: {self._state()}"
                )
            if now >= due:
                self._channel.send(self._message("constant", {"name": name}), deadline - now)
                due = now + self._resend_after
            self._channel.sleep(max(0.0, min(deadline, due) - now))

    def _leave(self) -> None:
        with suppress(StreamError):  # a server that is not told forgets the client in time
            self._channel.send(self._message("bye", {}), 0.0)
        self._channel.close()
