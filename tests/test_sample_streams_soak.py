"""Accounts of sample streams over many samples, while producers and consumers are killed or stopped."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from headrace.errors import StreamTimeout
from headrace.streams import SampleStream, make_consumer, make_producer
from tests.leftovers import until
from tests.quick import quick_and_slow
from tests.stream_processes import DEADLINE, consume_everything, process

SAMPLE_BYTES = 24  # at least
AT_ONCE = 500  # samples of a flush
MOST_MOVED = 64  # samples of one call of a consumer
PATIENCE = 10 * DEADLINE


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def kernel_bytes() -> int:
    """Returns how much the system may hold of one connection."""
    files = [Path("/proc/sys/net/ipv4") / name for name in ("tcp_wmem", "tcp_rmem")]
    return sum(int(file.read_text().split()[2]) for file in files)


def shared_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an array that forks share."""
    array: np.ndarray = np.frombuffer(mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype)
    return array.reshape(shape)


class Books:
    """What the processes of a soak have done.

    Args:
        lives: how many producers there may be, one after another.
        quota: how many samples each posts.
    """

    def __init__(self, lives: int, quota: int) -> None:
        self.quota = quota
        self.marks = shared_array((lives * quota,), np.uint8)  # how often each sample has arrived
        self.posted = shared_array((lives,), np.int64)  # or about to be
        self.taken = shared_array((lives,), np.int64)  # by the transport
        self.lost = shared_array((lives,), np.int64)
        self.uncertain = shared_array((lives,), np.int64)
        self.rejected = shared_array((lives,), np.int64)
        self.wrong = shared_array((1,), np.int64)


def produce(stream: SampleStream, books: Books, life: int, in_a_write: bool) -> None:
    """Posts the samples of one life; or stops for ever in the middle of the write of its last message."""
    producer = make_producer(stream)
    numbers = range(life * books.quota, (life + 1) * books.quota)
    for first in numbers[::AT_ONCE]:
        books.posted[life] += AT_ONCE
        for number in range(first, first + AT_ONCE):
            producer.post({"number": np.full(3, number)}, version=number)
        if in_a_write and first + AT_ONCE == numbers.stop:
            from headrace.streams import shared_memory

            def half(slot: memoryview, *message: Any) -> None:
                slot[:64] = b"\xff" * 64
                books.lost[life] = -1  # a sign for the parent, which kills this process now
                time.sleep(10 * PATIENCE)

            vars(shared_memory)["_write"] = half
        while producer.waiting:
            with suppress(StreamTimeout):
                producer.flush(1.0)
            books.taken[life] = producer.counts.delivered
            books.uncertain[life] = producer.counts.uncertain
    producer.close(PATIENCE)
    counts = producer.counts
    books.lost[life], books.uncertain[life], books.rejected[life] = counts.lost, counts.uncertain, counts.rejected


