"""Inference streams: one contract for all kinds, then batches, faults and what each kind has of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from typing import Any

import numpy as np
import pytest

from headrace.errors import StreamClosed, StreamError, StreamTimeout
from headrace.streams import (
    InferenceBatch,
    InferenceClient,
    InferenceServer,
    InferenceStream,
    InlineInferenceClient,
    LocalInferenceQueues,
    make_client,
    make_server,
)
from headrace.streams.codec import Frame, encoded
from headrace.streams.connections import Connection, Ended, connected
from headrace.streams.inference.control import address_of
from headrace.streams.inference.message_server import MessageServer
from headrace.streams.inference.messages import MessageClient, message
from headrace.streams.inference.shared_server import SharedMemoryServer
from headrace.streams.inference.trees import Layout
from tests.inference_processes import (
    answer_what_is_there,
    ask_and_fork,
    ask_and_hang,
    ask_for_ever,
    ask_often,
    double,
    hold,
    serve_for_ever,
    served,
    sit,
)
from tests.leftovers import DEADLINE, descriptors, until

MESSAGES = ["local", "ip", "name"]
SERVED = ["shared_memory", *MESSAGES]
FORK = get_context("fork")


class FakeNames:
    """What streams use of a repository of names."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.n_added = 0

    def add_subentry(
        self, name: str, value: str, *, delete_on_exit: bool = True, keepalive_ttl: float | None = None
    ) -> str:
        self.n_added += 1
        whole = f"{name}/{self.n_added:03}"
        self.values[whole] = value
        return whole

    def get_subtree(self, name: str) -> list[str]:
        return [value for key, value in sorted(self.values.items()) if key.startswith(f"{name}/")]

    def delete(self, name: str) -> None:
        del self.values[name]


