"""What all producers share: the buffer, the numbers of samples, packing, deadlines, and exact counts."""

from __future__ import annotations

import os
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from operator import index
from typing import NamedTuple, get_args

from headrace.errors import StreamClosed, StreamError, StreamTimeout
from headrace.streams.codec import Frame, Part, encoded
from headrace.streams.packing import Post, leading_alike, packed
from headrace.streams.sample import Policy, SampleProducer, StreamCounts, remaining
from headrace.types import Tree

__all__ = ["PACK_BYTES", "BufferedProducer", "Message", "ZippedSampleProducer", "zip_producers"]

#: Samples are packed into messages of at most this many bytes.
PACK_BYTES = 2**16
#: And of at most this many samples.
_PACK = 256


class Message(NamedTuple):
    """Samples in the form in which they are sent.

    Args:
        parts: see `headrace.streams.codec`; they refer to the arrays of the posts.
        posts: the samples, for producers that have no use for messages.
    """

    parts: Sequence[Part]
    posts: Sequence[Post]


class BufferedProducer(SampleProducer):
    """Buffers samples and sends them in order; subclasses transport messages.

    Args:
        name: the stream, which is in every message.
        policy: "block": `flush` waits for the other side until its deadline; "drop_oldest": `flush` does not wait, and
            if `capacity` samples wait, the oldest one makes room for the next.
        capacity: how many samples wait at most.
        compressed: paths of fields to compress, see `headrace.streams.codec.encoded`.
        checksum: whether messages have a checksum of the arrays.
        pack: how many samples of the same shapes go into one message; None: many.
    """

    def __init__(
        self,
        name: str,
        *,
        policy: Policy = "block",
        capacity: int = 4096,
        compressed: Sequence[str] = (),
        checksum: bool = True,
        pack: int | None = None,
    ) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"policy is {policy!r}, expected one of {get_args(Policy)}")
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, expected a positive number")
        self.name = name
        self.counts = StreamCounts()
        self.checksum = checksum
        self._pack = pack or _PACK
        self._policy = policy
        self._capacity = capacity
        self._compressed = [f"0.{path}" for path in compressed]  # the samples are the first of a tuple, see `packed`
        self._pid = os.getpid()
        self._id = os.urandom(8)
        self._sequence = 0
        self._posts: deque[Post] = deque()
        self._messages: deque[Message] = deque()
        self._n_formed = 0
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._closed = False

    @property
    def waiting(self) -> int:
        """See `SampleProducer`."""
        return len(self._posts) + self._n_formed

    def post(self, tree: Tree, version: int = -1) -> None:
        """See `SampleProducer`."""
        if type(version) is not int or not -(2**63) <= version < 2**63:
            version = _checked(version)
        with self._lock:
            if self._closed:
                self._require_open("post")
            if self.waiting >= self._capacity:
                self._make_room()
            self._posts.append(Post(tree, version, self._sequence))
            self._sequence += 1
            self.counts.posted += 1

    def flush(self, timeout: float = 60.0) -> None:
        """See `SampleProducer`."""
        if self._closed:
            self._require_open("flush")
        blocks = self._policy == "block"
        if not self._send_all(time.monotonic() + (timeout if blocks else 0.0)) and blocks:
            raise StreamTimeout(
                f"the sample stream {self.name!r} did not take {self.waiting} samples within {timeout:g} s; they stay "
                "buffered. Does its consumer run, and does it keep up? policy='drop_oldest' drops samples instead"
            )

    def close(self, timeout: float = 5.0) -> int:
        """See `SampleProducer`."""
        if self._closed:
            return 0
        deadline = time.monotonic() + timeout
        before = self.counts.lost
        try:
            while not self._send_all(deadline) and remaining(deadline):
                pass
        finally:
            with self._lock:
                self._closed = True
                self.counts.lost += len(self._posts) + self._n_formed
                self._forget()
            self._shut(deadline)
        return self.counts.lost - before

    def relay(self, messages: Sequence[Message]) -> None:
        """Appends messages of another producer to those that the next `flush` sends.

        Raises:
            StreamClosed: after `close`.
        """
        with self._lock:
            self._require_open("relay")
            for message in messages:
                while self._policy == "drop_oldest" and self.waiting >= self._capacity:
                    self._make_room()
                self._messages.append(message)
                self._n_formed += len(message.posts)
                self.counts.posted += len(message.posts)

    @abstractmethod
    def _send(self, message: Message, deadline: float) -> bool:
        """Sends a message; returns whether it could be sent until the deadline."""

    @abstractmethod
    def _shut(self, deadline: float) -> None:
        """Releases what the producer holds; called once. Samples that this loses are added to `counts.lost`."""

    def _send_all(self, deadline: float) -> bool:
        """Sends what waits; returns whether all of it could be sent until the deadline."""
        if os.getpid() != self._pid:  # both would send under one id, and the consumer drop half as duplicates
            raise StreamError(
                f"this end of the stream belongs to process {self._pid} and was used in its fork {os.getpid()}; make "
                "a producer or consumer in the process that uses it"
            )
        if not self._flushing.acquire(False) and not self._flushing.acquire(timeout=remaining(deadline)):
            return False
        try:
            while (message := self._next()) is not None:
                sent = False
                n = len(message.posts)
                try:
                    sent = self._send(message, deadline)
                except (TypeError, ValueError):
                    self.counts.rejected += n
                    raise
                except BaseException:
                    self._put_back(message)
                    raise
                if not sent:
                    self._put_back(message)
                    return False
                self.counts.delivered += n
            return True
        finally:
            self._flushing.release()

    def _put_back(self, message: Message) -> None:
        with self._lock:
            self._messages.appendleft(message)
            self._n_formed += len(message.posts)

    def _next(self) -> Message | None:
        """Returns the next message to send, which waits no longer; None if there is none."""
        with self._lock:
            if self._messages:
                message = self._messages.popleft()
                self._n_formed -= len(message.posts)
                return message
            if not self._posts:
                return None
            n = leading_alike(self._posts, self._pack, PACK_BYTES)
            posts = [self._posts.popleft() for _ in range(n)]
        try:
            return self._formed(posts)
        except TypeError:
            self.counts.rejected += n
            raise

    def _formed(self, posts: Sequence[Post]) -> Message:
        """Returns the message of posts that are alike."""
        return Message(self._encoded(posts, self._id, posts[0].sequence), posts)

    def _encoded(self, posts: Sequence[Post], producer: bytes, sequence: int) -> Sequence[Part]:
        """Returns the parts of the message of posts that are alike.

        Args:
            posts: the samples.
            producer: whose numbers they have.
            sequence: number of the first of them.
        """
        version = posts[0].version if len(posts) == 1 else -1
        frame = Frame(packed(posts), self.name, version, producer, 0, sequence)
        return encoded(frame, compressed=self._compressed, checksum=self.checksum)

    def _make_room(self) -> None:
        if self._policy == "block":
            raise StreamTimeout(
                f"{self.waiting} samples of the sample stream {self.name!r} wait to be sent, as many as `capacity` "
                "allows; call flush() and do not go on when it times out"
            )
        if self._messages:
            n = len(self._messages.popleft().posts)
            self._n_formed -= n
        else:
            n = len([self._posts.popleft()])
        self.counts.lost += n

    def _forget(self) -> None:
        self._posts.clear()
        self._messages.clear()
        self._n_formed = 0

    def _require_open(self, call: str) -> None:
        if self._closed:
            raise StreamClosed(f"{call}() of the sample stream {self.name!r} after close(); make another producer")


