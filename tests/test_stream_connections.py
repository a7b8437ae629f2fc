"""Connections between processes of one machine, and names under which they are found: what streams are set up with."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pytest

from headrace.errors import FrameRejected, StreamError
from headrace.memory import anonymous_file
from headrace.streams.connections import Connection, Ended, Listener, connected
from headrace.streams.pieces import joined, separated
from headrace.streams.rendezvous import Host, Inquiry, Watch
from tests.leftovers import descriptors, until
from tests.stream_processes import DEADLINE, process


@pytest.fixture
def name() -> str:
    return f"test-{os.urandom(6).hex()}"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def pair(most_bytes: int = 2**22) -> tuple[Connection, Connection]:
    one, other = (Connection(end, most_bytes) for end in Connection.pair())
    for end in (one, other):
        end.wait_at_most(DEADLINE)
    return one, other


def echo(connection: Connection) -> None:
    parts, fds = connection.receive()
    connection.send(parts, fds)
    for fd in fds:
        os.close(fd)


def idle(*kept: Any) -> None:
    time.sleep(20 * DEADLINE)


# ---- messages ----


@pytest.mark.parametrize("size", [0, 1, 2**16 - 200, 2**16, 3_000_000])
def test_messages_of_any_size_arrive_whole_with_their_descriptors(size: int) -> None:
    one, other = pair()
    before = descriptors()
    data = np.random.default_rng(0).bytes(size)
    memory = anonymous_file(8)
    os.pwrite(memory, b"contents", 0)
    one.send([b"head", memoryview(data)], [memory])
    parts, fds = other.receive()
    assert [bytes(part) for part in parts] == [b"head", data]
    assert [os.pread(fd, 8, 0) for fd in fds] == [b"contents"]
    for fd in (memory, *fds):
        os.close(fd)
    assert descriptors() <= before
    one.close()
    with pytest.raises(Ended):
        other.receive()
    with pytest.raises(Ended):
        other.send([b"to nobody"])
    other.close()


@pytest.mark.parametrize("size", [50_000, 3_000_000])
def test_a_message_larger_than_agreed_is_rejected_and_the_next_one_arrives(size: int) -> None:
    one, other = pair(most_bytes=10_000)
    before = descriptors()
    one.send([bytes(size)])
    with pytest.raises(FrameRejected, match="at most 10000 are accepted"):
        other.receive()
    one.send([b"small"])
    assert other.receive()[0] == [b"small"]
    assert descriptors() <= before
    one.close()
    other.close()


def test_damaged_packets_are_rejected_and_leave_no_descriptors() -> None:
    raw, end = Connection.pair()
    connection = Connection(end)
    before = descriptors()
    rng = np.random.default_rng(0)
    reader, writer = os.pipe()
    whole = joined([b"some", b"parts"])
    packets = [rng.bytes(length) for length in range(1, 200)]
    packets += [b"\0" + whole[:-1], b"\0" + whole + b"!", b"\0" + (2**62).to_bytes(8, "little"), b"\1"]
    for packet in packets:
        socket.send_fds(raw, [packet], [writer])  # of a pipe, which is no memory
        with suppress(FrameRejected):
            parts, fds = connection.receive()
            assert packet[:1] != b"\1"
            assert separated(packet[1:]) == parts
            os.close(fds[0])
    socket.send_fds(raw, [b"\0" + whole], [writer] * 100)
    with pytest.raises(FrameRejected):
        connection.receive()
    os.close(reader)
    os.close(writer)
    assert descriptors() <= before
    connection.close()
    raw.close()


def send_for_ever(raw: socket.socket, size: int) -> None:
    connection = Connection(raw)
    for number in range(10**9):
        connection.send([bytes([number % 256]) * size])


def test_a_sender_that_is_killed_leaves_no_part_of_a_message() -> None:
    """Whether messages are sent in packets, or in memory."""
    for size in (60_000, 1_000_000):
        for n_before in (1, 4, 16):
            here, there = Connection.pair()
            receiver = Connection(here, 2**22)
            receiver.wait_at_most(DEADLINE)
            with process(send_for_ever, there, size) as sender:
                there.close()
                for number in range(n_before):
                    assert receiver.receive()[0] == [bytes([number]) * size]
                assert sender.pid is not None
                os.kill(sender.pid, signal.SIGKILL)
                with suppress(Ended):
                    for number in range(n_before, 10**9):
                        assert receiver.receive()[0] == [bytes([number % 256]) * size]
            receiver.close()


# ---- listening ----


def test_a_name_has_one_listener_and_is_free_when_it_is_closed(name: str) -> None:
    before = descriptors()
    first = Listener(name, echo)
    with pytest.raises(OSError, match="in use") as raised:
        Listener(name, echo)
    assert raised.value.errno == errno.EADDRINUSE
    heir = Listener(name, echo, waits=True)
    assert (first.hosting, heir.hosting) == (True, False)
    first.close()
    first.close()
    assert until(lambda: heir.hosting)
    connection = connected(name)
    connection.send([b"hello"])
    assert connection.receive()[0] == [b"hello"]
    heir.close()
    with pytest.raises(Ended):
        connection.receive()
    connection.close()
    with pytest.raises(ConnectionRefusedError):
        connected(name)
    assert descriptors() <= before
    assert not [thread for thread in threading.enumerate() if name in thread.name]


def test_a_listener_that_waits_for_a_name_can_be_closed(name: str, stack: ExitStack) -> None:
    stack.callback(Listener(name, echo).close)
    before = descriptors()
    waiting = Listener(name, echo, waits=True)
    waiting.close()
    assert descriptors() <= before
    assert len([thread for thread in threading.enumerate() if name in thread.name]) == 1


def test_a_message_that_cannot_be_dealt_with_ends_its_connection_alone(name: str, stack: ExitStack) -> None:
    gone: list[Connection] = []

    def refuse(connection: Connection) -> None:
        parts, _ = connection.receive()
        if bytes(parts[0]) == b"bad":
            raise RuntimeError("it is refused")
        connection.send(parts)

    listener = Listener(name, refuse, gone.append)
    stack.callback(listener.close)
    good, bad = connected(name), connected(name)
    bad.send([b"bad"])
    with pytest.raises(Ended):
        bad.receive()
    assert until(lambda: len(gone) == 1)
    good.send([b"good"])
    assert good.receive()[0] == [b"good"]
    good.close()
    assert until(lambda: len(gone) == 2)
    bad.close()


def test_processes_of_other_users_are_turned_away(name: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    strangers: list[int] = []
    listener = Listener(name, echo, stranger=lambda: strangers.append(1))
    stack.callback(listener.close)
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "pid_of_user", lambda self: 0)
        with pytest.raises(StreamError, match="a process of another user, or container, has the name"):
            connected(name)
        assert until(lambda: strangers)
    connection = connected(name)
    connection.send([b"hello"])
    assert connection.receive()[0] == [b"hello"]
    connection.close()


def test_the_pid_at_the_other_end_is_known(name: str, stack: ExitStack) -> None:
    stack.callback(Listener(name, echo).close)
    connection = connected(name)
    assert connection.pid_of_user() == os.getpid()
    connection.close()


# ---- forks ----


def test_a_fork_keeps_neither_the_name_nor_the_connections_of_a_listener(name: str, stack: ExitStack) -> None:
    listener = Listener(name, echo)
    connection = connected(name)
    connection.send([b"accepted"])
    assert connection.receive()[0] == [b"accepted"]
    stack.enter_context(process(idle, listener))
    listener.close()
    assert not [thread for thread in threading.enumerate() if name in thread.name]
    with pytest.raises(Ended):
        connection.receive()
    connection.close()

    def listened() -> bool:
        with suppress(OSError):
            Listener(name, echo).close()
            return True
        return False

    assert until(listened)  # as soon as the fork has begun


def test_a_fork_does_not_keep_a_connection_open(name: str, stack: ExitStack) -> None:
    gone: list[Connection] = []
    listener = Listener(name, echo, gone.append)
    stack.callback(listener.close)
    connection = connected(name)
    connection.send([b"accepted"])
    connection.receive()
    stack.enter_context(process(idle, connection))
    connection.close()
    assert until(lambda: gone)


# ---- questions ----


def test_questions_are_answered_when_the_answer_is_known(name: str, stack: ExitStack) -> None:
    known: list[bytes] = []
    host = Host(name, lambda request: known.append(request) or ((b"yes", []) if b"now" in known else None))  # type: ignore[func-returns-value]
    stack.callback(host.close)
    early, late = Inquiry(name, b"early"), Inquiry(name, b"now")
    stack.callback(early.close)
    assert early.answer(time.monotonic() + 0.05) is None
    assert known == [b"early"]
    assert late.answer(time.monotonic() + DEADLINE) == (b"yes", [])
    assert early.answer(time.monotonic() + DEADLINE) == (b"yes", [])
    assert known.count(b"early") == 2  # it stayed asked


def test_who_asks_before_there_is_a_host_is_answered_by_the_first_one(name: str, stack: ExitStack) -> None:
    inquiry = Inquiry(name, b"?")
    assert inquiry.answer(time.monotonic()) is None
    stack.callback(Host(name, lambda request: (request + b"!", [])).close)
    assert inquiry.answer(time.monotonic() + DEADLINE) == (b"?!", [])


def test_who_connects_and_says_nothing_keeps_nobody_waiting(name: str, stack: ExitStack) -> None:
    stack.callback(Host(name, lambda request: (b"yes", [])).close)
    silent = [connected(name) for _ in range(20)]
    assert Inquiry(name, b"?").answer(time.monotonic() + 30.0) == (b"yes", [])
    for connection in silent:
        connection.close()


def test_a_watch_notices_that_a_name_is_given_back(name: str, stack: ExitStack) -> None:
    host = Host(name, lambda request: None)
    watch = Watch(name)
    stack.callback(watch.close)
    assert not watch.ended()
    host.close()
    assert until(watch.ended)
    assert Watch(name).ended()


def test_names_that_do_not_fit_are_refused() -> None:
    for name in ("", "x" * 200):
        with pytest.raises(ValueError, match="1 to 80 characters"):
            Inquiry(name, b"?")
        with pytest.raises(ValueError, match="1 to 80 characters"):
            Listener(name, echo)