class World:
    """A stream of one kind in this process: makes its servers and clients, and closes them in the end."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        if kind in ("ip", "name"):
            pytest.importorskip("zmq", reason="needs pyzmq")
            pytest.importorskip("headrace.streams.sockets", reason="needs sockets")
        self.kind = kind
        self._stack = stack
        queues = stack.enter_context(LocalInferenceQueues(4)) if kind == "local" else None
        #: What the clients and servers are made of.
        self.stream = InferenceStream(
            kind,
            f"test {os.getpid()}",
            address="tcp://127.0.0.1:0" if kind == "ip" else None,
            policy=double,
            queues=queues,
            names=FakeNames() if kind == "name" else None,
            timeout=DEADLINE,
            resend_after=DEADLINE,
        )

    def server(self, **changes: Any) -> InferenceServer:
        server = self._stack.enter_context(make_server(replace(self.stream, **changes)))
        if self.kind == "ip":
            self.stream = replace(self.stream, address=server.address)
        return server

    def client(self, rank: int = 0, client_id: bytes | None = None, **changes: Any) -> InferenceClient:
        return self._stack.enter_context(make_client(replace(self.stream, rank=rank, **changes), client_id=client_id))

    def pair(self, **changes: Any) -> tuple[InferenceServer | None, InferenceClient]:
        """Returns a server, None where the policy is in the client, and a client."""
        server = None if self.kind == "inline" else self.server(**changes)
        return server, self.client(**changes)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["inline", *SERVED])
def world(request: pytest.FixtureRequest, stack: ExitStack) -> World:
    """Every kind of stream."""
    return World(request.param, stack)


@pytest.fixture(params=SERVED)
def served_world(request: pytest.FixtureRequest, stack: ExitStack) -> World:
    """The kinds that have a server."""
    return World(request.param, stack)


def observation(value: float) -> dict[str, np.ndarray]:
    return {"observation": np.full(3, value, np.float32)}


def posted(client: InferenceClient, values: Sequence[float]) -> list[int]:
    return [client.post_request(observation(value)) for value in values]


def answer(server: InferenceServer | None, n: int) -> None:
    if server is not None:
        served(server, n)


def arrived(server: InferenceServer, n: int, max_batch: int | None = None) -> InferenceBatch:
    """Returns the batch of n requests, once all have arrived."""
    batch = server.poll_requests(timeout=DEADLINE, max_batch=max_batch or n, max_wait=DEADLINE)
    assert len(batch) == (max_batch or n)
    return batch


def sums(client: InferenceClient, ids: Sequence[int]) -> list[float]:
    client.wait(ids)
    return [float(result.value["sum"]) for result in client.consume_result(ids)]


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE)
        assert not thread.is_alive()


@contextmanager
def process(work: Callable[..., None], *arguments: Any) -> Iterator[tuple[ForkProcess, Any]]:
    """Runs a function in a process, which is killed in the end; gives it and what it says first."""
    here, there = FORK.Pipe()
    running = FORK.Process(target=work, args=(*arguments, there))
    running.start()
    try:
        assert here.poll(DEADLINE)
        yield running, here.recv()
    finally:
        running.kill()
        running.join(DEADLINE)
        here.close()
        there.close()


# ---- the contract ----


def test_nothing_is_sent_before_flush(world: World) -> None:
    server, client = world.pair()
    ids = posted(client, [1, 2])
    client.poll_responses()
    assert not client.is_ready(ids)
    if server is not None:
        assert len(server.poll_requests()) == 0
    client.flush()
    answer(server, 2)
    assert sums(client, ids) == [3, 6]


def test_results_come_in_the_order_asked_whatever_the_order_of_posts(world: World) -> None:
    server, client = world.pair()
    agents = [client.register_agent() for _ in range(6)]
    assert agents == [0, 1, 2, 3, 4, 5]
    ids = {agent: client.post_request(observation(agent), agent) for agent in (4, 1, 5, 0, 3, 2)}
    client.flush()
    answer(server, 6)
    order = [3, 0, 5, 2, 1, 4]
    client.wait([*ids.values()])
    results = client.consume_result([ids[agent] for agent in order])
    assert [float(result.value["sum"]) for result in results] == [3.0 * agent for agent in order]
    for agent, result in zip(order, results, strict=True):
        np.testing.assert_array_equal(result.value["twice"], np.full(3, 2 * agent, np.float32))
        result.value["twice"][:] = 0  # it is the caller's own


def test_every_answer_carries_the_name_and_version_of_the_policy(served_world: World) -> None:
    server, client = served_world.server(), served_world.client()
    found = []
    for version, name in enumerate(["first", "second", "second"]):
        ids = posted(client, [version])
        client.flush()
        served(server, 1, name=name, version=version)
        client.wait(ids)
        found += [(result.policy_name, result.policy_version) for result in client.consume_result(ids)]
    assert found == [("first", 0), ("second", 1), ("second", 2)]


def test_answers_of_two_policies_that_arrive_together_keep_their_names(served_world: World) -> None:
    server, client = served_world.server(), served_world.client()
    ids = posted(client, [1, 2])
    client.flush()
    batches = [arrived(server, 2, max_batch=1), arrived(server, 1)]
    for version, batch in enumerate(batches):
        server.respond(batch, double(batch.requests), f"policy {batch.ids[0]}", version)
    client.wait(ids)
    assert [result.policy_name for result in client.consume_result(ids)] == ["policy 0", "policy 1"]


def test_the_answer_to_an_earlier_request_is_not_taken_for_the_next(served_world: World) -> None:
    """Of two requests in places that had answers before, one is answered."""
    server, client = served_world.server(), served_world.client()
    for turn in range(3):
        ids = posted(client, [2 * turn, 2 * turn + 1])
        client.flush()
        first = arrived(server, 2, max_batch=1)
        server.respond(first, double(first.requests))
        client.wait(first.ids.tolist())
        assert [client.is_ready([number]) for number in ids] == [number in first.ids for number in ids]
        served(server, 1)
        assert sums(client, ids) == [6.0 * turn, 6.0 * turn + 3]


def test_what_a_client_flushes_is_one_batch(world: World) -> None:
    sizes = []

    def counting(requests: Any) -> Any:
        sizes.append(len(requests["observation"]))
        return double(requests)

    if world.kind == "inline":
        client = world.client(policy=counting)
    else:
        server, client = world.server(), world.client()
    posted(client, range(5))
    client.flush()
    if world.kind != "inline":
        counting(arrived(server, 5).requests)
    assert sizes == [5]


@dataclass
class Seen:
    """A request. A client may post a dict with the same entries."""

    image: np.ndarray
    extra: tuple[np.ndarray, dict[str, np.ndarray]]
    nothing: None = None


@dataclass(frozen=True)
class Chosen:
    """A result."""

    action: int
    memory: np.ndarray


def seen(value: int) -> Seen:
    extra: Any = (np.float64(value), {"b": np.int8(value), "a": np.array([value, -1])})
    return Seen(np.full((2, 2), value, np.uint8), extra)


def choose(requests: Any) -> Chosen:
    """A policy of those."""
    first, rest = requests.extra
    assert rest["b"].dtype == np.int8
    assert requests.image.shape[1:] == (2, 2)
    return Chosen(requests.image[:, 0, 0].astype(np.int64) + first.astype(np.int64), rest["a"] * 2)


def test_trees_of_dataclasses_tuples_and_numbers(world: World) -> None:
    example = (seen(0), Chosen(0, np.zeros(2, np.int64)))
    server, client = world.pair(example=example, policy=choose)
    posts = [seen(1), vars(seen(2)), seen(3)]
    ids = [client.post_request(post) for post in posts]
    client.flush()
    if server is not None:
        batch = arrived(server, 3)
        assert isinstance(batch.requests, Seen)
        server.respond(batch, choose(batch.requests))
    client.wait(ids)
    results = [result.value for result in client.consume_result(ids)]
    assert all(isinstance(result, Chosen) for result in results)
    assert [int(result.action) for result in results] == [2, 4, 6]
    assert [result.memory.tolist() for result in results] == [[2, -2], [4, -2], [6, -2]]


WRONG = [
    ({"observation": np.zeros(4, np.float32)}, r"request\['observation'\] is float32 \[4\], expected float32 \[3\]"),
    ({"observation": np.zeros(3)}, r"request\['observation'\] is float64 \[3\], expected float32 \[3\]"),
    ({"observations": np.zeros(3, np.float32)}, r"request\['observation'\] is missing"),
    ({**observation(0), "more": np.zeros(())}, r"request\['more'\] is float64 \[\], which the first one did not have"),
    ((np.zeros(3, np.float32),), "is missing, expected"),
]


@pytest.mark.parametrize(("request_tree", "message"), WRONG)
def test_a_request_that_differs_from_the_first_one_is_refused(request_tree: Any, message: str) -> None:
    client = InlineInferenceClient(double)
    posted(client, [1])
    with pytest.raises(ValueError, match=message):
        client.post_request(request_tree)
    with pytest.raises(TypeError, match=r"request\['observation'\] is a str, expected an array"):
        client.post_request({"observation": "text"})


def test_a_request_that_differs_from_other_clients_is_refused(served_world: World) -> None:
    server, client, other = served_world.server(), served_world.client(0), served_world.client(1)
    ids = posted(client, [1])
    client.flush()
    served(server, 1)
    refused = other.post_request({"observation": np.zeros(5, np.float32)})
    with pytest.raises(StreamError, match=r"\['observation'\] is float32 \[(0, |1, )5\], expected"):  # noqa: PT012
        other.flush()
        assert len(server.poll_requests(0.2)) == 0
        other.wait([refused])
        other.consume_result([refused])
    assert server.counts.rejected == 1
    assert sums(client, ids) == [3]


def test_results_without_a_row_per_request_are_refused(served_world: World) -> None:
    server, client = served_world.server(), served_world.client()
    posted(client, [1, 2])
    client.flush()
    batch = arrived(server, 2)
    with pytest.raises(ValueError, match=r"result\['sum'\] is float32 \[3\], expected float32 \[2\]"):
        server.respond(batch, {"sum": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="policy_name"):
        server.respond(batch, double(batch.requests), "long" * 100)
    server.respond(batch, double(batch.requests))
    assert server.counts.answered == 2


def test_misuse_of_ids_is_explained(world: World) -> None:
    server, client = world.pair()
    ids = posted(client, [1, 2])
    with pytest.raises(ValueError, match="was not sent yet; call flush"):
        client.wait(ids)
    client.flush()
    if server is not None:
        with pytest.raises(StreamError, match="has no answer yet; call wait"):
            client.consume_result(ids)
    answer(server, 2)
    assert sums(client, ids[:1]) == [3]
    with pytest.raises(ValueError, match="0 is no request"):
        client.consume_result(ids)
    with pytest.raises(ValueError, match="expected each once"):
        client.consume_result([1, 1])
    with pytest.raises(ValueError, match="99 is no request"):
        client.wait([99])
    assert sums(client, ids[1:]) == [6]  # nothing was lost meanwhile
    with pytest.raises(ValueError, match=r"index is 3, expected one that register_agent\(\) returned \(0 agents\)"):
        client.post_request(observation(0), 3)


def test_an_agent_registered_after_the_first_flush_works(world: World) -> None:
    server, client = world.pair()
    first = client.register_agent()
    ids = [client.post_request(observation(1), first)]
    client.flush()
    answer(server, 1)
    late = client.register_agent()
    ids += [client.post_request(observation(2), late), client.post_request(observation(3), first)]
    client.flush()
    answer(server, 2)
    assert sums(client, ids) == [3, 6, 9]


def test_forgotten_requests_are_answered_to_nobody(served_world: World) -> None:
    server, client = served_world.server(), served_world.client()
    ids = posted(client, [1, 2])
    client.flush()
    client.forget(ids[:1])
    served(server, 2)
    assert sums(client, ids[1:]) == [6]
    assert (client.counts.duplicates, client.counts.answered) == (1, 1)


def test_constants_are_sent_when_they_are_set_and_again_when_they_change(world: World) -> None:
    server, client = world.pair()
    state = {"hidden": np.arange(4, dtype=np.float32), "name": "lstm", "layers": 2}
    if server is None:
        assert isinstance(client, InlineInferenceClient)
        client.set_constant("state", state)
        found = [client.get_constant("state")]
    else:
        stop = threading.Event()

        def serve() -> None:
            server.poll_requests()
            server.set_constant("state", state)
            while not stop.is_set():
                server.poll_requests(timeout=0.01)

        with in_thread(serve):
            found = [client.get_constant("state"), client.get_constant("state")]
            server.set_constant("big", np.zeros((1000, 1000)))
            assert client.get_constant("big").shape == (1000, 1000)
            with pytest.raises(StreamTimeout, match="constant 'other'"):
                client.get_constant("other", timeout=0.05)
            stop.set()
        with pytest.raises(TypeError):
            server.set_constant("state", object())
    for constant in found:
        np.testing.assert_array_equal(constant["hidden"], np.arange(4))
        assert (constant["name"], constant["layers"]) == ("lstm", 2)
        constant["hidden"][:] = 0  # it is the caller's own


def test_closing_twice_is_fine_and_calls_afterwards_are_refused(world: World) -> None:
    server, client = world.pair()
    for end in (client, server):
        if end is not None:
            end.close()
            end.close()
    with pytest.raises(StreamClosed, match="this client of stream 'test"):
        client.post_request(observation(0))
    if server is not None:
        with pytest.raises(StreamClosed, match="this server of stream 'test"):
            server.poll_requests()


def test_a_batch_is_posted_and_consumed_as_a_whole(world: World) -> None:
    server, client = world.pair()
    agents = [client.register_agent() for _ in range(4)]
    for turn in range(3):
        values = np.arange(4, dtype=np.float32) + 10 * turn
        ids = client.post_batch({"observation": np.repeat(values[:, None], 3, axis=1)}, agents)
        client.flush()
        if server is not None:
            batch = arrived(server, 4)
            assert sorted(batch.agents.tolist()) == agents
            server.respond(batch, double(batch.requests), "echo", turn)
        client.wait(ids)
        results = client.consume_batch(ids[::-1])
        assert results.value["sum"].tolist() == [3 * value for value in values[::-1]]
        assert results.value["twice"].shape == (4, 3)
        results.value["twice"][:] = 0  # it is the caller's own
        expected = ("echo", turn) if server is not None else ("", -1)
        assert [*zip(results.policy_names, results.policy_versions.tolist(), strict=True)] == [expected] * 4
    assert (client.counts.posted, client.counts.answered) == (12, 12)


def test_batches_and_single_requests_are_flushed_together_and_consumed_in_any_order(world: World) -> None:
    server, client = world.pair()
    first = client.post_request(observation(1))
    batch = client.post_batch({"observation": np.full((3, 3), 2, np.float32)}, [0, 0, 0])
    last = client.post_request(observation(3))
    client.forget([batch[1]])
    client.flush()
    answer(server, 4)
    ids = [last, batch[2], first, batch[0]]
    client.wait(ids)
    assert client.consume_batch(ids[:3]).value["sum"].tolist() == [9, 6, 3]
    assert float(client.consume_result(ids[3:])[0].value["sum"]) == 6
    with pytest.raises(ValueError, match="1 is no request"):
        client.wait(batch)


def test_answers_of_different_policies_are_one_batch_with_the_name_of_each(served_world: World) -> None:
    server, client = served_world.server(), served_world.client()
    ids = client.post_batch({"observation": np.arange(6, dtype=np.float32).reshape(2, 3)}, [0, 0])
    client.flush()
    for version, batch in enumerate([arrived(server, 2, max_batch=1), arrived(server, 1)]):
        server.respond(batch, double(batch.requests), f"policy {batch.ids[0]}", 10 * version + int(batch.ids[0]))
    client.wait(ids)
    results = client.consume_batch(ids)
    assert results.value["sum"].tolist() == [3, 12]
    assert results.policy_names == ["policy 0", "policy 1"]
    assert sorted(results.policy_versions // 10) == [0, 1]
    assert (results.policy_versions % 10).tolist() == [0, 1]


def test_batches_that_do_not_fit_are_refused(world: World) -> None:
    _, client = world.pair()
    posted(client, [1])
    with pytest.raises(ValueError, match=r"request\['observation'\] is float32 \[2, 3\], expected float32 \[3, 3\]"):
        client.post_batch({"observation": np.zeros((2, 3), np.float32)}, [0, 0, 0])
    with pytest.raises(ValueError, match="index is 1, expected one that register_agent"):
        client.post_batch({"observation": np.zeros((2, 3), np.float32)}, [0, 1])
    with pytest.raises(ValueError, match="ids are empty"):
        client.consume_batch([])
    assert len(client.post_batch({"observation": np.zeros((0, 3), np.float32)}, [])) == 0
    assert client.counts.posted == 1


def test_an_inline_policy_gives_its_name_and_version() -> None:
    class Policy:
        name, version = "inline", 3

        def __call__(self, requests: Any) -> Any:
            return double(requests)

    policy = Policy()
    with InlineInferenceClient(policy) as client:
        found = []
        for _ in range(2):
            ids = posted(client, [1])
            client.flush()
            found += [result[1:] for result in client.consume_result(ids)]
            policy.version += 1
    assert found == [("inline", 3), ("inline", 4)]


def test_a_constant_is_as_it_was_when_it_was_set(world: World) -> None:
    server, client = world.pair()
    state = {"hidden": np.zeros(3)}
    assert server is not None or isinstance(client, InlineInferenceClient)
    (client if isinstance(client, InlineInferenceClient) else server).set_constant("state", state)  # type: ignore[union-attr]
    state["hidden"][:] = 1
    stop = threading.Event()

    def serve() -> None:
        while server is not None and not stop.is_set():
            server.poll_requests(timeout=0.01)

    with in_thread(serve):
        found = [client.get_constant("state"), client.get_constant("state")]
        stop.set()
    found[0]["hidden"][:] = 2
    assert found[1]["hidden"].tolist() == [0, 0, 0]


# ---- several clients ----


def test_each_of_several_clients_gets_its_own_answers(served_world: World) -> None:
    server = served_world.server()
    clients = [served_world.client(rank) for rank in range(4)]
    ids = [posted(client, [10 * rank, 10 * rank + 1]) for rank, client in enumerate(clients)]
    for client in clients:
        client.flush()
    batch = arrived(server, 8)
    assert {*batch.clients} == {client.client_id for client in clients}
    server.respond(batch, double(batch.requests))
    found = [sums(client, own) for client, own in zip(clients, ids, strict=True)]
    assert found == [[30.0 * rank, 30.0 * rank + 3] for rank in range(4)]


def test_many_clients_and_servers_at_the_same_time(served_world: World) -> None:
    """Each client asks one of two servers again and again, from a thread of its own."""
    if served_world.kind in ("local", "ip"):
        pytest.skip("a client is given its server, and each server is a stream of its own")
    servers = [served_world.server(rank=rank, servers=2) for rank in range(2)]
    clients = [served_world.client(rank, servers=2) for rank in range(4)]
    wrong: list[Any] = []

    def ask(rank: int) -> None:
        client = clients[rank]
        for turn in range(20):
            values = [float(rank * 1000 + turn * 10 + k) for k in range(3)]
            ids = posted(client, values)
            client.flush()
            if sums(client, ids[::-1]) != [3 * value for value in values[::-1]]:
                wrong.append((rank, turn))

    with ExitStack() as running:
        for server in servers:
            running.enter_context(in_thread(lambda server=server: served(server, 2 * 20 * 3)))  # type: ignore[misc]
        for rank in range(4):
            running.enter_context(in_thread(lambda rank=rank: ask(rank)))  # type: ignore[misc]
    assert wrong == []
    assert [server.counts.received for server in servers] == [120, 120]


def test_client_processes_get_their_own_answers(served_world: World) -> None:
    """Three processes; whoever has nothing to do sleeps, and is woken."""
    server = served_world.server()
    pipes, clients = [], []
    try:
        for rank in range(3):
            here, there = FORK.Pipe()
            stream = replace(served_world.stream, rank=rank)
            clients.append(FORK.Process(target=ask_often, args=(stream, 50, there)))
            clients[-1].start()
            pipes.append(here)
        n_batches = served(server, 3 * 50 * 3)
        assert [here.poll(DEADLINE) and here.recv() for here in pipes] == [True] * 3
    finally:
        for client in clients:
            client.kill()
            client.join(DEADLINE)
    assert n_batches < 3 * 50 * 3  # what a client flushes is not taken apart


# ---- batches ----


class Scripted(InferenceServer):
    """A server to which requests come at known times, by a clock that moves only while it sleeps."""

    def __init__(self, arrivals: Sequence[float]) -> None:
        self.now = 0.0
        self._arrivals = [*arrivals]
        super().__init__("scripted", clock=lambda: self.now)

    def set_constant(self, name: str, tree: Any) -> None:
        raise NotImplementedError

    def _look(self, since: float, enough: Any) -> int:
        return sum(arrival <= self.now for arrival in self._arrivals)

    def _oldest(self) -> float:
        return self._arrivals[0]

    def _take(self, n: int) -> InferenceBatch:
        taken, self._arrivals = self._arrivals[:n], self._arrivals[n:]
        return InferenceBatch(None, [b"client"] * len(taken), np.zeros(n), np.zeros(n))

    def _sleep(self, seconds: float) -> None:
        assert seconds > 0
        later = [arrival for arrival in self._arrivals if arrival > self.now]
        self.now = min(self.now + seconds, *later[:1], self.now + 10)

    def _answer(self, batch: InferenceBatch, leaves: Any, policy_name: str, policy_version: int) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        pass


@pytest.mark.parametrize(
    ("arrivals", "options", "size", "at"),
    [
        ([], {}, 0, 0.0),
        ([], {"timeout": 3.0}, 0, 3.0),
        ([0, 0, 0], {}, 3, 0.0),
        ([1, 2, 3], {"timeout": 5.0}, 1, 1.0),  # without max_wait, what is there
        ([1, 2, 3], {"timeout": 5.0, "max_wait": 1.5}, 2, 2.5),  # the oldest waits no longer
        ([1, 2, 3], {"timeout": 1.0, "max_wait": 9.0}, 3, 10.0),  # the timeout is for the first one
        ([1, 2, 3], {"timeout": 5.0, "max_wait": 9.0, "max_batch": 2}, 2, 2.0),  # a full batch is not held back
        ([0, 0, 0], {"max_batch": 2, "max_wait": 9.0}, 2, 0.0),
        ([0, 9], {"max_batch": 2, "max_wait": 0.5}, 1, 0.5),
    ],
)
def test_a_batch_ends_with_its_size_or_with_the_wait_of_its_oldest_request(
    arrivals: list[float], options: dict[str, Any], size: int, at: float
) -> None:
    server = Scripted(arrivals)
    batch = server.poll_requests(**options)
    assert (len(batch), server.now) == (size, at)
    with pytest.raises(ValueError, match="max_batch is 0"):
        server.poll_requests(max_batch=0)


@pytest.mark.parametrize("kind", ["shared memory", "messages"])
def test_what_was_left_out_of_a_batch_has_waited_since_it_arrived(kind: str, stack: ExitStack) -> None:
    """It is not held back for `max_wait` once more: that time has passed while the first batch was answered."""
    clock, wire = Clock(), Wire()
    server: InferenceServer
    if kind == "messages":
        server = MessageServer("wired", wire, clock=clock)
        client: InferenceClient = wired(wire, "peer")[0]
    else:
        world = World("shared_memory", stack)
        server = SharedMemoryServer(world.stream.name, address_of(world.stream.name, 0), capacity=8, clock=clock)
        stack.enter_context(server)
        client = world.client()
    posted(client, [1, 2, 3])
    client.flush()
    assert len(server.poll_requests(max_batch=2, max_wait=5.0)) == 2
    clock.now += 6.0
    clock.n_left = 10  # a server that waited would look at it for ever
    assert len(server.poll_requests(max_batch=2, max_wait=5.0)) == 1


def test_a_full_batch_is_returned_at_once_and_the_rest_next(served_world: World) -> None:
    server, client = served_world.server(), served_world.client()
    posted(client, range(10))
    client.flush()
    ids = [arrived(server, 4, max_batch=4).ids, arrived(server, 4, max_batch=4).ids, arrived(server, 2).ids]
    assert sorted(np.concatenate(ids)) == [*range(10)]
    assert server.counts.received == 10


class Wire:
    """A channel in memory: what a server of messages receives, and what it sends."""

    def __init__(self) -> None:
        self.arriving: list[tuple[Any, Any]] = []
        self.sent: list[tuple[Any, Any]] = []

    def receive(self) -> tuple[Any, Any] | None:
        return self.arriving.pop(0) if self.arriving else None

    def send(self, peer: Any, parts: Any) -> bool:
        self.sent.append((peer, [bytes(part) for part in parts]))
        return peer != "gone"

    def sleep(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


class Link:
    """A client's end of a wire."""

    def __init__(self, wire: Wire, peer: str) -> None:
        self.wire, self.peer = wire, peer
        self.lost = False  # whether what is sent arrives

    def send(self, parts: Any, seconds: float) -> None:
        if not self.lost:
            self.wire.arriving.append((self.peer, [bytes(part) for part in parts]))

    def receive(self) -> Any:
        for index, (peer, parts) in enumerate(self.wire.sent):
            if peer == self.peer:
                del self.wire.sent[index]
                return parts
        return None

    def sleep(self, seconds: float) -> None:
        pass

    def renew(self) -> None:
        pass

    def close(self) -> None:
        pass


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.n_left = 10**9

    def __call__(self) -> float:
        self.n_left -= 1
        assert self.n_left >= 0
        return self.now


