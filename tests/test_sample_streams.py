"""One contract for all sample streams: what is posted arrives once, in order, or is counted."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from headrace.errors import FrameRejected, NothingToConsume, StreamClosed, StreamError, StreamTimeout
from headrace.streams import (
    Appending,
    FifoBuffer,
    Frame,
    NullSampleProducer,
    PriorityBuffer,
    SampleBatch,
    SampleConsumer,
    SampleProducer,
    SampleQueue,
    SampleStream,
    StreamCounts,
    ZippedSampleProducer,
    make_consumer,
    make_producer,
    register_consumer,
    register_producer,
    zip_producers,
)
from headrace.streams.packing import Sequences
from tests.stream_processes import DEADLINE, Names, process, sample


class Pair:
    """Makes the producers and consumers of one stream, and closes them."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self.kind = kind
        self._stack = stack
        self._names = Names()
        self._name = f"test-{os.urandom(6).hex()}"
        self._queue: Any = None
        self._address = ""

    def stream(self, **settings: Any) -> SampleStream:
        if self.kind == "local":
            if self._queue is None:
                self._queue = SampleStream("local", qsize=settings.get("qsize", 64)).address
            settings["address"] = self._queue
        elif self.kind == "ip" and self._address:
            settings["address"] = self._address
        elif self.kind == "name":
            settings["names"] = self._names
        return SampleStream(self.kind, self._name, **settings)

    def consumer(self, **settings: Any) -> SampleConsumer:
        consumer = self._stack.enter_context(make_consumer(self.stream(**settings)))
        if self.kind == "ip":
            self._address = consumer.address  # type: ignore[attr-defined]
        return consumer

    def producer(self, **settings: Any) -> SampleProducer:
        producer = make_producer(self.stream(**settings))
        self._stack.callback(producer.close, 0.0)
        return producer


SOCKETS = ("ip", "name")


@pytest.fixture(params=["local", "shared_memory", *SOCKETS])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param in SOCKETS:
        pytest.importorskip("zmq", reason="streams on sockets need pyzmq")
    with ExitStack() as stack:
        yield Pair(request.param, stack)


def numbers(taken: Frame | SampleBatch) -> list[int]:
    """Returns the number of each sample, which all its arrays have."""
    rewards = np.atleast_2d(taken.tree["reward"][0])
    found = [int(number) for number in rewards[..., 0].reshape(-1)]
    observations = taken.tree["observation"]
    assert [float(number) for number in np.atleast_2d(observations[-1])[..., -1]] == found
    return found


def take(consumer: SampleConsumer, n: int) -> list[int]:
    return [number for _ in range(n) for number in numbers(consumer.consume(timeout=DEADLINE))]


def require_nothing(consumer: SampleConsumer) -> None:
    with pytest.raises(NothingToConsume):
        consumer.consume(timeout=0.05)


# ---- the contract ----


