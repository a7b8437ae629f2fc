"""Sample streams on sockets: strangers, garbage, replayed messages, and peers that die or move."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import NameEntryError, NothingToConsume, StreamError, StreamTimeout
from headrace.streams import (
    AllowList,
    Frame,
    IpSampleConsumer,
    IpSampleProducer,
    Keys,
    NameResolvingSampleConsumer,
    NameResolvingSampleProducer,
    StreamCounts,
    encoded,
)
from headrace.streams.packing import Post, packed
from headrace.streams.sockets import bound, close, connected
from headrace.streams.spreading import ConsumerCounts
from tests.leftovers import until
from tests.stream_processes import DEADLINE, Names, consume_from_socket, process, sample

zmq: Any = pytest.importorskip("zmq", reason="streams on sockets need pyzmq")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def post(producer: Any, *numbers: int, timeout: float = DEADLINE) -> None:
    for number in numbers:
        producer.post(sample(number), number)
        producer.flush(timeout)


def taken(consumer: Any, n: int) -> list[int]:
    return [consumer.consume(timeout=DEADLINE).version for _ in range(n)]


def require_nothing(consumer: Any) -> None:
    with pytest.raises(NothingToConsume):
        consumer.consume(timeout=0.1)


# ---- addresses ----


def test_a_consumer_says_which_port_it_got(stack: ExitStack) -> None:
    consumers = [stack.enter_context(IpSampleConsumer("127.0.0.1:0")) for _ in range(2)]
    ports = [int(consumer.address.rpartition(":")[2]) for consumer in consumers]
    assert ports[0] != ports[1]
    assert min(ports) > 0


def test_a_port_that_is_taken_is_a_readable_error(stack: ExitStack) -> None:
    consumer = stack.enter_context(IpSampleConsumer())
    with pytest.raises(StreamError, match=r"cannot receive on tcp://127\.0\.0\.1:\d+: .*use port 0"):
        IpSampleConsumer(consumer.address)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "tcp://10.1.2.3:5000", "*:80", "example.org:80", "[::]:0"])
def test_plain_text_beyond_this_machine_is_refused_with_the_remedy(address: str) -> None:
    for make in (IpSampleConsumer, IpSampleProducer):
        with pytest.raises(ValueError, match=r"keys=Keys.generate\(\)"):
            make(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "ipc://file", "127.0.0.1:*"])
def test_a_wrong_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        IpSampleConsumer(address)


def test_a_name_consumer_needs_an_address_that_others_can_use() -> None:
    keys = Keys.generate()
    with pytest.raises(ValueError, match="cannot connect to"):
        NameResolvingSampleConsumer(Names(), "x", address="0.0.0.0:0", keys=keys, allowed=AllowList())


def test_a_missing_package_is_one_sentence_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(ImportError, match=r'pip install "headrace\[zmq\]"'):
        IpSampleConsumer()


# ---- keys ----


def test_keys_are_saved_for_this_user_alone(tmp_path: Path) -> None:
    keys = Keys.generate().of_server(Keys.generate().public)
    path = tmp_path / "keys"
    keys.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Keys.load(path) == keys
    assert keys.secret not in repr(keys)
    with pytest.raises(FileExistsError):
        keys.save(path)
    path.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        Keys.load(path)


@pytest.mark.parametrize("content", ["", "[]", '{"public": "x"}', '{"public": "x", "secret": "y", "server": null}'])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="has no keys"):
        Keys.load(path)


def test_an_allow_list_is_read_from_a_file(tmp_path: Path) -> None:
    one, other = Keys.generate().public, Keys.generate().public
    path = tmp_path / "allowed"
    path.write_text(f"# actors\n{one}\n\n")
    allowed = AllowList.load(path)
    assert (one in allowed, other in allowed, len(allowed)) == (True, False, 1)
    with pytest.raises(ValueError, match="AllowList"):
        allowed.add("short")


def test_keys_without_an_allow_list_or_the_key_of_the_server_are_refused() -> None:
    keys = Keys.generate()
    with pytest.raises(ValueError, match="give an AllowList"):
        IpSampleConsumer(keys=keys)
    with pytest.raises(ValueError, match="of_server"):
        IpSampleProducer("127.0.0.1:1", keys=keys)


def test_only_clients_in_the_list_are_heard(stack: ExitStack) -> None:
    server, good, stranger = Keys.generate(), Keys.generate(), Keys.generate()
    allowed = AllowList([good.public])
    consumer = stack.enter_context(IpSampleConsumer(keys=server, allowed=allowed))

    def producer(keys: Keys | None) -> IpSampleProducer:
        made = IpSampleProducer(consumer.address, keys=keys)
        stack.callback(made.close, 0.0)
        return made

    served = producer(good.of_server(server.public))
    refused = [
        producer(None),
        producer(stranger.of_server(server.public)),
        producer(good.of_server(stranger.public)),  # the wrong server
    ]
    for other in refused:
        other.post(sample(9), 9)
        with pytest.raises(StreamTimeout):
            other.flush(0.3)
    post(served, 0, 1)
    assert taken(consumer, 2) == [0, 1]
    require_nothing(consumer)
    assert [other.counts.delivered for other in refused] == [0, 0, 0]
    # Somebody who is let in later comes in.
    allowed.add(stranger.public)
    late = producer(stranger.of_server(server.public))
    post(late, 5)
    assert taken(consumer, 1) == [5]


# ---- what arrives ----


def push(stack: ExitStack, address: str, keys: Keys | None = None) -> Callable[[list[Any]], None]:
    """Returns a function that sends a message of one's own making."""
    socket = connected(zmq.PUSH, address, keys, high_water=1000)
    stack.callback(close, socket)

    def send(parts: list[Any]) -> None:
        assert socket.poll(int(DEADLINE * 1e3), zmq.POLLOUT)
        socket.send_multipart(parts)

    return send


