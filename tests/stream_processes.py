"""What tests of streams share: samples, a name service, and processes that post, consume, or wait to be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from headrace.streams import SampleStream, make_consumer, make_producer

__all__ = [
    "DEADLINE",
    "Names",
    "consume_all",
    "consume_everything",
    "consume_from_socket",
    "hold_a_batch",
    "post_many",
    "process",
    "sample",
    "stop_in_a_write",
]

DEADLINE = 120.0


class Names:
    """A name service of one process: what streams need of one."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def add_subentry(self, name: str, value: str, *, keepalive_ttl: float | None = None) -> str:
        entry = f"{name}/{os.urandom(4).hex()}"
        self.values[entry] = value
        return entry

    def get_subtree(self, name: str) -> list[str]:
        return [value for entry, value in sorted(self.values.items()) if entry.startswith(f"{name}/")]

    def delete(self, name: str) -> None:
        del self.values[name]


def sample(number: int, length: int = 5) -> dict[str, np.ndarray]:
    """Returns a sample `[length, ...]` in which every number is `number`."""
    return {"observation": np.full((length, 3), number, np.float32), "reward": np.full((length, 1), number, np.int64)}


@contextmanager
def process(target: Callable[..., None], *args: Any) -> Iterator[multiprocessing.Process]:
    """Runs a function in another process, which is gone afterwards."""
    started = multiprocessing.get_context("fork").Process(target=_guarded, args=(target, args))
    started.start()
    try:
        yield started  # type: ignore[misc]
    finally:
        if started.is_alive():
            assert started.pid is not None
            os.kill(started.pid, signal.SIGKILL)
        started.join(DEADLINE)
        started.close()


def _guarded(target: Callable[..., None], args: Any) -> None:
    signal.alarm(int(10 * DEADLINE))  # whatever happens to the test
    target(*args)


def post_many(stream: SampleStream, first: int, n: int, at_once: int) -> None:
    """Posts samples number `first` to `first + n`, and flushes after every `at_once` of them."""
    with make_producer(stream) as producer:
        for number in range(first, first + n):
            producer.post(sample(number), version=number)
            if number % at_once == at_once - 1:
                producer.flush(DEADLINE)
        producer.flush(DEADLINE)
        # A queue of multiprocessing is written by a thread; the memory and the sockets have everything by now.
        assert producer.close(DEADLINE) == 0


def consume_all(stream: SampleStream, results: Any) -> None:
    """Sends None when it is ready, and then the versions of each batch, with the counts so far."""
    with make_consumer(stream) as consumer:
        results.put(None)
        while True:
            taken: Any = consumer.consume(timeout=DEADLINE)
            results.put((taken.versions.tolist(), consumer.counts))


def stop_in_a_write(stream: SampleStream, reached: Any) -> None:
    """Sends one sample, and stops for ever in the middle of the next one."""
    from headrace.streams import shared_memory

    producer = make_producer(stream)
    producer.post(sample(0), 0)
    producer.flush(DEADLINE)

    def half(slot: memoryview, *message: Any) -> None:
        slot[:8] = b"\xff" * 8
        reached.set()
        time.sleep(20 * DEADLINE)

    vars(shared_memory)["_write"] = half
    producer.post(sample(1), 1)
    producer.flush(DEADLINE)


def consume_from_socket(address: str, addresses: Any, results: Any) -> None:
    """Listens at an address, sends the one it got, and then the version of each sample with the counts so far."""
    from headrace.streams import IpSampleConsumer

    with IpSampleConsumer(address, "stream") as consumer:
        addresses.put(consumer.address)
        while True:
            taken: Any = consumer.consume(timeout=10 * DEADLINE)
            results.put((taken.version, consumer.counts))


def consume_everything(stream: SampleStream, address: np.ndarray, marks: np.ndarray) -> None:
    """Writes the port of its socket, if it has one, and marks the version of each sample that arrives."""
    with make_consumer(stream) as consumer:
        if stream.type == "ip":
            port = int(consumer.address.rpartition(":")[2])  # type: ignore[attr-defined]
            address[:4] = np.frombuffer(port.to_bytes(4, "little"), np.uint8)
            address[-1] = 1
        while True:
            taken: Any = consumer.consume(timeout=10 * DEADLINE)
            marks[taken.version] += 1


def hold_a_batch(stream: SampleStream, reached: Any) -> None:
    """Claims a batch, and stops for ever before it is copied."""
    from headrace.streams import sample as interface

    consumer = make_consumer(stream)

    def stop(frames: Any) -> Any:
        reached.set()
        time.sleep(20 * DEADLINE)

    vars(interface)["stacked"] = stop
    consumer.consume(timeout=DEADLINE)