def test_what_is_posted_arrives_in_order_with_its_version(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    for number in range(10):
        producer.post(sample(number), version=number + 100)
    require_nothing(consumer)  # nothing is sent before the flush
    assert producer.waiting == 10
    producer.flush(DEADLINE)
    assert producer.waiting == 0
    for number in range(10):
        taken = consumer.consume(timeout=DEADLINE)
        assert isinstance(taken, Frame)
        assert (numbers(taken), taken.version) == ([number], number + 100)
        assert taken.tree["observation"].shape == (5, 3)
        assert taken.tree["reward"].dtype == np.int64
    require_nothing(consumer)
    assert producer.counts == StreamCounts(posted=10, delivered=10)
    assert consumer.counts == StreamCounts(delivered=10)


def test_samples_of_different_shapes_arrive_in_order(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    for number in range(20):
        producer.post(sample(number, length=1 + number % 3), version=number)
    producer.flush(DEADLINE)
    for number in range(20):
        assert consumer.consume(timeout=DEADLINE).tree["reward"].tolist() == [[number]] * (1 + number % 3)


def test_a_large_sample_arrives_unchanged(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    image = np.random.default_rng(0).integers(0, 255, (16, 200, 200), np.uint8)
    producer.post({"image": image, "strided": image[:, ::2]})
    producer.flush(DEADLINE)
    taken = consumer.consume(timeout=DEADLINE)
    np.testing.assert_array_equal(taken.tree["image"], image)
    np.testing.assert_array_equal(taken.tree["strided"], image[:, ::2])


@dataclass
class Info:
    value: np.ndarray
    name: str


@dataclass
class Whole:
    pair: tuple[Any, ...]
    info: Info
    nothing: None = None


def test_trees_of_dataclasses_tuples_numbers_and_strings_arrive(pair: Pair) -> None:
    example = Whole((np.zeros((3, 2), np.uint8), 1.5), Info(np.zeros(3, np.float16), "a policy"))
    consumer, producer = pair.consumer(example=example), pair.producer()
    for number in range(3):
        producer.post(Whole((np.full((3, 2), number, np.uint8), number + 0.5), Info(np.ones(3, np.float16), "one")))
    producer.flush(DEADLINE)
    for number in range(3):
        tree = consumer.consume(timeout=DEADLINE).tree
        assert isinstance(tree, Whole)
        assert isinstance(tree.info, Info)
        assert (tree.pair[0].tolist(), tree.pair[1]) == ([[number] * 2] * 3, number + 0.5)
        assert (tree.info.value.tolist(), tree.info.name, tree.nothing) == ([1.0] * 3, "one", None)


def test_samples_that_do_not_match_the_example_are_counted_and_the_others_arrive(pair: Pair) -> None:
    consumer, producer = pair.consumer(example=sample(0)), pair.producer()
    producer.post(sample(1))
    for _ in range(3):
        producer.post({"other": np.zeros(3)})
    producer.post(sample(2))
    producer.flush(DEADLINE)
    assert take(consumer, 2) == [1, 2]
    assert (consumer.counts.rejected, consumer.counts.lost) == (3, 0)


@pytest.mark.parametrize("at_once", [1, 7, 20])
def test_batches_are_stacked_on_the_second_axis(pair: Pair, at_once: int) -> None:
    consumer, producer = pair.consumer(batch_size=4), pair.producer()
    for number in range(20):
        producer.post(sample(number), version=number)
        if number % at_once == at_once - 1:
            producer.flush(DEADLINE)
    producer.flush(DEADLINE)
    for batch in range(5):
        taken = consumer.consume(timeout=DEADLINE)
        assert isinstance(taken, SampleBatch)
        assert taken.tree["observation"].shape == (5, 4, 3)
        assert taken.versions.tolist() == [4 * batch, 4 * batch + 1, 4 * batch + 2, 4 * batch + 3]
        assert taken.tree["reward"][2, :, 0].tolist() == taken.versions.tolist()
        assert taken.version == 4 * batch
    require_nothing(consumer)


def test_an_incomplete_batch_waits_for_the_rest(pair: Pair) -> None:
    consumer, producer = pair.consumer(batch_size=3), pair.producer()
    for number in range(2):
        producer.post(sample(number))
    producer.flush(DEADLINE)
    require_nothing(consumer)
    producer.post(sample(2))
    producer.flush(DEADLINE)
    assert numbers(consumer.consume(timeout=DEADLINE)) == [0, 1, 2]


def test_a_batch_of_different_shapes_is_an_error_and_the_next_one_arrives(pair: Pair) -> None:
    consumer, producer = pair.consumer(batch_size=2), pair.producer()
    for length in (5, 6, 5, 5):
        producer.post(sample(length, length))
    producer.flush(DEADLINE)
    with pytest.raises(StreamError, match="different shapes"):
        consumer.consume(timeout=DEADLINE)
    assert numbers(consumer.consume(timeout=DEADLINE)) == [5, 5]


def test_consume_to_moves_what_has_arrived_and_does_not_wait(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    buffer = FifoBuffer(batch_size=5)
    assert consumer.consume_to(buffer) == 0
    for number in range(15):
        producer.post(sample(number))
    producer.flush(DEADLINE)
    moved: list[int] = []
    deadline = time.monotonic() + DEADLINE
    while sum(moved) < 15 and time.monotonic() < deadline:
        moved.append(consumer.consume_to(buffer, max_iter=4))
    assert max(moved) <= 4
    assert [numbers(buffer.get()) for _ in range(3)] == [[*range(k, k + 5)] for k in (0, 5, 10)]
    with pytest.raises(NothingToConsume):
        buffer.get()


def test_samples_of_all_producers_arrive_once(pair: Pair) -> None:
    consumer = pair.consumer()
    producers = [pair.producer() for _ in range(4)]
    for number in range(40):
        producers[number % 4].post(sample(number))
    for producer in producers:
        producer.flush(DEADLINE)
    found = take(consumer, 40)
    assert sorted(found) == [*range(40)]
    for rank in range(4):  # those of one producer in order
        of_one = [number for number in found if number % 4 == rank]
        assert of_one == sorted(of_one)
    require_nothing(consumer)


def test_threads_post_to_one_producer(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    threads = [
        threading.Thread(target=lambda k=k: [producer.post(sample(100 * k + i)) for i in range(50)]) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    producer.flush(DEADLINE)
    assert sorted(take(consumer, 200)) == [100 * k + i for k in range(4) for i in range(50)]


def test_arrays_may_change_after_the_flush(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    reused = sample(1)
    producer.post(reused)
    producer.flush(DEADLINE)
    reused["observation"][:] = 9
    reused["reward"][:] = 9
    assert take(consumer, 1) == [1]


def test_samples_that_were_consumed_do_not_change(pair: Pair) -> None:
    consumer, producer = pair.consumer(qsize=2), pair.producer(qsize=2)
    producer.post(sample(1))
    producer.flush(DEADLINE)
    first = consumer.consume(timeout=DEADLINE)
    for number in range(2, 6):
        producer.post(sample(number))
        producer.flush(DEADLINE)
        take(consumer, 1)
    assert numbers(first) == [1]


def test_a_consumer_that_does_not_consume_blocks_flush_only_until_its_deadline(pair: Pair) -> None:
    consumer = pair.consumer(qsize=2)
    producer = pair.producer(qsize=2)
    image = np.zeros((8, 400, 400, 4), np.uint8)  # of which sockets hold only some
    posted = 0
    while not producer.waiting and posted < 60:
        producer.post({"image": image, "number": posted})
        posted += 1
        with suppress(StreamTimeout):
            producer.flush(0.5)
    assert producer.waiting == 1
    with pytest.raises(StreamTimeout, match="did not take 1 samples within 0 s; they stay buffered"):
        producer.flush(0.0)
    assert producer.counts.posted == posted == producer.counts.delivered + producer.waiting
    found = [consumer.consume(timeout=DEADLINE).tree["number"]]
    while len(found) < posted:
        with suppress(StreamTimeout):
            producer.flush(0.05)
        found.append(consumer.consume(timeout=DEADLINE).tree["number"])
    assert found == [*range(posted)]


def test_a_version_is_a_whole_number_of_64_bits(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    with pytest.raises(TypeError):
        producer.post(sample(0), 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="64 bits"):
        producer.post(sample(0), 2**63)
    producer.post(sample(0), np.int64(5))  # type: ignore[arg-type]
    producer.flush(DEADLINE)
    assert consumer.consume(timeout=DEADLINE).version == 5


def test_a_full_producer_says_so_at_post(pair: Pair) -> None:
    pair.consumer()
    producer = pair.producer(capacity=3)
    for number in range(3):
        producer.post(sample(number))
    with pytest.raises(StreamTimeout, match="flush"):
        producer.post(sample(3))
    assert producer.counts.posted == 3


def test_dropping_the_oldest_keeps_the_newest_and_counts_the_others(pair: Pair) -> None:
    consumer = pair.consumer()
    producer = pair.producer(policy="drop_oldest", capacity=3)
    for number in range(10):
        producer.post(sample(number))
    assert (producer.waiting, producer.counts.lost) == (3, 7)
    deadline = time.monotonic() + DEADLINE
    while producer.waiting and time.monotonic() < deadline:
        producer.flush()  # does not wait, not even for the connection
        time.sleep(0.01)
    assert take(consumer, 3) == [7, 8, 9]
    assert producer.counts == StreamCounts(posted=10, delivered=3, lost=7)


def test_a_sample_that_cannot_be_transported_is_refused_and_the_others_arrive(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    producer.post(sample(0))
    producer.post({"reward": object()})
    producer.post(sample(1))
    with pytest.raises(TypeError, match="reward is a object"):
        producer.flush(DEADLINE)
    producer.flush(DEADLINE)
    assert take(consumer, 2) == [0, 1]
    assert producer.counts.rejected == 1


def test_close_sends_what_waits_and_reports_nothing_lost(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    for number in range(5):
        producer.post(sample(number))
    assert producer.close(DEADLINE) == 0
    assert producer.close() == 0
    assert take(consumer, 5) == [*range(5)]
    with pytest.raises(StreamClosed, match="after close"):
        producer.post(sample(0))
    with pytest.raises(StreamClosed, match="after close"):
        producer.flush()


def test_calls_of_a_closed_consumer_say_so(pair: Pair) -> None:
    consumer = pair.consumer()
    consumer.close()
    consumer.close()
    with pytest.raises(StreamClosed, match="after close"):
        consumer.consume()
    with pytest.raises(StreamClosed, match="after close"):
        consumer.consume_to(FifoBuffer(1))


def test_a_consumer_waits_for_what_is_sent_meanwhile(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()

    def send_later() -> None:
        time.sleep(0.1)
        producer.post(sample(3))
        producer.flush(DEADLINE)

    thread = threading.Thread(target=send_later)
    thread.start()
    assert take(consumer, 1) == [3]
    thread.join(DEADLINE)


def use_in_fork(producer: SampleProducer, results: Any) -> None:
    producer.post(sample(1))
    try:
        producer.flush(1.0)
    except StreamError as error:
        results.put(str(error))
    os._exit(0)  # without the ends of a fork of the tests


def test_a_fork_of_a_producer_cannot_send_under_its_id(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer()
    producer.post(sample(0))
    producer.flush(DEADLINE)
    results = multiprocessing.get_context("fork").SimpleQueue()
    with process(use_in_fork, producer, results):
        assert "make a producer or consumer in the process that uses it" in results.get()
    producer.post(sample(2))
    producer.flush(DEADLINE)
    assert take(consumer, 2) == [0, 2]
    assert consumer.counts.duplicates == consumer.counts.lost == 0


def test_compressed_fields_arrive_unchanged(pair: Pair) -> None:
    consumer, producer = pair.consumer(), pair.producer(compressed=("observation",))
    producer.post(sample(2))
    producer.flush(DEADLINE)
    assert take(consumer, 1) == [2]


def test_messages_of_another_stream_are_rejected(pair: Pair) -> None:
    if pair.kind in ("shared_memory", "name"):
        pytest.skip("a name leads to one stream only")
    consumer = pair.consumer()
    stray = make_producer(SampleStream(pair.kind, "another stream", address=pair.stream().address))
    producer = pair.producer()
    for number, sender in enumerate((stray, producer)):
        sender.post(sample(number))
        sender.flush(DEADLINE)
    stray.close(DEADLINE)
    assert take(consumer, 1) == [1]
    deadline = time.monotonic() + DEADLINE
    while consumer.counts.rejected < 1 and time.monotonic() < deadline:
        require_nothing(consumer)
    assert consumer.counts.rejected == 1


def test_what_a_queue_has_not_written_at_the_deadline_is_counted() -> None:
    stream = SampleStream("local")
    producer = make_producer(stream)
    for number in range(5):
        producer.post({"a": np.full(10**5, number)}, number)
        producer.flush(DEADLINE)
    assert producer.close(0.1) == 4  # the pipe does not even hold the first one
    assert producer.counts == StreamCounts(posted=5, delivered=1, lost=4, uncertain=1)
    with make_consumer(stream) as consumer:
        assert consumer.consume(timeout=DEADLINE).version == 0
        require_nothing(consumer)


def write_half_a_message(samples: SampleQueue, begun: Any) -> None:
    writer = vars(samples)["_writer"]
    assert samples.reserve(time.monotonic() + DEADLINE)
    os.write(writer.fileno(), b"\x00\x00\x10\x00half")  # of 4,096 bytes
    begun.put(None)
    time.sleep(20 * DEADLINE)


def test_a_queue_whose_writer_was_killed_in_a_write_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.streams.local._STALL_SECONDS", 0.2)
    stream = SampleStream("local")
    begun = multiprocessing.get_context("fork").SimpleQueue()
    with make_consumer(stream) as consumer:
        with process(write_half_a_message, stream.address, begun):
            begun.get()
        with pytest.raises(StreamError, match="killed or stopped while it wrote"):
            consumer.consume(timeout=DEADLINE)


# ---- several consumers by several producers ----


def test_every_zipped_producer_sends_each_sample_and_it_is_serialized_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.streams import outbox

    calls: list[Frame] = []
    encoded: Callable[..., Any] = vars(outbox)["encoded"]

    def counted(frame: Frame, **settings: Any) -> Any:
        calls.append(frame)
        return encoded(frame, **settings)

    with ExitStack() as stack:
        other = Pair(pair.kind, stack)
        other._name = pair._name
        if pair.kind == "shared_memory":
            other.kind = "local"
        consumers = [pair.consumer(), other.consumer()]
        zipped = zip_producers([pair.producer(), other.producer(), NullSampleProducer()])
        assert isinstance(zipped, ZippedSampleProducer)
        monkeypatch.setattr(outbox, "encoded", counted)
        with zipped:
            for number in range(3):
                zipped.post(sample(number, length=number + 1), number)  # of different shapes: three messages
            zipped.flush(DEADLINE)
            for consumer in consumers:
                assert take(consumer, 3) == [0, 1, 2]
            assert len(calls) == 3
            assert [producer.counts.posted for producer in zipped.producers] == [3, 3, 3]


def test_zipping_one_producer_returns_it() -> None:
    producer = NullSampleProducer()
    assert zip_producers([producer]) is producer


def test_a_zipped_producer_closes_all_and_counts_what_they_lose() -> None:
    name = f"test-{os.urandom(6).hex()}"
    nobody = make_producer(SampleStream("shared_memory", name))
    zipped = ZippedSampleProducer([NullSampleProducer(), nobody])
    zipped.post(sample(0))
    with pytest.raises(StreamTimeout):
        zipped.flush(0.05)
    assert zipped.waiting == 1
    assert zipped.close(0.05) == 1
    with pytest.raises(StreamClosed):
        nobody.post(sample(0))


def test_what_one_of_the_zipped_producers_could_not_send_is_sent_later_in_order() -> None:
    stream = SampleStream("shared_memory", f"test-{os.urandom(6).hex()}")
    zipped = ZippedSampleProducer([NullSampleProducer(), make_producer(stream)])
    for number in range(3):
        zipped.post(sample(number, length=number + 1))  # of different shapes: three messages
    with pytest.raises(StreamTimeout):
        zipped.flush(0.05)
    with zipped, make_consumer(stream) as consumer:
        zipped.flush(DEADLINE)
        assert take(consumer, 3) == [0, 1, 2]


def test_the_null_producer_discards_everything() -> None:
    with make_producer(SampleStream("null")) as producer:
        assert isinstance(producer, NullSampleProducer)
        producer.post(sample(0))
        producer.flush()
    assert producer.counts == StreamCounts(posted=1)
    with pytest.raises(StreamClosed):
        producer.post(sample(0))


# ---- descriptions ----


def test_an_instance_is_returned_as_it_is() -> None:
    producer = NullSampleProducer()
    assert make_producer(producer) is producer


@pytest.mark.parametrize("make", [make_producer, make_consumer])
def test_a_wrong_description_is_refused(make: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="type of the sample stream 'x' is 'carrier pigeon'"):
        make(SampleStream("carrier pigeon", "x"))
    with pytest.raises(TypeError, match="spec is a int"):
        make(3)
    with pytest.raises(ValueError, match="name service"):
        make("a name")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"policy": "hope"}, "policy is 'hope'"), ({"capacity": 0}, "capacity is 0")],
)
def test_a_producer_refuses_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_producer(SampleStream("shared_memory", "x", **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"order": "random"}, "order is 'random'"),
        ({"reuses": 0}, "reuses is 0"),
    ],
)
def test_a_consumer_refuses_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_consumer(SampleStream("shared_memory", "x", **settings))


def test_settings_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="shared_memory"):
        SampleStream("ip", "x", reuses=3)


def test_a_registered_type_is_made() -> None:
    class Kept(NullSampleProducer):
        pass

    class Empty(SampleConsumer):
        def _take(self, least: int, most: int, deadline: float, *, borrow: bool) -> list[Frame]:
            return []

        def _shut(self) -> None:
            pass

    register_producer("kept", lambda stream: Kept())
    register_consumer("kept", lambda stream: Empty(stream.name))
    assert isinstance(make_producer(SampleStream("kept")), Kept)
    require_nothing(make_consumer(SampleStream("kept")))


# ---- counting ----


def test_duplicates_and_gaps_are_counted() -> None:
    sequences = Sequences()

    def arrived(first: int, n: int = 1, producer: bytes = b"a", epoch: int = 0) -> tuple[int, int]:
        return sequences.arrived(producer, epoch, first, n)

    assert arrived(10, 5) == (0, 0)  # whatever came before went to somebody else
    assert arrived(15) == (0, 0)
    assert arrived(15) == (1, 0)
    assert arrived(18, 2) == (0, 2)
    assert arrived(19, 3) == (1, 0)
    assert arrived(0, 22) == (22, 0)
    assert arrived(22) == (0, 0)
    assert arrived(0, producer=b"b") == (0, 0)
    assert arrived(0, epoch=1) == (0, 0)
    assert arrived(5, producer=b"") == arrived(1, producer=b"") == (0, 0)


def test_producers_that_were_silent_for_longest_are_forgotten() -> None:
    sequences = Sequences(most=2)
    for producer in (b"a", b"b", b"a", b"c"):
        sequences.arrived(producer, 0, 7, 1)
    assert sequences.arrived(b"a", 0, 7, 1) == (1, 0)
    assert sequences.arrived(b"b", 0, 7, 1) == (0, 0)


# ---- buffers ----


def frame(number: int) -> Frame:
    return Frame(sample(number), version=number)


def test_a_full_fifo_buffer_drops_the_oldest_and_counts_it() -> None:
    buffer = FifoBuffer(batch_size=2, capacity=3)
    for number in range(5):
        buffer.put(frame(number))
    assert len(buffer) == 3
    assert numbers(buffer.get()) == [2, 3]
    assert (buffer.counts.put, buffer.counts.got, buffer.counts.dropped) == (5, 2, 2)


def test_a_priority_buffer_takes_the_least_used_then_the_newest_and_counts_dropped_reuse() -> None:
    buffer = PriorityBuffer(batch_size=1, reuses=2, capacity=2)
    for number in (0, 1, 2):
        buffer.put(frame(number))
    assert [numbers(buffer.get()) for _ in range(3)] == [[2], [1], [2]]
    assert len(buffer) == 1
    assert (buffer.counts.dropped, buffer.counts.reused, buffer.counts.unused) == (1, 1, 0)
    buffer.put(frame(3))
    buffer.put(frame(4))  # there is no room to use number 1 again
    assert (buffer.counts.dropped, buffer.counts.unused) == (1, 1)
    assert [numbers(buffer.get()) for _ in range(4)] == [[4], [3], [4], [3]]
    with pytest.raises(NothingToConsume):
        buffer.get()


def test_a_batch_of_a_priority_buffer_has_different_samples_in_their_order_in_time() -> None:
    buffer = PriorityBuffer(batch_size=3, reuses=4, capacity=8)
    for number in range(3):
        tree = {"reward": np.arange(3 * number, 3 * number + 3)}
        buffer.put(Frame(tree, version=number))
    taken = buffer.get()
    assert taken.versions.tolist() == [2, 1, 0]
    assert taken.tree["reward"].tolist() == [[6, 3, 0], [7, 4, 1], [8, 5, 2]]


@pytest.mark.parametrize(("make", "message"), [(FifoBuffer, "batch_size is 0"), (PriorityBuffer, "batch_size is 0")])
def test_a_buffer_refuses_wrong_settings(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(batch_size=0)
    with pytest.raises(ValueError, match="capacity is 1"):
        make(batch_size=2, capacity=1)


def test_samples_are_appended_to_a_replay() -> None:
    appended: list[Any] = []
    Appending(appended.append).put(frame(3))
    assert appended[0]["reward"].tolist() == [[3]] * 5


def test_a_rejected_frame_is_also_a_value_error() -> None:
    assert issubclass(FrameRejected, ValueError)