def message(sequence: int, producer: bytes = b"p", epoch: int = 0) -> list[Any]:
    return encoded(Frame(packed([Post(sample(sequence), sequence, 0)]), "", sequence, producer, epoch, sequence))


def test_replayed_messages_are_ignored_and_counted(stack: ExitStack) -> None:
    consumer = stack.enter_context(IpSampleConsumer())
    send = push(stack, consumer.address)
    for sequence in (0, 1, 1, 0, 2, 5, 5, 6):
        send(message(sequence))
    send(message(0, epoch=1))
    assert taken(consumer, 6) == [0, 1, 2, 5, 6, 0]
    require_nothing(consumer)
    assert (consumer.counts.duplicates, consumer.counts.lost, consumer.counts.delivered) == (3, 2, 6)


def test_garbage_is_counted_and_the_others_are_served(stack: ExitStack) -> None:
    consumer = stack.enter_context(IpSampleConsumer())
    send = push(stack, consumer.address)
    producer = IpSampleProducer(consumer.address)
    stack.callback(producer.close, 0.0)
    generator = np.random.default_rng(0)
    good = [bytes(part) for part in message(0)]
    post(producer, 1)
    for number in range(200):
        garbage = [bytearray(part) for part in good]
        part = garbage[number % len(garbage)]
        part[int(generator.integers(len(part)))] ^= 0xFF
        send([bytes(part) for part in garbage])
    send([b""])
    send([b"\x80\x04\x95"])
    post(producer, 2)
    assert sorted(taken(consumer, 2)) == [1, 2]
    assert until(lambda: _counts(consumer) == 202)
    require_nothing(consumer)


def _counts(consumer: IpSampleConsumer) -> int:
    with suppress(NothingToConsume):
        consumer.consume()
    return consumer.counts.rejected


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_pickle_is_never_opened(stack: ExitStack, tmp_path: Path) -> None:
    consumer = stack.enter_context(IpSampleConsumer())
    send = push(stack, consumer.address)
    marker = tmp_path / "opened"
    good = message(0)
    for protocol in range(6):
        hostile = pickle.dumps(Hostile(str(marker)), protocol)
        for parts in (
            [hostile],
            [b"0002", hostile],
            [bytes(good[0]), hostile],
            [bytes(good[0]), bytes(good[1]), hostile],
        ):
            send(parts)
    send(message(1))
    assert taken(consumer, 1) == [1]
    assert consumer.counts.rejected == 24
    assert not marker.exists()


