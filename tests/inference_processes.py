"""What processes of the tests of inference streams run. It loads no torch."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from headrace.streams import InferenceServer, InferenceStream, make_client, make_server

__all__ = [
    "answer_what_is_there",
    "ask_and_fork",
    "ask_and_hang",
    "ask_for_ever",
    "ask_often",
    "double",
    "hold",
    "serve_for_ever",
    "served",
    "sit",
]

#: Seconds after which a process that nobody ended ends.
LIFE = 300.0


def double(requests: Any) -> Any:
    """A policy: twice the observation, and its sum."""
    observation = requests["observation"]
    return {"twice": observation * 2, "sum": observation.sum(-1)}


def served(server: InferenceServer, n: int, seconds: float = LIFE, name: str = "double", version: int = 7) -> int:
    """Answers n requests, as they come; returns in how many batches."""
    n_batches = 0
    end = time.monotonic() + seconds
    while n > 0 and time.monotonic() < end:
        batch = server.poll_requests(timeout=1.0)
        if len(batch):
            server.respond(batch, double(batch.requests), name, version)
            n -= len(batch)
            n_batches += 1
    assert n == 0
    return n_batches


def answer_what_is_there(server: InferenceServer, timeout: float) -> None:
    """Answers one batch, if there is one in time."""
    batch = server.poll_requests(timeout=timeout)
    if len(batch):
        server.respond(batch, double(batch.requests))


def hold(stream: InferenceStream, ready: Connection) -> None:
    """A server process that is killed when it has received a request."""
    server = make_server(stream)
    ready.send("ready")
    if len(server.poll_requests(timeout=LIFE)):
        os.kill(os.getpid(), signal.SIGKILL)


def ask_often(stream: InferenceStream, n: int, ready: Connection) -> None:
    """A client process that asks n times, for three agents each; says whether all answers were right."""
    with make_client(stream) as client:
        agents = [client.register_agent() for _ in range(3)]
        right = True
        for turn in range(n):
            values = [stream.rank * 1000 + 3 * turn + agent for agent in agents]
            ids = [client.post_request({"observation": np.full(3, v, np.float32)}, a) for a, v in enumerate(values)]
            client.flush()
            client.wait(ids)
            results = client.consume_result(ids)
            right &= [float(result.value["sum"]) for result in results] == [3.0 * value for value in values]
        ready.send(right)


def ask_and_hang(stream: InferenceStream, n: int, ready: Connection) -> None:
    """A client process that sends n requests, and is killed."""
    client = make_client(stream)
    for value in range(n):
        client.post_request({"observation": np.full(3, value, np.float32)})
    client.flush()
    ready.send("asked")
    time.sleep(LIFE)


def ask_and_fork(stream: InferenceStream, n: int, ready: Connection) -> None:
    """A client process that sends n requests, has a child, whose pid it says, and is killed."""
    client = make_client(stream)
    for value in range(n):
        client.post_request({"observation": np.full(3, value, np.float32)})
    client.flush()
    child = os.fork()
    if child:
        ready.send(child)
    time.sleep(LIFE)
    os._exit(0)


def ask_for_ever(stream: InferenceStream, *rest: Any) -> None:
    """A client process that asks, and is stopped or killed. rest: the size of an observation, and the connection."""
    size = rest[0] if len(rest) == 2 else 3
    rest[-1].send("asks")
    with make_client(stream) as client:
        for value in range(10**9):
            ids = [client.post_request({"observation": np.full(size, value % 100, np.float32)})]
            client.flush()
            client.wait(ids)
            client.forget(ids)


def serve_for_ever(stream: InferenceStream, ready: Connection) -> None:
    """A server process that is stopped, continued and killed."""
    with make_server(stream) as server:
        ready.send("ready")
        while True:
            answer_what_is_there(server, 1.0)


def sit(server: InferenceServer, ready: Connection) -> None:
    """A fork of a server that does nothing."""
    ready.send("here")
    time.sleep(LIFE)