class Marking:
    """A buffer that marks what it gets."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def put(self, frame: Any) -> None:
        self._books.marks[frame.version] += 1
        self._books.wrong[0] += frame.tree["number"].tolist() != [frame.version] * 3


def consume(stream: SampleStream, books: Books) -> None:
    consumer = make_consumer(stream)
    while True:
        if not consumer.consume_to(Marking(books), MOST_MOVED):
            time.sleep(0.001)


class Soak:
    """Runs two producers until enough was posted, and kills producers and consumers at even distances.

    Args:
        stack: ends what is left.
        n: how many samples to post.
        kills: how many producers, and how many consumers, to kill.
        producing: the stream of the producers.
        start_consumer: starts a consumer that may be killed.
        consume_here: moves what has arrived for a consumer of this process.
        writes: whether producers are also killed in the middle of a write.
    """

    def __init__(
        self,
        stack: ExitStack,
        n: int,
        kills: int,
        producing: SampleStream,
        start_consumer: Callable[[Books], Any],
        consume_here: Callable[[Books], int],
        writes: bool,
    ) -> None:
        quota = max(n // (2 * kills) // AT_ONCE, 2) * AT_ONCE
        self.books = books = Books(2 * n // quota + 4 * kills + 8, quota)
        self.in_flight = 0
        life = done = 0
        running: dict[int, Any] = {}
        consumer = start_consumer(books)
        deadline = time.monotonic() + 10 * PATIENCE
        while running or books.posted.sum() < n:
            assert time.monotonic() < deadline
            while len(running) < 2 and books.posted.sum() < n:
                in_a_write = writes and life % 4 == 3
                running[life] = stack.enter_context(process(produce, producing, books, life, in_a_write))
                life += 1
            consume_here(books)
            for of, victim in [*running.items()]:
                if not victim.is_alive():
                    assert victim.exitcode == 0
                    del running[of]
                elif books.lost[of] == -1:
                    self._kill(victim)
                    books.lost[of] = 0
                    self.in_flight += int(books.posted[of] - books.taken[of])
                    del running[of]
            if done < kills and books.taken.sum() >= (done + 1) * n // (kills + 1):
                done += 1
                self._kill(consumer)
                self.in_flight += MOST_MOVED  # that it had taken, and not marked
                consumer = start_consumer(books)
                alive = [of for of, victim in running.items() if victim.is_alive()]
                for of in alive[:1]:
                    self._kill(running.pop(of))
                    self.in_flight += int(books.posted[of] - books.taken[of])
        self.kills = done
        while consume_here(books):
            pass
        assert until(lambda: not consume_here(books) and self._settled())

    def _settled(self) -> bool:
        """Returns whether nothing has arrived for a while."""
        before = int(self.books.marks.sum())
        time.sleep(0.3)
        return before == int(self.books.marks.sum())

    @staticmethod
    def _kill(victim: Any) -> None:
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(DEADLINE)

    def require(self, counted: int, at_most: int) -> None:
        """Checks the books: each sample arrived once, or was lost and counted.

        Args:
            counted: samples that the stream says it has lost.
            at_most: how many more may be missing, which were on their way in processes that were killed.
        """
        books = self.books
        posted, arrived = int(books.posted.sum()), int(books.marks.sum())
        print(f"posted {posted}, arrived {arrived}, counted as lost {counted}, in flight at most {at_most}")
        assert books.marks.max() == 1
        assert (books.wrong[0], books.rejected.sum()) == (0, 0)
        assert posted - arrived >= 0
        assert counted <= posted - arrived <= counted + at_most


SIZES = quick_and_slow([(20_000, 2), (1_000_000, 20)], [(20_000, 2)])


@pytest.mark.parametrize(("n", "kills"), SIZES)
def test_every_sample_in_shared_memory_arrives_once_or_is_counted_whoever_is_killed(
    stack: ExitStack, n: int, kills: int
) -> None:
    stream = SampleStream("shared_memory", f"soak-{os.urandom(6).hex()}", qsize=32)
    stays = stack.enter_context(make_consumer(stream))  # the memory lives as long as one consumer does

    def start_consumer(books: Books) -> Any:
        return stack.enter_context(process(consume, stream, books))

    soak = Soak(stack, n, kills, stream, start_consumer, lambda books: stays.consume_to(Marking(books), 64), True)
    assert soak.kills == kills
    assert stays.counts.rejected == 0
    assert stays.counts.lost > 0
    soak.require(stays.counts.lost + int(soak.books.lost.sum()), soak.in_flight)


@pytest.mark.parametrize(("n", "kills"), SIZES)
def test_every_sample_on_sockets_arrives_once_or_is_counted_whoever_is_killed(
    stack: ExitStack, n: int, kills: int
) -> None:
    pytest.importorskip("zmq", reason="streams on sockets need pyzmq")
    with make_consumer(SampleStream("ip", "soak", address="127.0.0.1:0")) as first:
        address = first.address  # type: ignore[attr-defined]
    stream = SampleStream("ip", "soak", address=address)

    def start_consumer(books: Books) -> Any:
        return stack.enter_context(process(consume, stream, books))

    soak = Soak(stack, n, kills, stream, start_consumer, lambda books: 0, False)
    assert soak.kills == kills
    # What a killed producer had given to ZeroMQ may be lost with it, and so may what a killed consumer had received:
    # the messages of both sides, and what the system holds of both connections, which is far more.
    of_a_connection = 2 * 8 * 256 + kernel_bytes() // SAMPLE_BYTES
    soak.require(0, soak.in_flight + int(soak.books.uncertain.sum()) + 2 * kills * of_a_connection)


@pytest.mark.parametrize(
    ("kind", "seconds"),
    quick_and_slow(
        [(kind, seconds) for kind in ("shared_memory", "ip") for seconds in (3.0, 60.0)],
        [("shared_memory", 3.0), ("ip", 3.0)],
    ),
)
def test_a_consumer_that_stops_for_a_while_costs_bounded_memory_and_no_sample(
    stack: ExitStack, kind: str, seconds: float
) -> None:
    if kind == "ip":
        pytest.importorskip("zmq", reason="streams on sockets need pyzmq")
    stream = SampleStream(kind, f"stops-{os.urandom(6).hex()}", address="127.0.0.1:0", qsize=8, capacity=16)
    marks = shared_array((200_000,), np.uint8)
    addresses = shared_array((32,), np.uint8)
    consumer = stack.enter_context(process(consume_everything, stream, addresses, marks))
    if kind == "ip":
        assert until(lambda: addresses[-1])
        port = int.from_bytes(addresses[:4].tobytes(), "little")
        stream = SampleStream(kind, stream.name, address=f"127.0.0.1:{port}", capacity=16)
    producer = make_producer(stream)
    stack.callback(producer.close, 0.0)
    sample = np.zeros(2**18, np.uint8)
    producer.post({"a": sample}, 0)
    producer.flush(DEADLINE)
    assert until(lambda: marks[0] == 1)
    assert consumer.pid is not None
    os.kill(consumer.pid, signal.SIGSTOP)
    before = psutil.Process().memory_info().rss
    timeouts = refused = 0
    number = 1
    end = time.monotonic() + seconds
    while time.monotonic() < end or not refused:
        try:
            producer.post({"a": sample.copy()}, number)
            number += 1
        except StreamTimeout:
            refused += 1
        try:
            producer.flush(0.02)
        except StreamTimeout:
            timeouts += 1
    growth = psutil.Process().memory_info().rss - before
    assert timeouts > 0
    # What waits in the producer, in the slots or in ZeroMQ, and 16 MB for whatever else happens in this process.
    assert growth < (16 + 16) * len(sample) + 2**24
    assert producer.waiting == 16
    os.kill(consumer.pid, signal.SIGCONT)
    flushed = time.monotonic() + PATIENCE
    while producer.waiting and time.monotonic() < flushed:
        with suppress(StreamTimeout):
            producer.flush(1.0)
    counts = producer.counts
    assert (counts.posted, counts.delivered, counts.lost) == (number, number, 0)
    assert until(lambda: int(marks.sum()) >= number - counts.uncertain)
    assert marks[:number].max() == 1
    assert kind == "ip" or int(marks.sum()) == number  # a connection may be given up meanwhile, which is counted
