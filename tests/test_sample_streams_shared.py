"""Sample streams in shared memory between processes: exact numbers, orders, and processes that are killed."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pytest

from headrace.errors import NotEnoughMemory, NothingToConsume, StreamError, StreamTimeout
from headrace.streams import (
    FifoBuffer,
    SampleBatch,
    SampleStream,
    SharedMemorySampleConsumer,
    SharedMemorySampleProducer,
    make_consumer,
    make_producer,
)
from headrace.streams.rendezvous import Host, Inquiry
from headrace.streams.slots import Layout, Segment
from tests.leftovers import descriptors, until
from tests.stream_processes import (
    DEADLINE,
    consume_all,
    hold_a_batch,
    post_many,
    process,
    sample,
    stop_in_a_write,
)


@pytest.fixture
def name() -> str:
    return f"test-{os.urandom(6).hex()}"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def versions(consumer: Any, timeout: float = DEADLINE) -> list[int]:
    taken = consumer.consume(timeout=timeout)
    assert isinstance(taken, SampleBatch)
    rewards: list[int] = taken.tree["reward"][0, :, 0].tolist()
    assert rewards == taken.versions.tolist()
    return rewards


def post(producer: Any, first: int, n: int, at_once: int = 1) -> None:
    for number in range(first, first + n):
        producer.post(sample(number), version=number)
        if (number - first) % at_once == at_once - 1:
            producer.flush(DEADLINE)
    producer.flush(DEADLINE)


def require_nothing(consumer: Any) -> None:
    with pytest.raises(NothingToConsume):
        consumer.consume()


# ---- exact numbers ----


@pytest.mark.parametrize("at_once", [1, 10])
def test_ten_samples_used_three_times_are_exactly_six_batches_of_five(
    name: str, stack: ExitStack, at_once: int
) -> None:
    stream = SampleStream("shared_memory", name, qsize=10, reuses=3, batch_size=5)
    consumer = stack.enter_context(make_consumer(stream))
    post(stack.enter_context(make_producer(stream)), 0, 10, at_once)
    found = []
    for _ in range(6):
        taken = consumer.consume()
        assert isinstance(taken, SampleBatch)
        assert taken.tree["reward"].shape == (5, 5, 1)
        assert len({*taken.versions.tolist()}) == 5  # never one sample twice in a batch
        found += taken.versions.tolist()
    require_nothing(consumer)
    assert sorted(found) == sorted([*range(10)] * 3)
    assert (consumer.counts.delivered, consumer.counts.reused) == (30, 20)


@pytest.mark.parametrize("at_once", [1, 8])
def test_two_consumers_share_what_two_producers_send(name: str, stack: ExitStack, at_once: int) -> None:
    stream = SampleStream("shared_memory", name, qsize=24, reuses=3, batch_size=6)
    consumers = [stack.enter_context(make_consumer(stream)) for _ in range(2)]
    producers = [stack.enter_context(make_producer(stream)) for _ in range(2)]
    for index, producer in enumerate(producers):
        post(producer, 12 * index, 12, at_once)
    found = [number for _ in range(6) for consumer in consumers for number in versions(consumer, 0.0)]
    assert sorted(found) == sorted([*range(24)] * 3)
    for consumer in consumers:
        require_nothing(consumer)


@pytest.mark.parametrize("at_once", [1, 20])
def test_processes_that_run_at_once_lose_and_repeat_nothing(name: str, stack: ExitStack, at_once: int) -> None:
    stream = SampleStream("shared_memory", name, qsize=32, batch_size=24, example=sample(0))
    results = multiprocessing.get_context("fork").Queue()
    for _ in range(2):
        stack.enter_context(process(consume_all, stream, results))
        assert results.get(timeout=DEADLINE) is None  # the first one has made the memory
    for rank in range(6):
        stack.enter_context(process(post_many, stream, 40 * rank, 40, at_once))
    found = [results.get(timeout=DEADLINE) for _ in range(10)]
    assert sorted(number for batch, _ in found for number in batch) == [*range(240)]
    assert all((counts.lost, counts.duplicates, counts.rejected) == (0, 0, 0) for _, counts in found)
    with pytest.raises(queue.Empty):
        results.get(timeout=0.1)
    results.close()
    results.join_thread()


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("fifo", [[0, 1], [0, 1], [2, 3], [2, 3]]),
        ("fresh", [[3, 2], [3, 2], [1, 0], [1, 0]]),
        ("least_reused", [[0, 1], [2, 3], [0, 1], [2, 3]]),
    ],
)
def test_the_order_says_which_samples_come_first(
    name: str, stack: ExitStack, order: Any, expected: list[list[int]]
) -> None:
    stream = SampleStream("shared_memory", name, qsize=4, reuses=2, batch_size=2, order=order)
    consumer = stack.enter_context(make_consumer(stream))
    post(stack.enter_context(make_producer(stream)), 0, 4)
    assert [versions(consumer) for _ in range(4)] == expected


def test_a_full_stream_holds_its_producer_until_a_slot_is_free(name: str, stack: ExitStack) -> None:
    stream = SampleStream("shared_memory", name, qsize=2, reuses=2)
    consumer = stack.enter_context(make_consumer(stream))
    producer = stack.enter_context(make_producer(stream))
    post(producer, 0, 2)
    producer.post(sample(2), 2)
    consumer.consume()
    with pytest.raises(StreamTimeout):
        producer.flush(0.05)  # the first sample is to be used once more
    consumer.consume()
    producer.flush(DEADLINE)
    assert [consumer.consume().version for _ in range(4)] == [1, 1, 2, 2]


# ---- who comes, and when ----


def test_a_producer_that_starts_first_waits_for_the_consumer(name: str, stack: ExitStack) -> None:
    stream = SampleStream("shared_memory", name)
    producer = stack.enter_context(make_producer(stream))
    producer.post(sample(7), 7)
    with pytest.raises(StreamTimeout):
        producer.flush(0.05)
    consumer = stack.enter_context(make_consumer(stream))
    producer.flush(DEADLINE)
    assert consumer.consume().version == 7


def test_consumers_wait_for_the_first_sample_to_learn_its_size(name: str, stack: ExitStack) -> None:
    stream = SampleStream("shared_memory", name)
    first, second = (stack.enter_context(make_consumer(stream)) for _ in range(2))
    for consumer in (first, second):
        require_nothing(consumer)
    stack.enter_context(process(post_many, stream, 0, 2, 1))
    found = [consumer.consume(timeout=DEADLINE).version for consumer in (first, second)]
    assert sorted(found) == [0, 1]


def test_a_consumer_with_other_settings_is_told_those_of_the_stream(name: str, stack: ExitStack) -> None:
    stack.enter_context(SharedMemorySampleConsumer(name, qsize=3, slot_bytes=100))
    with pytest.raises(StreamError, match="there with qsize=3, reuses=1 and order='fifo'"):
        SharedMemorySampleConsumer(name, qsize=4, slot_bytes=100)


def test_a_sample_that_does_not_fit_is_refused_and_the_others_arrive(name: str, stack: ExitStack) -> None:
    consumer = stack.enter_context(SharedMemorySampleConsumer(name, example=sample(0)))
    producer = stack.enter_context(SharedMemorySampleProducer(name))
    producer.post({"reward": np.zeros(10**6)})
    producer.post(sample(1), 1)
    with pytest.raises(ValueError, match="give its consumer the largest sample as `example`"):
        producer.flush(DEADLINE)
    producer.flush(DEADLINE)
    assert consumer.consume().version == 1
    assert producer.counts.rejected == 1


def test_samples_of_the_size_of_the_example_fit_whatever_their_numbers(name: str, stack: ExitStack) -> None:
    example = {"image": np.zeros((200, 1000), np.uint8)}
    consumer = stack.enter_context(SharedMemorySampleConsumer(name, example=example, qsize=2))
    producer = stack.enter_context(SharedMemorySampleProducer(name))
    producer.post(example, version=2**62)
    producer.flush(DEADLINE)
    assert consumer.consume().version == 2**62


def test_memory_that_is_not_there_is_an_error_of_the_consumer(name: str) -> None:
    with pytest.raises(NotEnoughMemory):
        SharedMemorySampleConsumer(name, slot_bytes=2**46)
    with SharedMemorySampleConsumer(name, qsize=2, slot_bytes=100):  # nothing of the first one is left
        pass


def test_memory_that_is_not_there_for_the_first_sample_is_an_error_of_the_consumer(
    name: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise NotEnoughMemory("no memory")

    monkeypatch.setattr("headrace.streams.shared_memory.Segment", refuse)
    consumer = stack.enter_context(SharedMemorySampleConsumer(name))
    producer = stack.enter_context(SharedMemorySampleProducer(name))
    producer.post(sample(0))
    with pytest.raises(StreamTimeout):
        producer.flush(0.2)
    with pytest.raises(StreamError, match="memory of the sample stream"):
        consumer.consume(timeout=DEADLINE)
    producer.close(0.0)


def test_names_that_do_not_fit_are_refused() -> None:
    for name in ("", "x" * 200):
        with pytest.raises(ValueError, match="1 to 80 characters"):
            SharedMemorySampleConsumer(name)


def test_descriptors_are_given_back(name: str) -> None:
    before = descriptors()
    stream = SampleStream("shared_memory", name)
    with make_consumer(stream) as consumer, make_producer(stream) as producer:
        post(producer, 0, 3)
        consumer.consume_to(FifoBuffer(1))
    del consumer, producer
    assert until(lambda: descriptors() <= before)


# ---- damage ----


def test_a_damaged_slot_is_rejected_and_the_others_arrive(name: str, stack: ExitStack) -> None:
    stream = SampleStream("shared_memory", name, qsize=4, batch_size=2)
    consumer = stack.enter_context(make_consumer(stream))
    producer = stack.enter_context(make_producer(stream))
    post(producer, 0, 4)
    generator = np.random.default_rng(0)
    segment = vars(producer)["_segment"]
    for slot in (0, 2):
        segment.slots[slot][:] = generator.bytes(len(segment.slots[slot]))
    assert versions(consumer) == [1, 3]
    assert consumer.counts.rejected == 2
    require_nothing(consumer)
    post(producer, 4, 4)  # the slots are free again
    assert [versions(consumer) for _ in range(2)] == [[4, 5], [6, 7]]


def test_random_bytes_in_slots_are_rejected(name: str, stack: ExitStack) -> None:
    consumer = stack.enter_context(SharedMemorySampleConsumer(name, qsize=1, slot_bytes=100))
    producer = stack.enter_context(SharedMemorySampleProducer(name))
    post(producer, 0, 1)
    consumer.consume()
    segment = vars(producer)["_segment"]
    generator = np.random.default_rng(0)
    good = bytes(segment.slots[0][:1000])
    for _ in range(300):
        slot = segment.claim_free(1, time.monotonic())
        mutated = bytearray(good)
        for _ in range(generator.integers(1, 4)):
            mutated[generator.integers(0, 300)] = generator.integers(0, 256)
        segment.slots[slot][:1000] = bytes(mutated)
        segment.publish(slot, 1000)
        with suppress(NothingToConsume):
            consumer.consume()
    assert consumer.counts.rejected + consumer.counts.delivered == 301
    assert consumer.counts.rejected > 100


# ---- processes that are killed ----


def kill(victim: Any) -> None:
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(DEADLINE)


def test_the_slot_of_a_producer_that_was_killed_in_a_write_is_free_again_and_its_sample_counted(
    name: str, stack: ExitStack
) -> None:
    stream = SampleStream("shared_memory", name, qsize=2, example=sample(0))
    consumer = stack.enter_context(make_consumer(stream))
    reached = multiprocessing.get_context("fork").Event()
    victim = stack.enter_context(process(stop_in_a_write, stream, reached))
    assert reached.wait(DEADLINE)
    kill(victim)
    producer = stack.enter_context(make_producer(stream))
    post(producer, 5, 1)
    assert [consumer.consume(timeout=DEADLINE).version for _ in range(2)] == [0, 5]
    post(producer, 6, 2)  # both slots at once: that of the dead producer has been taken back
    assert [consumer.consume(timeout=DEADLINE).version for _ in range(2)] == [6, 7]
    assert consumer.counts.lost == 1


def test_a_stopped_producer_in_a_write_does_not_keep_others_from_sending(name: str, stack: ExitStack) -> None:
    stream = SampleStream("shared_memory", name, qsize=2, example=sample(0))
    consumer = stack.enter_context(make_consumer(stream))
    reached = multiprocessing.get_context("fork").Event()
    victim = stack.enter_context(process(stop_in_a_write, stream, reached))
    assert reached.wait(DEADLINE)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGSTOP)
    producer = stack.enter_context(make_producer(stream))
    consumer.consume(timeout=DEADLINE)
    for number in range(5, 9):
        post(producer, number, 1)
        assert consumer.consume(timeout=DEADLINE).version == number


def test_what_a_killed_consumer_had_claimed_is_counted_and_its_slots_are_free_again(
    name: str, stack: ExitStack
) -> None:
    stream = SampleStream("shared_memory", name, qsize=4, batch_size=2, example=sample(0))
    consumer = stack.enter_context(make_consumer(stream))
    producer = stack.enter_context(make_producer(stream))
    reached = multiprocessing.get_context("fork").Event()
    victim = stack.enter_context(process(hold_a_batch, stream, reached))
    post(producer, 0, 2)
    assert reached.wait(DEADLINE)
    kill(victim)
    post(producer, 2, 4)  # all four slots
    assert [versions(consumer) for _ in range(2)] == [[2, 3], [4, 5]]
    assert consumer.counts.lost == 2


def test_a_new_consumer_is_found_after_the_only_one_was_killed_and_the_rest_is_counted(
    name: str, stack: ExitStack
) -> None:
    stream = SampleStream("shared_memory", name, qsize=4, batch_size=1, example=sample(0))
    reached = multiprocessing.get_context("fork").Event()
    victim = stack.enter_context(process(hold_a_batch, stream, reached))
    producer = stack.enter_context(make_producer(stream))
    post(producer, 0, 3)
    assert reached.wait(DEADLINE)
    kill(victim)
    consumer = stack.enter_context(make_consumer(stream))  # the name is free, and nothing of the old memory is found
    require_nothing(consumer)
    sent = 3

    def arrived() -> bool:
        nonlocal sent
        post(producer, sent, 1)
        sent += 1
        try:
            versions(consumer, 0.0)
        except NothingToConsume:
            return False
        return True

    assert until(arrived)
    producer.flush(DEADLINE)
    assert producer.counts.lost == sent - 1 - 1  # all but the one that the dead one had, and the one that arrived
    assert producer.counts.posted == sent


def test_another_consumer_takes_over_the_name(name: str, stack: ExitStack) -> None:
    stream = SampleStream("shared_memory", name, batch_size=1, example=sample(0))
    reached = multiprocessing.get_context("fork").Event()
    victim = stack.enter_context(process(hold_a_batch, stream, reached))
    producer = stack.enter_context(make_producer(stream))
    post(producer, 0, 1)
    assert reached.wait(DEADLINE)
    second = stack.enter_context(make_consumer(stream))
    kill(victim)
    assert until(lambda: vars(second)["_host"].hosting)
    stack.enter_context(process(post_many, stream, 1, 2, 1))
    assert sorted(versions(second) + versions(second)) == [1, 2]


def idle(consumer: Any) -> None:
    time.sleep(20 * DEADLINE)


def test_a_fork_of_the_consumer_does_not_keep_the_name(name: str, stack: ExitStack) -> None:
    stream = SampleStream("shared_memory", name, example=sample(0))
    first = make_consumer(stream)
    stack.enter_context(process(idle, first))
    first.close()
    second = stack.enter_context(make_consumer(stream))
    assert until(lambda: vars(second)["_host"].hosting)  # as soon as the fork has begun
    post(stack.enter_context(make_producer(stream)), 0, 1)
    assert second.consume(timeout=DEADLINE).version == 0


def use_in_fork(producer: Any, results: Any) -> None:
    try:
        producer.post(sample(1))
        producer.flush(1.0)
    except StreamError as error:
        results.put(str(error))


def test_a_forked_producer_is_refused(name: str, stack: ExitStack) -> None:
    stream = SampleStream("shared_memory", name)
    consumer = stack.enter_context(make_consumer(stream))
    producer = stack.enter_context(make_producer(stream))
    post(producer, 0, 1)
    results = multiprocessing.get_context("fork").Queue()
    stack.enter_context(process(use_in_fork, producer, results))
    assert "make a producer or consumer in the process that uses it" in results.get(timeout=DEADLINE)
    assert consumer.consume().version == 0
    results.close()
    results.join_thread()


# ---- the parts ----


def test_a_lock_excludes_others_until_the_death_of_its_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segment(Layout(1, 64, 1, 0), "consumer")
    layout, fds = segment.layout, [os.dup(fd) for fd in segment.fds]
    reached = multiprocessing.get_context("fork").Event()
    with process(_hold_the_lock, layout, fds, reached) as victim:
        for fd in fds:
            os.close(fd)
        assert reached.wait(DEADLINE)
        with monkeypatch.context() as patch:
            patch.setattr("headrace.streams.file_lock._SECONDS", 0.1)
            with pytest.raises(StreamError, match="was stopped"):
                segment.claim(1, 1, time.monotonic())
        kill(victim)
        assert segment.claim(1, 1, time.monotonic()) == []
    segment.leave()


def _hold_the_lock(layout: Layout, fds: list[int], reached: Any) -> None:
    segment = Segment(layout, "producer", fds)
    with vars(segment)["_lock"]:
        reached.set()
        time.sleep(20 * DEADLINE)


def test_a_slot_is_free_when_the_last_of_its_readers_has_gone(stack: ExitStack) -> None:
    first = Segment(Layout(1, 64, 2, 0), "consumer")
    second, producer = (
        Segment(first.layout, role, [os.dup(fd) for fd in first.fds]) for role in ("consumer", "producer")
    )
    for part in (first, second, producer):
        stack.callback(part.leave)
    slot = producer.claim_free(1, 0.0)
    assert slot == 0
    producer.publish(slot, 1)
    claims = [part.claim(1, 1, 0.0) for part in (first, second)]
    second.release(claims[1])
    assert producer.claim_free(1, 0.0) is None
    first.release(claims[0])
    assert producer.claim_free(1, 0.0) == 0


def test_too_many_that_take_part_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.streams.slots._PEOPLE", 2)
    segment = Segment(Layout(1, 64, 1, 0), "consumer")
    fds = [[os.dup(fd) for fd in segment.fds] for _ in range(2)]
    other = Segment(segment.layout, "producer", fds[0])
    with pytest.raises(StreamError, match="2 producers and consumers"):
        Segment(segment.layout, "producer", fds[1])
    for part in (other, segment):
        part.leave()


def test_questions_are_answered_when_the_answer_is_known(name: str, stack: ExitStack) -> None:
    known: list[bytes] = []
    host = Host(name, lambda request: known.append(request) or ((b"yes", []) if b"now" in known else None))  # type: ignore[func-returns-value]
    stack.callback(host.close)
    early, late = Inquiry(name, b"early"), Inquiry(name, b"now")
    stack.callback(early.close)
    assert early.answer(time.monotonic() + 0.05) is None
    assert late.answer(time.monotonic() + DEADLINE) == (b"yes", [])
    assert early.answer(time.monotonic() + DEADLINE) == (b"yes", [])
