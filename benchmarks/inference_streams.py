"""Round trips of inference streams between two processes: a client asks, a server echoes.

    python benchmarks/inference_streams.py
    python benchmarks/inference_streams.py --rounds 7 --types shared_memory ip

A round trip is `post_request` for each agent, `flush`, `wait` and `consume_result` on the client's side,
`poll_requests` and `respond` on the server's; of contenders with "batch" in their names, `post_batch` and
`consume_batch` instead. In the same run and interleaved with it, for comparison: a bare pyzmq DEALER and ROUTER, and
two bare queues of multiprocessing, that send the bytes of the same requests to and fro; and a bare pipe that wakes a
process and is answered. Of each round the median and the 99th percentile are taken, after enough time to find out
whether other programs need the cores, and of these the median over the rounds; ratios are those of medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue

import numpy as np

from headrace.streams import InferenceStream, LocalInferenceQueues, make_client, make_server

_CONTEXT = multiprocessing.get_context("fork")
_WARM_SECONDS = 1.1  # twice what `headrace.processes.patience` takes to find out what other programs do
_KINDS = [kind + way for kind in ("shared_memory", "ip", "local") for way in ("", " batch")]
#: One round trip.
Trip = Callable[[], None]


def rows(n: int) -> list[dict[str, np.ndarray]]:
    return [{"observation": np.full(8, row, np.float32)} for row in range(n)]


def bare_message(n: int) -> list[bytes]:
    return [b"h" * 100, np.stack([row["observation"] for row in rows(n)]).tobytes()]


def serve(stream: InferenceStream, ready: Connection) -> None:
    with make_server(stream) as server:
        ready.send(server.address)
        while True:
            batch = server.poll_requests(timeout=60.0)
            if len(batch):
                server.respond(batch, {"action": batch.requests["observation"][:, :2]}, "echo", 1)


def serve_bare(ready: Connection) -> None:
    import zmq

    socket = zmq.Context().socket(zmq.ROUTER)
    ready.send(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
    while True:
        socket.send_multipart(socket.recv_multipart())


def serve_queues(requests: Queue[list[bytes]], answers: Queue[list[bytes]]) -> None:
    while True:
        answers.put(requests.get())


def serve_pipe(requests: int, answers: int) -> None:
    while True:
        os.write(answers, os.read(requests, 1))


@contextmanager
def running(target: Callable[..., None], *arguments: object) -> Iterator[None]:
    process = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join(10.0)


@contextmanager
def trips(kind: str, n: int) -> Iterator[Trip]:
    """Gives a function that makes one round trip of n requests."""
    parent, child = _CONTEXT.Pipe()
    with ExitStack() as stack:
        if kind == "pipe":
            (read, answers), (requests, write) = os.pipe(), os.pipe()
            stack.enter_context(running(serve_pipe, requests, answers))
            yield partial(_pipe_trip, read, write)
        elif kind == "pyzmq":
            import zmq

            stack.enter_context(running(serve_bare, child))
            context = stack.enter_context(zmq.Context())
            socket = stack.enter_context(context.socket(zmq.DEALER))
            socket.connect(parent.recv())
            yield partial(_bare_trip, socket, bare_message(n))
        elif kind == "queue":
            asked, answered = _CONTEXT.Queue(), _CONTEXT.Queue()
            for each in (asked, answered):
                stack.callback(each.close)
                stack.callback(each.cancel_join_thread)
            stack.enter_context(running(serve_queues, asked, answered))
            yield partial(_queue_trip, asked, answered, bare_message(n))
        else:
            kind, _, batched = kind.partition(" ")
            queues = LocalInferenceQueues(1) if kind == "local" else None
            stream = InferenceStream(kind, f"benchmark-{os.getpid()}-{n}", address="tcp://127.0.0.1:0", queues=queues)
            stack.enter_context(running(serve, stream, child))
            address = parent.recv() or None
            stream = InferenceStream(kind, stream.name, address=address, queues=queues)
            client = stack.enter_context(make_client(stream))
            for _ in range(n):
                client.register_agent()
            requests_of_all = rows(n)
            batch, agents = {"observation": np.stack([row["observation"] for row in requests_of_all])}, range(n)

            def batch_trip() -> None:
                ids = client.post_batch(batch, agents)
                client.flush()
                client.wait(ids)
                client.consume_batch(ids)

            def trip() -> None:
                ids = [client.post_request(request, index) for index, request in enumerate(requests_of_all)]
                client.flush()
                client.wait(ids)
                client.consume_result(ids)

            yield batch_trip if batched else trip


def _bare_trip(socket: object, frames: list[bytes]) -> None:
    socket.send_multipart(frames)  # type: ignore[attr-defined]
    socket.recv_multipart()  # type: ignore[attr-defined]


def _queue_trip(requests: Queue[list[bytes]], answers: Queue[list[bytes]], message: list[bytes]) -> None:
    requests.put(message)
    answers.get()


def _pipe_trip(read: int, write: int) -> None:
    os.write(write, b"!")
    os.read(read, 1)


def measured(trip: Trip, seconds: float) -> tuple[float, float]:
    """Returns the median and the 99th percentile of round trips, in µs."""
    warm = time.perf_counter() + _WARM_SECONDS
    while time.perf_counter() < warm:
        trip()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        trip()
        taken.append(time.perf_counter() - begin)
    quantiles = statistics.quantiles(taken, n=100)
    return quantiles[49] * 1e6, quantiles[98] * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=_KINDS)
    parser.add_argument("--agents", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one round of one contender")
    arguments = parser.parse_args()
    kinds = [*arguments.types, "pyzmq", "queue", "pipe"]
    print(f"{'requests':>9} {'contender':>20} {'p50 µs':>8} {'p99 µs':>8} {'to pyzmq':>9} {'to queue':>9}")
    for n in arguments.agents:
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for turn in range(arguments.rounds):
            # Only one pair of processes at a time, because the waiting ones would poll; to and fro, against drift.
            for kind in kinds if turn % 2 else kinds[::-1]:
                with trips(kind, n) as trip:
                    found[kind].append(measured(trip, arguments.seconds))
        medians = {kind: [statistics.median(column) for column in zip(*found[kind], strict=True)] for kind in kinds}
        for kind, (middle, high) in medians.items():
            ratios = [middle / medians[bare][0] for bare in ("pyzmq", "queue")]
            print(f"{n:9} {kind:>20} {middle:8.1f} {high:8.1f} {ratios[0]:9.2f} {ratios[1]:9.2f}")


if __name__ == "__main__":
    main()
