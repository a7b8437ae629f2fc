"""What sample streams cost over moving the same bytes without them, in one run, in turn.

    python benchmarks/sample_streams.py
    python benchmarks/sample_streams.py --mb 1 --repeats 15

Each pair is a process that sends and this one, which receives. Printed, medians over the repeats (and the quartiles):

    memory   samples of `--mb` MB per second through shared memory; a bare pair, which copies the same bytes into a ring
             of slots and out of it, with two semaphores; and the ratio
    sockets  the same through ZeroMQ on loopback, beside bare pyzmq with the same frames
    small    samples of 4 arrays, 200 bytes together, per second through shared memory, posted in batches of 1,000
    codec    µs to encode and to decode a sample of 4 arrays
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zmq

from headrace.streams import (
    Appending,
    Frame,
    IpSampleConsumer,
    IpSampleProducer,
    SharedMemorySampleConsumer,
    SharedMemorySampleProducer,
    decoded,
    encoded,
)

SLOTS = 16
WAIT = 60.0


def large(n_bytes: int) -> dict[str, np.ndarray]:
    return {"observation": np.ones(n_bytes, np.uint8)}


def small() -> dict[str, np.ndarray]:
    return {
        "observation": np.ones((5, 6), np.float32),
        "action": np.ones(5, np.int64),
        "reward": np.ones(5, np.float32),
        "done": np.zeros(5, np.bool_),
    }


class Side:
    """One way of moving samples. `send` runs in the other process, after `open_sender`."""

    def open_sender(self) -> None: ...
    def send(self, n: int) -> None: ...
    def receive(self, n: int) -> None: ...
    def close(self) -> None: ...


class BareMemory(Side):
    """A ring of slots and two semaphores."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        memory = mmap.mmap(-1, SLOTS * n_bytes)
        self._slots = [np.frombuffer(memory, np.uint8, n_bytes, index * n_bytes) for index in range(SLOTS)]
        self._free, self._full = multiprocessing.Semaphore(SLOTS), multiprocessing.Semaphore(0)
        self._next = 0

    def open_sender(self) -> None:
        self._array = large(self._n_bytes)["observation"]

    def send(self, n: int) -> None:
        for _ in range(n):
            assert self._free.acquire(timeout=WAIT)
            self._slots[self._next % SLOTS][:] = self._array
            self._next += 1
            self._full.release()

    def receive(self, n: int) -> None:
        for _ in range(n):
            assert self._full.acquire(timeout=WAIT)
            self._slots[self._next % SLOTS].copy()
            self._next += 1
            self._free.release()