def test_a_message_without_samples_is_rejected(stack: ExitStack) -> None:
    consumer = stack.enter_context(IpSampleConsumer())
    send = push(stack, consumer.address)
    versions = np.zeros(2, np.int64)
    trees = [
        None,
        {"a": 1},
        (),
        (1, 2, 3),
        ({"a": np.zeros(3)}, versions),
        ({"a": 1}, versions),
        ({"a": np.zeros((2, 3))}, np.zeros(2)),
        ({"a": np.zeros((0, 3))}, np.zeros(0, np.int64)),
        ({"a": np.zeros(())}, versions),
    ]
    for tree in trees:
        send(encoded(Frame(tree)))
    send(encoded(Frame(({"a": np.zeros((2, 3))}, versions))))
    assert taken(consumer, 2) == [0, 0]
    assert consumer.counts.rejected == len(trees)


def test_a_client_that_sends_garbage_is_no_longer_heard(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.streams.ip._MOST_REJECTED", 10)
    server, hostile, good = Keys.generate(), Keys.generate(), Keys.generate()
    allowed = AllowList([hostile.public, good.public])
    consumer = stack.enter_context(IpSampleConsumer(keys=server, allowed=allowed))
    send = push(stack, consumer.address, hostile.of_server(server.public))
    for _ in range(10):
        send([b"garbage"])
    send(message(0, b"x"))
    producer = IpSampleProducer(consumer.address, keys=good.of_server(server.public))
    stack.callback(producer.close, 0.0)
    assert until(lambda: _counts(consumer) == 11)
    post(producer, 3)
    assert taken(consumer, 1) == [3]


def test_a_part_larger_than_the_limit_ends_the_connection_and_others_are_served(stack: ExitStack) -> None:
    from headrace.streams import Limits

    consumer = stack.enter_context(IpSampleConsumer(limits=Limits(payload_bytes=10**5)))
    send = push(stack, consumer.address)
    send(encoded(Frame((np.zeros(10**6, np.uint8),))))
    producer = IpSampleProducer(consumer.address)
    stack.callback(producer.close, 0.0)
    post(producer, 4)
    assert taken(consumer, 1) == [4]
    require_nothing(consumer)


# ---- peers that are not there ----


def test_an_absent_consumer_blocks_nobody_and_nothing_is_lost(stack: ExitStack) -> None:
    with IpSampleConsumer() as gone:
        address = gone.address
    producer = IpSampleProducer(address)
    stack.callback(producer.close, 0.0)
    for number in range(30):
        producer.post(sample(number), number)
    with pytest.raises(StreamTimeout):
        producer.flush(0.05)
    assert producer.waiting == 30
    consumer = stack.enter_context(IpSampleConsumer(address))
    producer.flush(DEADLINE)
    assert taken(consumer, 30) == [*range(30)]


def test_what_could_not_be_sent_at_close_is_reported(stack: ExitStack) -> None:
    with IpSampleConsumer() as gone:
        address = gone.address
    producer = IpSampleProducer(address)
    for number in range(3):
        producer.post(sample(number))
    assert producer.close(0.05) == 3
    assert (producer.counts.posted, producer.counts.lost, producer.counts.delivered) == (3, 3, 0)


def test_memory_of_a_slow_consumer_is_bounded(stack: ExitStack) -> None:
    consumer = stack.enter_context(IpSampleConsumer(high_water=2))
    producer = IpSampleProducer(consumer.address, high_water=2)
    stack.callback(producer.close, 0.0)
    large = {"a": np.zeros(4 * 10**6, np.uint8)}
    sent = 0
    while not producer.waiting and sent < 100:
        producer.post(large)
        sent += 1
        with suppress(StreamTimeout):
            producer.flush(0.2)
    assert producer.counts.delivered <= 2 + 2 + 4  # of each side, and what the system holds


def test_what_was_on_the_way_when_a_connection_ended_is_counted(stack: ExitStack) -> None:
    with IpSampleConsumer() as consumer:
        producer = IpSampleProducer(consumer.address)
        stack.callback(producer.close, 0.0)
        post(producer, 0, 1, 2)
        assert taken(consumer, 3) == [0, 1, 2]
        assert producer.counts.uncertain == 0
    producer.post(sample(3))
    with suppress(StreamTimeout):
        producer.flush(0.3)
    # Nobody here knows of the first three; nor of the fourth, if it was sent before the end was noticed.
    assert producer.counts.uncertain in (3, producer.counts.delivered)


# ---- names ----


def named(stack: ExitStack, names: Any, **settings: Any) -> NameResolvingSampleConsumer:
    return stack.enter_context(NameResolvingSampleConsumer(names, "stream", **settings))


def sender(stack: ExitStack, names: Any, **settings: Any) -> NameResolvingSampleProducer:
    producer = NameResolvingSampleProducer(names, "stream", refresh=0.05, **settings)
    stack.callback(producer.close, 0.0)
    return producer


def test_producers_are_spread_by_rank(stack: ExitStack) -> None:
    names = Names()
    consumers = [named(stack, names) for _ in range(2)]
    for rank in range(4):
        post(sender(stack, names, rank=rank), rank, rank + 10)
    found = sorted(sorted(taken(consumer, 4)) for consumer in consumers)
    assert found == [[0, 2, 10, 12], [1, 3, 11, 13]]


def test_round_robin_gives_equal_shares_without_gaps(stack: ExitStack) -> None:
    names = Names()
    consumers = [named(stack, names) for _ in range(3)]
    producer = sender(stack, names, method="round_robin")
    for number in range(12):
        producer.post(sample(number), number)
    producer.flush(DEADLINE)
    found = [taken(consumer, 4) for consumer in consumers]
    assert sorted(number for of_one in found for number in of_one) == [*range(12)]
    assert all(of_one == [*range(of_one[0], 12, 3)] for of_one in found)
    assert [consumer.counts.lost for consumer in consumers] == [0, 0, 0]


def test_broadcast_gives_everybody_everything(stack: ExitStack) -> None:
    names = Names()
    consumers = [named(stack, names) for _ in range(3)]
    producer = sender(stack, names, method="broadcast")
    post(producer, 0, 1, 2)
    for consumer in consumers:
        assert taken(consumer, 3) == [0, 1, 2]
        assert consumer.counts.duplicates == 0


def test_a_broadcast_goes_on_without_a_consumer_that_is_absent_and_reaches_it_later(stack: ExitStack) -> None:
    names = Names()
    consumer = named(stack, names)
    with IpSampleConsumer() as gone:
        address = gone.address
    names.values["sample_streams/stream/consumers/gone"] = address
    producer = sender(stack, names, method="broadcast")
    reused = {"number": np.zeros(2, np.int64)}
    for number in range(3):
        reused["number"][:] = number  # the arrays may change after a flush, also for those that are behind
        producer.post(reused, number)
        producer.flush(DEADLINE)
        assert taken(consumer, 1) == [number]
    assert producer.consumer_counts[address] == ConsumerCounts(waiting=3)
    back = stack.enter_context(IpSampleConsumer(address, "stream"))
    assert until(lambda: producer.flush() or producer.consumer_counts[address] == ConsumerCounts(sent=3))  # type: ignore[func-returns-value]
    arrived = [back.consume(timeout=DEADLINE) for _ in range(3)]
    assert [(frame.version, frame.tree["number"].tolist()) for frame in arrived] == [(k, [k, k]) for k in range(3)]
    assert producer.counts.delivered == 3
    require_nothing(consumer)


def test_a_consumer_too_far_behind_a_broadcast_loses_its_oldest_samples_which_are_counted(stack: ExitStack) -> None:
    names = Names()
    consumer = named(stack, names)
    with IpSampleConsumer() as gone:
        names.values["sample_streams/stream/consumers/gone"] = address = gone.address
    producer = sender(stack, names, method="broadcast", backlog=4)
    for number in range(10):
        post(producer, number)
        assert taken(consumer, 1) == [number]
    assert producer.consumer_counts[address] == ConsumerCounts(waiting=4, lost=6)
    back = stack.enter_context(IpSampleConsumer(address, "stream"))
    assert until(lambda: producer.flush() or not producer.consumer_counts[address].waiting)  # type: ignore[func-returns-value]
    assert taken(back, 4) == [6, 7, 8, 9]
    del names.values["sample_streams/stream/consumers/gone"]
    post(producer, 10)
    assert taken(consumer, 1) == [10]


def test_what_a_broadcast_drops_before_anybody_takes_it_is_counted_once(stack: ExitStack) -> None:
    names = Names()
    with IpSampleConsumer() as gone:
        names.values["sample_streams/stream/consumers/gone"] = address = gone.address
    producer = sender(stack, names, method="broadcast", policy="drop_oldest", capacity=2)
    for number in range(5):
        producer.post(sample(number, length=1 + number), number)  # of different shapes: five messages
        producer.flush()
    assert (producer.waiting, producer.counts.lost) == (2, 3)
    back = stack.enter_context(IpSampleConsumer(address, "stream"))
    assert until(lambda: producer.flush() or not producer.waiting)  # type: ignore[func-returns-value]
    assert taken(back, 2) == [3, 4]
    assert producer.consumer_counts[address].sent == producer.counts.delivered == 2
    require_nothing(back)


class Consumers:
    """Consumers in processes of their own, for producers of this one."""

    def __init__(self, stack: ExitStack, names: Names, n: int) -> None:
        context = multiprocessing.get_context("fork")
        self.results: list[Any] = []
        self.processes = []
        self.addresses: list[str] = []
        for index in range(n):
            addresses, results = context.SimpleQueue(), context.Queue()
            self.processes.append(stack.enter_context(process(consume_from_socket, "127.0.0.1:0", addresses, results)))
            self.results.append(results)
            self.addresses.append(addresses.get())
            names.values[f"sample_streams/stream/consumers/{index}"] = self.addresses[-1]
            stack.callback(results.join_thread)
            stack.callback(results.close)

    def signal(self, index: int, number: signal.Signals) -> None:
        pid = self.processes[index].pid
        assert pid is not None
        os.kill(pid, number)
        if number == signal.SIGKILL:
            self.processes[index].join(DEADLINE)

    def versions(self, index: int, n: int) -> list[int]:
        return [self.results[index].get(timeout=DEADLINE)[0] for _ in range(n)]


LARGE = np.zeros(2**19, np.uint8)  # a few of which fill a connection


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_consumer_that_was_killed_or_stopped_keeps_a_broadcast_from_nobody(
    stack: ExitStack, fate: signal.Signals
) -> None:
    names = Names()
    consumers = Consumers(stack, names, 3)
    producer = sender(stack, names, method="broadcast", backlog=4, high_water=2)
    producer.post({"a": LARGE}, 0)
    producer.flush(DEADLINE)
    for index in range(3):
        assert consumers.versions(index, 1) == [0]
    consumers.signal(1, fate)
    n = 60  # 30 MB: more than the connection of a stopped process and its queue hold
    for number in range(1, n):
        producer.post({"a": LARGE}, number)
        producer.flush(DEADLINE)
        # The others get everything although nobody has noticed yet that one is not there.
        assert consumers.versions(0, 1) == consumers.versions(2, 1) == [number]
    counts = producer.consumer_counts[consumers.addresses[1]]
    assert counts.sent + counts.waiting + counts.lost == n
    assert counts.lost > 0
    assert counts.waiting <= 4
    assert producer.counts == StreamCounts(posted=n, delivered=n, uncertain=producer.counts.uncertain)
    if fate == signal.SIGSTOP:
        consumers.signal(1, signal.SIGCONT)
        assert until(lambda: producer.flush() or not counts.waiting)  # type: ignore[func-returns-value]
        found = [consumers.results[1].get(timeout=DEADLINE)]
        while found[-1][0] < n - 1:
            found.append(consumers.results[1].get(timeout=DEADLINE))
        assert found[-1][1].lost == n - 1 - len(found) == counts.lost  # it sees the gap that the producer knows of


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_consumer_that_was_killed_or_stopped_is_passed_over_in_turn(stack: ExitStack, fate: signal.Signals) -> None:
    names = Names()
    consumers = Consumers(stack, names, 3)
    producer = sender(stack, names, method="round_robin", high_water=2)
    for number in range(3):
        producer.post({"a": LARGE}, number)
        producer.flush(DEADLINE)
    assert sorted(consumers.versions(0, 1) + consumers.versions(1, 1) + consumers.versions(2, 1)) == [0, 1, 2]
    consumers.signal(1, fate)
    for number in range(3, 80):
        producer.post({"a": LARGE}, number)
        producer.flush(DEADLINE)
    last = {0: -1, 2: -1}
    arrived = 0
    while max(last.values()) < 79 or arrived < 40:  # the other one has the one before
        for index in last:
            with suppress(queue.Empty):
                last[index], counts = consumers.results[index].get(timeout=0.05)
                arrived += 1
                assert counts.lost == 0  # numbers of one consumer have no gaps
    assert producer.counts.delivered == 80


def test_producers_of_a_consumer_that_died_go_to_another_one_before_its_record_has_gone(stack: ExitStack) -> None:
    names = Names()
    consumers = Consumers(stack, names, 2)
    producers = [sender(stack, names, rank=rank) for rank in range(2)]
    for rank, producer in enumerate(producers):
        post(producer, rank)
    in_order = sorted(range(2), key=lambda index: consumers.addresses[index])
    assert [consumers.versions(index, 1) for index in in_order] == [[0], [1]]
    consumers.signal(in_order[1], signal.SIGKILL)
    number = 1
    while producers[1].counts.uncertain == 0:  # until the end of the connection was noticed
        number += 1
        post(producers[1], number)
    post(producers[0], 100)
    post(producers[1], 101)
    found = [consumers.results[in_order[0]].get(timeout=DEADLINE) for _ in range(2)]
    while not {100, 101} <= {version for version, _ in found}:
        found.append(consumers.results[in_order[0]].get(timeout=DEADLINE))
    assert found[-1][1].lost == 0


def test_a_consumer_that_comes_back_under_another_address_is_found(stack: ExitStack) -> None:
    names = Names()
    producer = sender(stack, names)
    with NameResolvingSampleConsumer(names, "stream") as first:
        post(producer, 0)
        assert taken(first, 1) == [0]
    number = 0
    while not producer.waiting:  # what is sent before the end of the connection is noticed is lost, and counted
        number += 1
        producer.post(sample(number), number)
        with suppress(StreamTimeout):
            producer.flush(0.1)
    second = named(stack, names)
    producer.flush(DEADLINE)
    assert taken(second, 1) == [number]
    assert producer.counts.uncertain >= number - 1


def test_a_stale_address_is_left_when_its_record_is_gone(stack: ExitStack) -> None:
    names = Names()
    with IpSampleConsumer() as gone:
        names.values["sample_streams/stream/consumers/0"] = gone.address
    producer = sender(stack, names)
    producer.post(sample(0), 0)
    with pytest.raises(StreamTimeout):
        producer.flush(0.2)
    names.values.clear()
    consumer = named(stack, names)
    producer.flush(DEADLINE)
    assert taken(consumer, 1) == [0]


def test_a_name_service_that_is_down_does_not_end_the_stream(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names()
    consumer = named(stack, names)
    producer = sender(stack, names)
    post(producer, 0)

    def down(name: str) -> list[str]:
        raise NameEntryError("the service cannot be reached")

    monkeypatch.setattr(names, "get_subtree", down)
    time.sleep(0.06)  # so that the producer looks
    post(producer, 1)
    assert taken(consumer, 2) == [0, 1]


def test_a_consumer_deletes_its_record(stack: ExitStack) -> None:
    names = Names()
    with NameResolvingSampleConsumer(names, "stream") as consumer:
        assert [*names.values.values()] == [consumer.address]
    assert names.values == {}


def test_a_wrong_way_to_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="method is 'all'"):
        NameResolvingSampleProducer(Names(), "x", method="all")  # type: ignore[arg-type]


# ---- the parts ----


def test_a_socket_is_closed_at_once_with_its_context() -> None:
    socket, address = bound(zmq.PULL, "127.0.0.1:0")
    assert not close(socket)
    assert close(socket)
    assert socket.context.closed
    again, _ = bound(zmq.PULL, address)
    close(again)


def test_a_close_with_messages_that_nobody_takes_ends_at_its_deadline(stack: ExitStack) -> None:
    consumer = stack.enter_context(IpSampleConsumer(high_water=1))
    producer = IpSampleProducer(consumer.address, high_water=100)
    large = {"a": np.zeros(10**7, np.uint8)}
    for _ in range(20):
        producer.post(large)
    producer.flush(DEADLINE)
    assert producer.close(0.1) == 0
    assert producer.counts.uncertain > 0