def wired(wire: Wire, peer: str, **changes: Any) -> tuple[MessageClient, Link]:
    link = Link(wire, peer)
    return MessageClient("wired", link, timeout=0.0, **{"resend_after": 1.0, "clock": Clock(), **changes}), link


class Flood(Wire):
    """A wire on which the next message has arrived whenever one was received; each takes a second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.n_received = 0

    def receive(self) -> tuple[Any, Any] | None:
        self.clock.now += 1.0
        self.n_received += 1
        numbers = {"ids": np.array([self.n_received]), "agents": np.zeros(1, np.int64), "oldest": self.n_received}
        return "peer", message("requests", {**numbers, "requests": np.zeros((1, 3))}, producer=b"one")


@pytest.mark.parametrize("max_batch", [None, 3, 10_000])
def test_a_batch_is_returned_in_time_while_requests_never_stop(max_batch: int | None) -> None:
    clock = Clock()
    wire = Flood(clock)
    server = MessageServer("flooded", wire, clock=clock)
    for _ in range(3):
        begin = clock.now
        batch = server.poll_requests(max_wait=5.0, max_batch=max_batch)
        assert clock.now - begin <= 6.0
        assert len(batch) == min(max_batch or 5, 5 if max_batch != 3 else 3)


@pytest.mark.parametrize("kind", ["shared memory", "messages"])
def test_what_arrived_while_the_server_was_busy_is_not_held_back_again(kind: str, stack: ExitStack) -> None:
    clock, wire = Clock(), Wire()
    server: InferenceServer
    if kind == "messages":
        server = MessageServer("wired", wire, clock=clock)
        client: InferenceClient = wired(wire, "peer")[0]
    else:
        world = World("shared_memory", stack)
        server = SharedMemoryServer(world.stream.name, address_of(world.stream.name, 0), capacity=8, clock=clock)
        stack.enter_context(server)
        client = world.client()
    assert len(server.poll_requests()) == 0
    clock.now += 6.0  # it is busy, and meanwhile requests arrive
    posted(client, [1, 2])
    client.flush()
    clock.n_left = 20  # a server that waited would look at it for ever
    assert len(server.poll_requests(max_wait=5.0)) == 2


def test_clients_take_turns_so_that_none_starves() -> None:
    wire = Wire()
    server = MessageServer("wired", wire)
    greedy, modest, late = (wired(wire, peer)[0] for peer in ("greedy", "modest", "late"))
    for _ in range(10):
        posted(greedy, range(10))
        greedy.flush()
    posted(modest, range(3))
    modest.flush()
    first, second = server.poll_requests(max_batch=4), server.poll_requests(max_batch=4)
    assert [*first.clients] == [greedy.client_id] * 4
    assert [*second.clients] == [modest.client_id] * 3 + [greedy.client_id]
    posted(late, [1])
    late.flush()
    third = server.poll_requests(max_batch=4), server.poll_requests(max_batch=4)
    assert late.client_id in {*third[0].clients, *third[1].clients}


def test_slots_take_turns_so_that_none_starves(stack: ExitStack) -> None:
    world = World("shared_memory", stack)
    server, greedy, modest = world.server(), world.client(0), world.client(1)
    posted(greedy, range(6))
    greedy.flush()
    posted(modest, [7])
    modest.flush()
    for _ in range(3):
        batch = server.poll_requests(max_batch=3)
        server.respond(batch, double(batch.requests))
        greedy.poll_responses()
        posted(greedy, range(len(batch)))
        greedy.flush()
    modest.wait([0])  # the greedy client's slots are before its own, and always wait


# ---- duplicates, losses, other holders ----


def test_an_answer_that_is_given_twice_is_counted_and_ignored(served_world: World) -> None:
    server, client = served_world.server(), served_world.client()
    ids = posted(client, [1, 2])
    client.flush()
    batch = arrived(server, 2)
    for factor in (1, 100):
        server.respond(batch, {key: value * factor for key, value in double(batch.requests).items()})
    assert sums(client, ids) == [3, 6]
    if served_world.kind != "shared_memory":
        assert until(lambda: client.poll_responses() or client.counts.duplicates == 2)
    ids = posted(client, [3])
    client.flush()
    served(server, 1)
    assert sums(client, ids) == [9]
    assert server.counts.duplicates == (2 if served_world.kind == "shared_memory" else 0)


def test_unknown_answers_and_answers_for_others_are_counted_and_ignored() -> None:
    wire = Wire()
    client, _ = wired(wire, "peer")
    ids = posted(client, [1])
    client.flush()
    results = {"twice": np.zeros((1, 3), np.float32), "sum": np.zeros(1, np.float32)}
    for producer, number in ((client.client_id, 17), (b"other", 0), (client.client_id, 0), (client.client_id, 0)):
        content = {"ids": np.array([number]), "results": results}
        wire.sent.append(("peer", [bytes(part) for part in message("answers", content, producer=producer)]))
    assert client.poll_responses() == 1
    assert (client.counts.unknown, client.counts.rejected, client.counts.duplicates) == (1, 1, 1)
    assert client.is_ready(ids)


def test_lost_requests_are_sent_again_and_run_once() -> None:
    """The second message arrives twice, the first one not before it is sent again."""
    wire, clock = Wire(), Clock()
    server = MessageServer("wired", wire)
    client, link = wired(wire, "peer", clock=clock)
    link.lost = True
    ids = posted(client, [1])
    client.flush()
    with pytest.raises(StreamTimeout, match="1 of 1 requests of stream 'wired' got no answer in time"):
        client.wait(ids)
    link.lost = False
    ids += posted(client, [2])
    client.flush()
    clock.now += 1.5
    client.poll_responses()
    clock.now += 1.5
    client.poll_responses()  # each time twice as long
    assert client.counts.resent == 2
    batch = server.poll_requests()
    assert sorted(batch.ids.tolist()) == ids
    assert (server.counts.received, server.counts.duplicates) == (2, 1)
    server.respond(batch, double(batch.requests))
    assert sums(client, ids) == [3, 6]
    clock.now += 100
    client.poll_responses()
    assert client.counts.resent == 2  # what is answered is not sent again


def test_a_lost_answer_is_given_again_and_nothing_runs_twice() -> None:
    wire, clock = Wire(), Clock()
    server = MessageServer("wired", wire)
    client, _ = wired(wire, "peer", clock=clock)
    ids = posted(client, [1, 2])
    client.flush()
    batch = server.poll_requests()
    results = double(batch.requests)
    server.respond(batch, results, "double", 7)
    for array in results.values():
        array[:] = -1  # a policy may use its memory again
    wire.sent.clear()  # lost
    clock.now += 1.5
    assert client.poll_responses() == 0
    assert len(server.poll_requests()) == 0
    assert sums(client, ids) == [3, 6]
    assert (client.counts.resent, server.counts.received, server.counts.duplicates) == (2, 2, 2)
    posted(client, [3])
    client.flush()
    replayed = wire.arriving[-1]
    served(server, 1)
    n_sent = len(wire.sent)
    client.poll_responses()
    posted(client, [4])
    client.flush()  # which says that the client has the answer to the third
    wire.arriving.append(replayed)
    assert len(server.poll_requests()) == 1
    assert n_sent == 1
    assert wire.sent == []


def test_ids_that_a_server_remembers_are_those_that_are_waited_for() -> None:
    wire = Wire()
    server = MessageServer("wired", wire)
    client, _ = wired(wire, "peer")
    copies = []
    for turn in range(50):
        ids = posted(client, range(4))
        client.flush()
        copies.append(wire.arriving[-1])
        served(server, 4)
        assert len(sums(client, ids)) == 4
        assert turn == 0 or server.n_remembered == 4
    wire.arriving += copies  # replayed
    assert len(server.poll_requests()) == 0
    assert server.counts.duplicates == 200


def test_a_second_holder_of_a_client_id_is_refused(served_world: World) -> None:
    server, client = served_world.server(), served_world.client(0, b"the same")
    ids = posted(client, [1])
    client.flush()
    first = arrived(server, 1)
    thief = served_world.client(1, b"the same")
    stolen = posted(thief, [2])
    with pytest.raises(StreamError, match="another client"):  # noqa: PT012
        thief.flush()
        assert len(server.poll_requests(timeout=0.2)) == 0
        thief.wait(stolen)
        thief.consume_result(stolen)
    server.respond(first, double(first.requests))
    assert sums(client, ids) == [3]
    assert server.counts.rejected == 1


def test_a_forked_client_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = world.pair()
    posted(client, [1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(StreamError, match=r"process 1 was forked from process .*; make a client in the process"):
            client.flush()
    client.flush()


def test_ids_of_clients_do_not_depend_on_seeds() -> None:
    np.random.seed(0)
    first = InlineInferenceClient(double).client_id
    np.random.seed(0)
    assert InlineInferenceClient(double).client_id != first
    assert len(first) == 8


# ---- the other side is gone ----


def test_without_a_server_requests_time_out(served_world: World) -> None:
    client = served_world.client() if served_world.kind != "ip" else served_world.client(address="tcp://127.0.0.1:9")
    ids = posted(client, [1])
    with pytest.raises(StreamTimeout, match="server"):  # noqa: PT012
        client.flush(0.1)
        client.wait(ids, 0.1)
    assert not client.is_ready(ids)


def test_a_server_that_does_not_answer_is_reported_in_time(served_world: World) -> None:
    _, client = served_world.server(), served_world.client()
    ids = posted(client, [1, 2])
    client.flush()
    with pytest.raises(StreamTimeout, match=r"2 of 2 requests .* got no answer in time"):
        client.wait(ids, 0.05)


def test_when_the_server_is_killed_its_successor_answers(served_world: World) -> None:
    """It is killed while it has the request. The client reports that, then its request is asked again."""
    stream = served_world.stream
    if stream.type == "name":
        first: InferenceServer = served_world.server()
        client = served_world.client(resend_after=0.05)
        ids = posted(client, [5])
        client.flush()
        arrived(first, 1)
        first.close()
    else:
        if stream.type == "ip":
            with served_world.server() as probe:
                stream = replace(stream, address=probe.address)
            served_world.stream = stream
        with process(hold, stream) as (running, _):
            client = served_world.client(resend_after=0.05)
            ids = posted(client, [5])
            client.flush()
            running.join(DEADLINE)
            assert running.exitcode == -9
    with pytest.raises(StreamTimeout):
        client.wait(ids, 0.05)
    with served_world.server() as second:
        ids += posted(client, [6])
        with in_thread(lambda: served(second, 2)):
            client.flush()
            assert sums(client, ids) == [15, 18]
    assert client.counts.resent >= 1


def test_a_killed_client_leaves_its_slots_to_others(stack: ExitStack) -> None:
    world = World("shared_memory", stack)
    server = world.server(capacity=3)
    with process(ask_and_hang, world.stream, 3):
        taken = arrived(server, 3, max_batch=2)  # one request still waits in its slot
        client = world.client()
        ids = posted(client, [1, 2, 3])
        with pytest.raises(StreamError, match="has 3 slots, 3 are taken and 3 more are asked for, give a larger cap"):
            client.flush()
    assert until(lambda: _flushed(client))
    server.respond(taken, double(taken.requests))  # to the killed client, in slots that another one has
    assert (server.counts.lost, client.poll_responses()) == (2, 0)
    served(server, 3)
    assert sums(client, ids) == [3, 6, 9]


def test_requests_of_a_client_that_has_left_are_dropped(stack: ExitStack) -> None:
    world = World("shared_memory", stack)
    server = world.server(capacity=3)
    with world.client() as client:
        posted(client, [1, 2, 3])
        client.flush()
    other = world.client()
    posted(other, [4, 5])
    assert until(lambda: _flushed(other))  # in two slots of the first client
    batch = arrived(server, 2)
    assert {*batch.clients} == {other.client_id}
    assert len(server.poll_requests()) == 0


def _flushed(client: InferenceClient) -> bool:
    try:
        client.flush()
    except StreamError:
        return False
    return True


def test_a_killed_client_leaves_the_server_to_others(served_world: World) -> None:
    server = served_world.server()
    with process(ask_and_hang, served_world.stream, 2):
        batch = arrived(server, 2)
    other = served_world.client(1)
    for _ in range(3):
        ids = posted(other, [4])
        other.flush()
        server.respond(batch, double(batch.requests))
        served(server, 1)
        assert sums(other, ids) == [12]


# ---- shared memory ----


def test_a_second_server_of_a_stream_in_shared_memory_is_refused(stack: ExitStack) -> None:
    world = World("shared_memory", stack)
    first = world.server()
    before = descriptors()
    with pytest.raises(StreamError, match="has a server on this machine already"):
        world.server()
    assert descriptors() <= before
    first.close()
    world.server()


def test_shared_memory_needs_the_declared_results(stack: ExitStack) -> None:
    world = World("shared_memory", stack)
    server = world.server()
    client = world.client(example=(observation(0), {"sum": 0.0}))
    ids = posted(client, [1])
    client.flush()
    served(server, 1)
    with pytest.raises(StreamError, match="answers with other results: result"):
        client.wait(ids)


def test_processes_of_other_users_are_turned_away(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("shared_memory", stack)
    server, client = world.server(), world.client()
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "pid_of_user", lambda self: 0)
        posted(client, [1])
        with pytest.raises(StreamError, match=r"a process of another user, or container, has the name"):
            client.flush(0.2)
        assert until(lambda: server.counts.rejected)
    client.flush()
    served(server, 1)


def test_garbage_on_the_control_connection_ends_only_that_connection(stack: ExitStack) -> None:
    world = World("shared_memory", stack)
    server, client = world.server(), world.client()
    rng = np.random.default_rng(0)
    good = [bytes(part) for part in encoded(Frame({"slots": {"n": 1}}, producer=b"somebody"))]
    for turn in range(100):
        data = bytearray(good[0] if turn % 2 else rng.bytes(turn + 1))
        data[rng.integers(len(data))] ^= 1
        connection = connected(address_of(world.stream.name, 0))
        connection.send([bytes(data), *good[1:]])
        with pytest.raises(Ended):
            connection.receive()
        connection.close()
    ids = posted(client, [1])
    client.flush()
    served(server, 1)
    assert sums(client, ids) == [3]
    assert until(lambda: server.counts.rejected >= 99)


def test_a_constant_that_comes_too_late_is_no_end_of_the_server(stack: ExitStack) -> None:
    world = World("shared_memory", stack)
    server, client = world.server(), world.client()
    with pytest.raises(StreamTimeout, match="constant 'state'"):
        client.get_constant("state", timeout=0.05)
    ids = posted(client, [1])
    client.flush()
    server.set_constant("state", np.arange(3))
    with pytest.raises(StreamTimeout):
        client.wait(ids, 0.3)
    served(server, 1)
    assert sums(client, ids) == [3]
    assert client.counts.resent == 0
    assert client.get_constant("state").tolist() == [0, 1, 2]


def test_slots_that_a_stopped_server_grants_too_late_are_used(stack: ExitStack) -> None:
    """There are no others."""
    world = World("shared_memory", stack)
    world.stream = replace(world.stream, capacity=3)
    with process(serve_for_ever, world.stream) as (running, _):
        client = world.client()
        assert running.pid is not None
        os.kill(running.pid, signal.SIGSTOP)
        ids = posted(client, [1, 2, 3])
        for _ in range(2):
            with pytest.raises(StreamTimeout, match="it may be stopped"):
                client.flush(0.2)
        os.kill(running.pid, signal.SIGCONT)
        client.flush()
        assert sums(client, ids) == [3, 6, 9]


def test_a_stopped_client_keeps_nobody_waiting(served_world: World) -> None:
    """Not even one that is stopped while it sends."""
    server = served_world.server()
    with process(ask_for_ever, served_world.stream) as (running, _):
        served(server, 10)
        assert running.pid is not None
        os.kill(running.pid, signal.SIGSTOP)
        client = served_world.client(1)
        for value in range(20):
            ids = posted(client, [value])
            client.flush()
            with in_thread(lambda ids=ids: client.wait(ids)):  # type: ignore[misc]
                while not client.is_ready(ids):
                    answer_what_is_there(server, 0.05)
            assert float(client.consume_result(ids)[0].value["sum"]) == 3 * value


@pytest.mark.parametrize("kind", ["local", "shared_memory"])
def test_a_client_that_is_killed_in_the_middle_of_its_requests_leaves_a_working_stream(
    kind: str, stack: ExitStack
) -> None:
    """It sends requests of a megabyte as fast as it can."""
    world = World(kind, stack)
    server, client = world.server(capacity=4), world.client(1)
    for _ in range(5):
        with process(ask_for_ever, world.stream, 2**18) as (running, _):
            for _ in range(3):
                batch = server.poll_requests(timeout=DEADLINE)
                observations = batch.requests["observation"]
                assert (observations == observations[:, :1]).all()
                server.respond(batch, double(batch.requests))
            running.kill()
            running.join(DEADLINE)
    ids = [client.post_request({"observation": np.full(2**18, 3, np.float32)})]
    assert until(lambda: _flushed(client))
    with in_thread(lambda: client.wait(ids)):
        while not client.is_ready(ids):
            answer_what_is_there(server, 0.05)
    assert client.consume_result(ids)[0].value["twice"].tolist() == [6.0] * 2**18
    assert server.counts.rejected == 0


def test_a_fork_of_the_server_keeps_nothing_of_the_stream(stack: ExitStack) -> None:
    world = World("shared_memory", stack)
    server, client = world.server(), world.client()
    ids = posted(client, [1])
    client.flush()
    with process(sit, server):
        server.close()
        assert not [thread for thread in threading.enumerate() if "inference/" in thread.name]
        with pytest.raises(StreamTimeout, match="server is gone"):
            client.wait(ids, 1.0)
        second = world.server()
        with in_thread(lambda: served(second, 1)):
            assert sums(client, ids) == [3]


def test_a_fork_of_a_killed_client_does_not_keep_its_slots(stack: ExitStack) -> None:
    world = World("shared_memory", stack)
    server = world.server(capacity=3)
    with process(ask_and_fork, world.stream, 3) as (running, child):
        arrived(server, 3)
        running.kill()
        client = world.client()
        ids = posted(client, [1, 2, 3])
        try:
            assert until(lambda: _flushed(client), 30.0)
        finally:
            os.kill(child, signal.SIGKILL)
        served(server, 3)
        assert sums(client, ids) == [3, 6, 9]


def test_whatever_is_in_memory_before_is_not_delivered(stack: ExitStack) -> None:
    """Everything but what a request or an answer has just been written to is poisoned, in every turn."""
    world = World("shared_memory", stack)
    server, clients = world.server(capacity=6), [world.client(rank) for rank in range(2)]
    reception = vars(server)["_reception"]
    table = vars(server)["_table"]
    rng = np.random.default_rng(0)
    for turn in range(30):
        ids = {}
        for rank, client in enumerate(clients):
            if turn:
                for array in (*reception.requests.leaves, *reception.results.leaves):
                    array[~reception.owned | (table.asked == table.answered)] = np.nan
                table.agents[table.asked == table.answered] = table.policies[table.asked == table.answered] = -9
                table.asked[~reception.owned] = rng.integers(0, 2**40)
            values = [float(100 * turn + 10 * rank + k) for k in range(int(rng.integers(1, 4)))]
            ids[rank] = (posted(client, values), values)
            client.flush()
        served(server, sum(len(of_one) for of_one, _ in ids.values()), version=turn)
        for rank, client in enumerate(clients):
            client.wait(ids[rank][0])
            for result, value in zip(client.consume_result(ids[rank][0]), ids[rank][1], strict=True):
                assert float(result.value["sum"]) == 3 * value
                assert result.value["twice"].tolist() == [2 * value] * 3
                assert (result.policy_name, result.policy_version) == ("double", turn)


def test_a_local_client_waits_while_its_queue_is_full(stack: ExitStack) -> None:
    world = World("local", stack)
    server, client = world.server(), world.client()
    ids: list[int] = []
    with pytest.raises(StreamTimeout, match="no server read any of the last messages"):  # noqa: PT012
        for value in range(100_000):
            ids += posted(client, [value])
            client.flush(0.05)
    n_sent = len(ids) - 1
    assert client.counts.sent == n_sent
    with in_thread(lambda: served(server, len(ids))):
        client.flush()
        client.wait(ids)
    assert [float(result.value["sum"]) for result in client.consume_result(ids[:5])] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_local_queues_go_to_processes_of_any_start_method(method: str, stack: ExitStack) -> None:
    world = World("local", stack)
    server = world.server()
    context: Any = get_context(method)
    here, there = context.Pipe()
    client = context.Process(target=ask_often, args=(replace(world.stream, rank=2), 5, there))
    client.start()
    try:
        served(server, 5 * 3)
        assert here.poll(DEADLINE)
        assert here.recv()
    finally:
        client.kill()
        client.join(DEADLINE)
        here.close()
        there.close()


def test_streams_leave_no_descriptors(served_world: World) -> None:
    def used() -> None:
        with served_world.server() as server, served_world.client() as client:
            ids = posted(client, [1])
            client.flush()
            served(server, 1)
            assert sums(client, ids) == [3]

    used()
    if served_world.kind == "ip":
        served_world.stream = replace(served_world.stream, address="tcp://127.0.0.1:0")
    before, threads = descriptors(), {*threading.enumerate()}
    used()
    assert until(lambda: descriptors() <= before, 10)
    assert {*threading.enumerate()} <= threads


# ---- bad input ----


def test_mutated_messages_are_counted_and_the_server_goes_on() -> None:
    """10,000 messages, each damaged in one place, or truncated, from peers that are dropped after 16 of them."""
    wire = Wire()
    server = MessageServer("wired", wire)
    client, _ = wired(wire, "good")
    rng = np.random.default_rng(0)
    posted(client, range(3))
    client.flush()
    posted(client, range(3))
    client.flush()
    seeds = [parts for _, parts in wire.arriving]
    for kind, content in (("constant", {"name": "state"}), ("bye", {}), ("requests", {"ids": 3}), ("other", {})):
        parts = message(kind, content, producer=b"somebody")
        seeds += [[bytes(part) for part in parts]]
    served(server, 6)
    assert client.poll_responses() == 6
    n_damaged = 10_000
    for number in range(n_damaged):
        parts = [*seeds[number % 3]]  # those that are fine before
        which = int(rng.integers(len(parts)))
        damaged = bytearray(parts[which])
        if number % 7 == 0 or not damaged:
            damaged = damaged[: len(damaged) // 2] if damaged else bytearray(b"x")
        else:
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        parts[which] = bytes(damaged)
        wire.arriving.append((f"peer {number // 20}", parts))
    while wire.arriving:
        assert len(server.poll_requests()) == 0
    assert server.counts.rejected == n_damaged // 20 * 16
    assert server.counts.dropped == n_damaged // 20
    for parts in seeds[3:]:
        wire.arriving.append(("odd", parts))
    assert len(server.poll_requests()) == 0
    ids = posted(client, [4])
    client.flush()
    served(server, 1)
    assert sums(client, ids) == [12]


def test_well_formed_messages_with_other_content_are_refused() -> None:
    wire = Wire()
    server = MessageServer("wired", wire)
    ids = np.arange(2)
    good = {"ids": ids, "agents": ids, "oldest": 0, "requests": np.zeros((2, 3))}
    odd: list[Any] = [
        {**good, "ids": ids.astype(np.int32)},
        {**good, "ids": np.zeros((2, 2), np.int64)},
        {**good, "ids": ids[:0], "agents": ids[:0]},
        {**good, "agents": ids[:1]},
        {**good, "oldest": "0"},
        {**good, "more": 1},
        {key: good[key] for key in ("ids", "agents", "oldest")},
        "text",
        None,
    ]
    for content in odd:
        wire.arriving.append(("peer", message("requests", content, producer=b"id")))
    wire.arriving.append(("peer", message("requests", good)))  # nobody's
    wire.arriving.append(("peer", encoded(Frame((1, 2), producer=b"id"))))
    assert len(server.poll_requests()) == 0
    assert server.counts.rejected == len(odd) + 2
    for requests in ("text", {"a": "text"}, np.float64(3), np.zeros((3, 3))):
        wire.arriving.append(("peer", message("requests", {**good, "requests": requests}, producer=b"id")))
    assert len(server.poll_requests()) == 0
    assert all(b"refused" in parts[0] for _, parts in wire.sent[-4:])
    wire.arriving.append(("other", message("requests", good, producer=b"id")))
    assert len(server.poll_requests()) == 2


def test_damaged_answers_are_counted_and_do_not_answer() -> None:
    wire = Wire()
    server = MessageServer("wired", wire)
    client, _ = wired(wire, "good")
    ids = posted(client, range(3))
    client.flush()
    served(server, 3)
    [(peer, parts)] = wire.sent
    rng = np.random.default_rng(0)
    wire.sent.clear()
    for _ in range(500):
        which = int(rng.integers(len(parts)))
        damaged = bytearray(parts[which])
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        wire.sent.append((peer, [*parts[:which], bytes(damaged), *parts[which + 1 :]]))
    assert client.poll_responses() == 0
    assert client.counts.rejected == 500
    wire.sent.append((peer, parts))
    assert sums(client, ids) == [0, 3, 6]


def test_answers_to_clients_that_are_gone_are_counted() -> None:
    wire = Wire()
    server = MessageServer("wired", wire)
    client, _ = wired(wire, "gone")
    posted(client, range(3))
    client.flush()
    served(server, 3)
    assert (server.counts.lost, server.counts.answered) == (3, 0)
    posted(client, range(2))
    client.flush()
    client.close()
    assert len(server.poll_requests()) == 0  # it said that it leaves, so nobody waits for these


# ---- networks ----


def test_only_clients_with_a_key_that_is_allowed_are_served(stack: ExitStack) -> None:
    world = World("ip", stack)
    from headrace.streams.sockets import AllowList, Keys

    keys, good, stranger, impostor = (Keys.generate() for _ in range(4))
    server = world.server(keys=keys, allowed=AllowList([good.public]))
    refused = [
        world.client(keys=None),
        world.client(keys=stranger.of_server(keys.public)),
        world.client(keys=good.of_server(impostor.public)),
    ]
    client = world.client(keys=good.of_server(keys.public))
    for one in refused:
        posted(one, [1])
        with pytest.raises(StreamTimeout, match="not running, does not read, or refuses the keys"):
            one.flush(0.1)
    ids = posted(client, [2])
    client.flush()
    served(server, 1)
    assert sums(client, ids) == [6]
    assert server.counts.received == 1


def test_plain_text_beyond_loopback_is_refused(stack: ExitStack) -> None:
    world = World("ip", stack)
    for make in (world.server, world.client):
        with pytest.raises(ValueError, match="plain text"):
            make(address="tcp://0.0.0.0:0")


def test_a_client_finds_a_server_under_another_address(stack: ExitStack) -> None:
    world = World("name", stack)
    client = world.client(resend_after=0.05)
    ids = posted(client, [1])
    first, second = world.server(), world.server()
    client.flush()
    served(first, 1)
    assert sums(client, ids) == [3]
    ids = posted(client, [2])
    client.flush()
    arrived(first, 1)
    first.close()
    with in_thread(lambda: served(second, 1)):
        assert sums(client, ids) == [6]


def test_the_address_of_a_server_that_has_died_is_passed_over(stack: ExitStack) -> None:
    """The repository still has it: it expires later."""
    world = World("name", stack)
    assert isinstance(world.stream.names, FakeNames)
    world.stream.names.values[f"inference_stream/{world.stream.name}/000"] = "tcp://127.0.0.1:9"
    server, client = world.server(), world.client()
    ids = posted(client, [1])
    client.flush()
    served(server, 1)
    assert sums(client, ids) == [3]


def test_answers_to_a_client_that_has_disconnected_are_counted(stack: ExitStack) -> None:
    world = World("ip", stack)
    server, client = world.server(), world.client()
    posted(client, [1, 2])
    client.flush()
    batch = arrived(server, 2)
    client.close()

    def noticed() -> bool:
        server.respond(batch, double(batch.requests))
        return server.counts.lost == 2

    assert until(noticed)


def test_a_name_alone_stands_for_a_stream_that_is_found_by_name(stack: ExitStack) -> None:
    names = World("name", stack).stream.names
    with make_server("policy", names=names) as server, make_client("policy", names=names) as client:
        ids = posted(client, [1])
        client.flush()
        served(server, 1)
        assert sums(client, ids) == [3]


def test_clients_are_spread_over_the_servers_by_rank(stack: ExitStack) -> None:
    world = World("name", stack)
    servers = [world.server() for _ in range(2)]
    clients = [world.client(rank) for rank in range(4)]
    for client in clients:
        posted(client, [1])
        client.flush()
    assert [len(arrived(server, 2)) for server in servers] == [2, 2]


# ---- specifications ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "tcp"}, "type is 'tcp', expected one of inline, local, shared_memory, ip, name"),
        ({"type": "inline"}, "needs policy="),
        ({"type": "local"}, "needs queues="),
        ({"type": "ip"}, "needs address="),
        ({"type": "name"}, "needs names="),
        ({"type": "shared_memory", "capacity": 0}, "capacity 0"),
        ({"type": "shared_memory", "example": observation(0)}, "a tuple of two"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InferenceStream(**settings)


def test_made_clients_and_servers_are_returned_as_they_are() -> None:
    client = InlineInferenceClient(double)
    assert make_client(client) is client
    server = Scripted([])
    assert make_server(server) is server
    with pytest.raises(ValueError, match="an inline stream has no server"):
        make_server(InferenceStream("inline", policy=double))


def test_more_local_clients_than_queues_are_refused(stack: ExitStack) -> None:
    with pytest.raises(ValueError, match="rank is 4, but there are queues for 4 clients"):
        World("local", stack).client(4)


def test_layouts_agree_whatever_the_order_of_keys() -> None:
    layout = Layout({"b": np.zeros(2), "a": 1}, "request")
    assert [leaf.shape for leaf in layout.leaves({"b": np.ones(2), "a": 2})] == [(), (2,)]
    assert [leaf.shape for leaf in layout.leaves({"b": np.ones((5, 2)), "a": np.arange(5)}, 5)] == [(5,), (5, 2)]
    with pytest.raises(ValueError, match=r"request\['a'\] is int64 \[4\], expected int64 \[5\] .* with 5 rows"):
        layout.leaves({"b": np.ones((5, 2)), "a": np.arange(4)}, 5)