def _checked(version: int) -> int:
    number = index(version)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"version is {number}, expected a number of 64 bits")
    return number


class ZippedSampleProducer(BufferedProducer):
    """Sends every sample by each of several producers, and serializes it once.

    It owns the producers: they are closed with it. Post to them no longer.

    Args:
        producers: where to send samples.
        capacity: how many samples wait at most.
        compressed: paths of fields to compress, see `headrace.streams.codec.encoded`.
    """

    def __init__(
        self, producers: Sequence[SampleProducer], *, capacity: int = 4096, compressed: Sequence[str] = ()
    ) -> None:
        buffered = [producer for producer in producers if isinstance(producer, BufferedProducer)]
        names = {producer.name for producer in buffered}
        if len(names) > 1:
            raise ValueError(f"the producers send to streams of different names, {sorted(names)}; expected one name")
        checksum = any(producer.checksum for producer in buffered)
        super().__init__(next(iter(names), ""), capacity=capacity, compressed=compressed, checksum=checksum)
        self.producers = tuple(producers)

    @property
    def waiting(self) -> int:
        """How many samples wait to be sent by the producer that is furthest behind."""
        return super().waiting + max((producer.waiting for producer in self.producers), default=0)

    def flush(self, timeout: float = 60.0) -> None:
        """See `SampleProducer`; a producer that fails does not keep the others from sending."""
        deadline = time.monotonic() + timeout
        super().flush(timeout)
        errors: list[StreamError] = []
        for producer in self.producers:
            try:
                producer.flush(remaining(deadline))
            except StreamError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _send(self, message: Message, deadline: float) -> bool:
        for producer in self.producers:
            if isinstance(producer, BufferedProducer):
                producer.relay([message])
            else:
                for post in message.posts:
                    producer.post(post.tree, post.version)
        return True

    def _shut(self, deadline: float) -> None:
        for producer in self.producers:
            self.counts.lost += producer.close(remaining(deadline))


def zip_producers(producers: Sequence[SampleProducer]) -> SampleProducer:
    """Returns one producer that sends by all of these: the only one itself, or a `ZippedSampleProducer`."""
    return producers[0] if len(producers) == 1 else ZippedSampleProducer(producers)