class Memory(Side):
    """A stream in shared memory."""

    def __init__(self, sample: dict[str, np.ndarray], at_once: int) -> None:
        self._name = f"benchmark-{os.getpid()}-{at_once}"
        self._sample, self._at_once = sample, at_once
        self._consumer = SharedMemorySampleConsumer(self._name, example=sample, qsize=SLOTS)
        self._count = 0

    def open_sender(self) -> None:
        self._producer = SharedMemorySampleProducer(self._name)

    def send(self, n: int) -> None:
        for _ in range(n // self._at_once):
            for _ in range(self._at_once):
                self._producer.post(self._sample)
            self._producer.flush(WAIT)

    def receive(self, n: int) -> None:
        self._count = 0
        sink = Appending(self._add)
        while self._count < n:
            if self._at_once == 1 or not self._consumer.consume_to(sink, 1000):
                sink.put(self._consumer.consume(timeout=WAIT))

    def _add(self, tree: Any) -> None:
        self._count += 1

    def close(self) -> None:
        self._consumer.close()


class BareSocket(Side):
    """PUSH and PULL with the frames that a stream sends."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._socket = zmq.Context().socket(zmq.PULL)
        self._socket.rcvhwm = 8
        self._socket.rcvtimeo = int(WAIT * 1e3)
        self._port = self._socket.bind_to_random_port("tcp://127.0.0.1")

    def open_sender(self) -> None:
        self._push = zmq.Context().socket(zmq.PUSH)
        self._push.sndhwm = 8
        self._push.connect(f"tcp://127.0.0.1:{self._port}")
        self._frames = encoded(Frame((large(self._n_bytes),), "benchmark"))

    def send(self, n: int) -> None:
        for _ in range(n):
            self._push.send_multipart(self._frames)

    def receive(self, n: int) -> None:
        for _ in range(n):
            self._socket.recv_multipart(copy=False)

    def close(self) -> None:
        self._socket.context.destroy(linger=0)


class Sockets(Side):
    """A stream on ZeroMQ."""

    def __init__(self, n_bytes: int) -> None:
        self._sample = large(n_bytes)
        self._consumer = IpSampleConsumer(name="benchmark")

    def open_sender(self) -> None:
        self._producer = IpSampleProducer(self._consumer.address, "benchmark")

    def send(self, n: int) -> None:
        for _ in range(n):
            self._producer.post(self._sample)
            self._producer.flush(WAIT)

    def receive(self, n: int) -> None:
        for _ in range(n):
            self._consumer.consume(timeout=WAIT)

    def close(self) -> None:
        self._consumer.close()


def sending(side: Side, pipe: Connection) -> None:
    side.open_sender()
    while n := pipe.recv():
        begin = time.process_time()
        side.send(n)
        pipe.send(time.process_time() - begin)


class Pair:
    """A side, with the process that sends."""

    def __init__(self, side: Side, stack: ExitStack) -> None:
        self.side = side
        self._pipe, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=sending, args=(side, theirs), daemon=True)
        process.start()
        stack.callback(side.close)
        stack.callback(process.join, WAIT)
        stack.callback(self._pipe.send, 0)

    def run(self, n: int) -> tuple[float, float]:
        """Returns samples per second, and µs of CPU time per sample on both sides together."""
        cpu, begin = time.process_time(), time.perf_counter()
        self._pipe.send(n)
        self.side.receive(n)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        return n / seconds, (cpu + float(self._pipe.recv())) / n * 1e6


def summary(values: list[float], digits: int = 0) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:10.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def in_turn(what: str, pairs: dict[str, Pair], n: int, repeats: int) -> None:
    """Prints what the pairs do in turn, after one round that does not count."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    for repeat in range(repeats + 1):
        for name, pair in [*pairs.items()][:: 1 - 2 * (repeat % 2)]:
            result = pair.run(n)
            if repeat:
                found[name].append(result)
    for name, results in found.items():
        rates, cpu = map(list, zip(*results, strict=True))
        print(f"{what:8} {name:8} {summary(rates)} samples/s   {summary(cpu)} µs CPU")
    if "bare" in pairs:
        both = [*zip(found["stream"], found["bare"], strict=True)]
        rates, cpu = [ours[0] / bare[0] for ours, bare in both], [bare[1] / ours[1] for ours, bare in both]
        print(f"{what:8} ratio    {summary(rates, 2)}             {summary(cpu, 2)}")


def microseconds(call: Callable[[], object], n: int) -> float:
    begin = time.process_time()
    for _ in range(n):
        call()
    return (time.process_time() - begin) / n * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mb", type=float, default=1.0, help="MB of a large sample")
    parser.add_argument("--samples", type=int, default=300, help="large samples of a repeat")
    parser.add_argument("--small", type=int, default=50_000, help="small samples of a repeat")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    n_bytes = int(options.mb * 1e6)
    with ExitStack() as stack:
        memory = {
            "bare": Pair(BareMemory(n_bytes), stack),
            "stream": Pair(Memory(large(n_bytes), 1), stack),
        }
        sockets = {"bare": Pair(BareSocket(n_bytes), stack), "stream": Pair(Sockets(n_bytes), stack)}
        in_turn("memory", memory, options.samples, options.repeats)
        in_turn("sockets", sockets, options.samples, options.repeats)
        in_turn("small", {"stream": Pair(Memory(small(), 1000), stack)}, options.small, options.repeats)
    sample = small()
    parts = [bytes(part) for part in encoded(Frame(sample))]
    for name, call in (("encode", lambda: encoded(Frame(sample))), ("decode", lambda: decoded(parts))):
        print(f"codec    {name:8} {summary([microseconds(call, 2000) for _ in range(options.repeats)], 2)} µs")


if __name__ == "__main__":
    main()
