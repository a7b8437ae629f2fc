"""The sample stream between processes of one machine, in shared memory.

The first consumer makes the memory: slots of a fixed size, each for one large sample or for many small ones. Producers
and further consumers find it by the name of the stream, in any order of starting and whether or not they are related.
A batch is put together from the slots, so each sample is copied twice: once in and once out.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, get_args

from headrace.buffers.tree import tree_map
from headrace.errors import FrameRejected, StreamError
from headrace.streams.codec import LIMITS, Frame, Limits, Part, encoded
from headrace.streams.outbox import PACK_BYTES, BufferedProducer, Message
from headrace.streams.packing import Post, packed
from headrace.streams.reader import SampleReader, copied
from headrace.streams.rendezvous import Host, Inquiry
from headrace.streams.sample import Policy, SampleConsumer, remaining
from headrace.streams.slots import Claim, Layout, Order, Segment
from headrace.types import Tree

__all__ = ["SharedMemorySampleConsumer", "SharedMemorySampleProducer"]

_MAGIC = b"HRSS1"
_REQUEST = struct.Struct("<5sq")  # bytes of the message that has to fit, 0 from a consumer
_ANSWER = struct.Struct("<5s4q")
_ALIGNMENT = 64
_LEAST_SLOT = PACK_BYTES + 2**15  # small samples are packed, with headers, into this much
_MOST_PARTS = 4096
_LOOK_SECONDS = 0.5  # between looks whether a consumer lives
_ATTACH_SECONDS = 0.2  # for the answer of a process that is there


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class _Places(NamedTuple):
    """Where the parts of a message are in a slot: a head with their number and their sizes, and each part, aligned."""

    head: bytes
    bounds: tuple[tuple[int, int], ...]
    nbytes: int


@lru_cache(256)
def _places(sizes: tuple[int, ...]) -> _Places:
    head = struct.pack(f"<{1 + len(sizes)}q", len(sizes), *sizes)
    offset = _aligned(len(head))
    bounds = []
    for size in sizes:
        bounds.append((offset, offset + size))
        offset += _aligned(size)
    return _Places(head, tuple(bounds), offset)


def _placed(parts: Sequence[Part]) -> _Places:
    return _places(tuple(map(len, parts)))


def _write(slot: memoryview, parts: Sequence[Part], places: _Places) -> None:
    """Copies a message into a slot."""
    slot[: len(places.head)] = places.head
    for part, (first, stop) in zip(parts, places.bounds, strict=True):
        slot[first:stop] = part


def _read(message: memoryview) -> list[memoryview]:
    """Returns the parts of a message; raises FrameRejected if its sizes are not those of a message."""
    n = int.from_bytes(message[:8], "little") if len(message) >= 8 else 0
    if not 0 < n <= min(_MOST_PARTS, len(message) // 8 - 1):
        raise FrameRejected("a slot has no message")
    places = _read_places(bytes(message[: 8 + 8 * n]))
    if places.nbytes > len(message):
        raise FrameRejected("a slot has a message whose sizes are damaged")
    return [message[first:stop] for first, stop in places.bounds]


@lru_cache(256)
def _read_places(head: bytes) -> _Places:
    sizes = struct.unpack_from(f"<{len(head) // 8 - 1}q", head, 8)
    if min(sizes) < 0:
        raise FrameRejected("a slot has a message whose sizes are damaged")
    return _places(sizes)


def _attached(found: tuple[bytes, list[int]], role: Any, name: str) -> Segment:
    content, fds = found
    if len(content) != _ANSWER.size or content[:5] != _MAGIC or len(fds) != 5:
        raise StreamError(f"the sample stream {name!r} is of another version of headrace; use the same on both sides")
    return Segment(Layout(*_ANSWER.unpack(content)[1:]), role, fds)


class SharedMemorySampleProducer(BufferedProducer):
    """Sends samples through shared memory.

    Args:
        name: the stream, which names it among those of this user on this machine.
        policy: what to do while all slots are full, or while there is no consumer; see `BufferedProducer`.
        capacity: how many samples wait at most.
        compressed: paths of fields to compress.
    """

    def __init__(
        self, name: str, *, policy: Policy = "block", capacity: int = 4096, compressed: Sequence[str] = ()
    ) -> None:
        super().__init__(name, policy=policy, capacity=capacity, compressed=compressed, checksum=False)
        self._segment: Segment | None = None
        self._inquiry: Inquiry | None = None
        self._next_look = 0.0

    def _send(self, message: Message, deadline: float) -> bool:
        places = _placed(message.parts)
        needed = places.nbytes
        while True:
            segment = self._attached(needed, deadline)
            if segment is None:
                return False
            if needed > segment.layout.slot_bytes:
                raise ValueError(
                    f"a sample of {needed} bytes does not fit into the slots of the sample stream {self.name!r}, of "
                    f"{segment.layout.slot_bytes}; give its consumer the largest sample as `example`, or `slot_bytes`"
                )
            slot = segment.claim_free(len(message.posts), min(deadline, time.monotonic() + _LOOK_SECONDS))
            if slot is not None:
                try:
                    _write(segment.slots[slot], message.parts, places)
                except BaseException:
                    segment.discard(slot)
                    raise
                segment.publish(slot, needed)
                return True
            if not remaining(deadline):
                return False

    def _attached(self, needed: int, deadline: float) -> Segment | None:
        now = time.monotonic()
        if self._segment is not None and now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._leave(only_if_alone=True)
        if self._segment is None:
            if self._inquiry is None:
                self._inquiry = Inquiry(self.name, _REQUEST.pack(_MAGIC, needed))
            found = self._inquiry.answer(deadline)
            if found is None:
                return None
            self._inquiry = None
            self._segment = _attached(found, "producer", self.name)
            self._next_look = time.monotonic() + _LOOK_SECONDS
        return self._segment

    def _leave(self, *, only_if_alone: bool) -> None:
        """Leaves the memory, and counts what nobody will read there if all consumers have gone."""
        segment = self._segment
        if segment is not None:
            alone = not segment.has_consumers()
            if alone:
                self.counts.lost += segment.unread()
            if alone or not only_if_alone:
                self._segment = None
                segment.leave()

    def _shut(self, deadline: float) -> None:
        if self._inquiry is not None:
            self._inquiry.close()
        self._leave(only_if_alone=False)


class SharedMemorySampleConsumer(SampleConsumer):
    """Takes samples from shared memory. Several consumers share them; each sample goes to one of them.

    Args:
        name: the stream.
        example: a sample, the largest that will be sent; for the size of slots and for keys, dtypes and dataclasses.
            None: slots are made for the first sample that is sent, and samples of any kind are taken.
        batch_size: see `SampleConsumer`.
        qsize: number of slots, each for a large sample, or for up to 64 KiB of small ones that were sent together.
        reuses: how often each sample is delivered; never twice in one batch.
        order: which samples come first: "fifo", "fresh" (the newest) or "least_reused".
        slot_bytes: size of a slot; None: of `example`, or of the first sample.
        limits: what a message may contain.

    Raises:
        NotEnoughMemory: if the memory is not available.
        StreamError: if the stream is there with other settings.
    """

    def __init__(
        self,
        name: str,
        *,
        example: Tree = None,
        batch_size: int | None = None,
        qsize: int = 64,
        reuses: int = 1,
        order: Order = "fifo",
        slot_bytes: int | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        super().__init__(name, batch_size)
        if order not in get_args(Order):
            raise ValueError(f"order is {order!r}, expected one of {get_args(Order)}")
        if min(qsize, reuses) < 1:
            raise ValueError(f"qsize is {qsize} and reuses is {reuses}, expected positive numbers")
        self._reader = SampleReader(name, example, limits)
        self._slot_bytes = slot_bytes
        if slot_bytes is None and example is not None:
            self._slot_bytes = _placed(encoded(Frame(packed([Post(example, 0, 0)]), name, producer=bytes(8)))).nbytes
        self._settings = (qsize, reuses, get_args(Order).index(order))
        self._making = threading.Lock()
        self._made = threading.Event()
        self._segment: Segment | None = None
        self._failure: Exception | None = None
        self._claims: Sequence[Claim] = ()
        self._kept: list[Frame] = []
        self._host = Host(name, self._answer)
        self._inquiry = Inquiry(name, _REQUEST.pack(_MAGIC, 0))
        try:
            if self._host.hosting:
                self._make(0)
            self._attached(0.0 if self._host.hosting else time.monotonic() + _ATTACH_SECONDS)
        except BaseException:
            self.close()
            raise

    def _take(self, least: int, most: int, deadline: float, *, borrow: bool) -> Sequence[Frame]:
        segment = self._segment or self._attached(deadline)
        if segment is None:
            return []
        while len(self._kept) < least:
            claims = segment.claim(least - len(self._kept), most - len(self._kept), deadline)
            self.counts.lost = segment.lost
            if not claims:
                return []
            self._claims = claims
            frames: list[Frame] = []
            for claim in claims:
                n = claim.stop - claim.first
                try:
                    frames += self._samples(segment, claim, copy=not borrow)
                except FrameRejected:
                    self.counts.rejected += n
                else:
                    self.counts.reused += n * claim.reused
            if not borrow:
                self._give_back()
            if len(self._kept) + len(frames) >= least:
                self._kept += frames
            else:  # some were rejected: the others wait for more
                self._kept += _copied(frames)
                self._give_back()
        taken, self._kept = self._kept[:most], self._kept[most:]
        self.counts.delivered += len(taken)
        return taken

    def _give_back(self) -> None:
        claims, self._claims = self._claims, ()
        if claims and self._segment is not None:
            self._segment.release(claims)

    def _samples(self, segment: Segment, claim: Claim, *, copy: bool) -> list[Frame]:
        message, n = self._reader.opened(_read(segment.message(claim.slot)))
        if claim.stop > n:
            raise FrameRejected(f"a message has {n} samples, expected {claim.stop} or more")
        return self._reader.samples(message, claim.first, claim.stop, copy=copy)

    def _shut(self) -> None:
        self._host.close()
        self._inquiry.close()
        if self._segment is not None:
            self._segment.leave()
            self._segment = None

    # ---- finding the memory, or making it ----

    def _answer(self, request: bytes) -> tuple[bytes, Sequence[int]] | None:
        """Answers a process that asks for the memory, in the thread of the host."""
        if len(request) != _REQUEST.size or request[:5] != _MAGIC:
            return b"another version", ()
        try:
            segment = self._make(_REQUEST.unpack(request)[1])
        except Exception as error:
            self._failure = error  # for the thread that consumes
            self._made.set()
            return None
        return None if segment is None else (_ANSWER.pack(_MAGIC, *segment.layout), segment.fds)

    def _make(self, needed: int) -> Segment | None:
        """Returns the memory, which is made if its size is known: by an example, or by the first sample."""
        with self._making:
            nbytes = self._slot_bytes or needed
            if self._segment is None and nbytes > 0:
                n_slots, reuses, order = self._settings
                # The header grows with the numbers in it.
                layout = Layout(n_slots, _aligned(max(nbytes, _LEAST_SLOT)) + _ALIGNMENT, reuses, order)
                self._segment = Segment(layout, "consumer")
                self._made.set()
            return self._segment

    def _attached(self, deadline: float) -> Segment | None:
        """Returns the memory; None if there is none until the deadline."""
        while self._segment is None:
            if self._failure is not None:
                raise StreamError(f"the memory of the sample stream {self.name!r} was not made") from self._failure
            slice_end = min(deadline, time.monotonic() + _ATTACH_SECONDS)
            if self._host.hosting:
                self._made.wait(remaining(slice_end))
            else:
                self._join(self._inquiry.answer(slice_end))
            if self._segment is None and self._failure is None and not remaining(deadline):
                return None
        return self._segment

    def _join(self, found: tuple[bytes, list[int]] | None) -> None:
        if found is None:
            return
        segment = _attached(found, "consumer", self.name)
        with self._making:
            if self._segment is not None:  # this process has become the host, and has made it
                segment.leave()
                return
            self._segment = segment
        n_slots, _, reuses, order = segment.layout
        if (n_slots, reuses, order) != self._settings:
            raise StreamError(
                f"the sample stream {self.name!r} is there with qsize={n_slots}, reuses={reuses} and "
                f"order={get_args(Order)[order]!r}; give all its consumers the same"
            )


def _copied(frames: Sequence[Frame]) -> list[Frame]:
    """Returns the samples with arrays in memory of their own."""
    return [frame._replace(tree=tree_map(copied, frame.tree)) for frame in frames]
