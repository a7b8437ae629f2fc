"""Admission: trajectories start only as far as staleness allows, in one process, in shared memory, and on sockets."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from headrace.errors import StreamClosed, StreamError, StreamTimeout
from headrace.streams import (
    Admission,
    AdmissionClient,
    AdmissionGate,
    AdmissionServer,
    AllowList,
    Frame,
    Keys,
    Lease,
    SampleBatch,
    encoded,
)
from headrace.streams.sockets import bound, close, connected
from tests.stream_processes import DEADLINE, process


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kind:
    """Makes an admission and a gate to it, of one kind."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self._kind = kind
        self._stack = stack
        self.clock = Clock()

    def pair(self, max_staleness: int, batch: int, lease_seconds: float = 60.0) -> tuple[Admission, Any]:
        name = f"test-{os.urandom(6).hex()}" if self._kind == "shared_memory" else None
        admission = Admission(max_staleness, batch, lease_seconds=lease_seconds, name=name, clock=self.clock)
        self._stack.callback(admission.close)
        gate: Any = admission
        if name is not None:
            gate = self._stack.enter_context(AdmissionGate(name, DEADLINE, clock=self.clock))
        elif self._kind == "sockets":
            pytest.importorskip("zmq", reason="admission on sockets needs pyzmq")
            server = self._stack.enter_context(AdmissionServer(admission))
            gate = self._stack.enter_context(AdmissionClient(server.address, timeout=DEADLINE))
        return admission, gate


@pytest.fixture(params=["one process", "shared_memory", "sockets"])
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    with ExitStack() as stack:
        yield Kind(request.param, stack)


def granted(gate: Any, n: int) -> list[Lease]:
    """Asks n times, and returns what was granted."""
    return [lease for lease in (gate.may_start() for _ in range(n)) if lease is not None]


def numbers(admission: Admission) -> tuple[int, int, int]:
    counts = admission.counts
    return counts.version, counts.accepted, counts.running


def test_as_many_start_as_the_staleness_allows(kind: Kind) -> None:
    admission, gate = kind.pair(max_staleness=1, batch=3)
    leases = granted(gate, 10)
    assert len(leases) == 6  # (1 + 0 + 1) · 3
    assert len({lease.number for lease in leases}) == 6
    assert numbers(admission) == (0, 0, 6)
    for lease in leases[:4]:
        assert gate.finish(lease)
    assert numbers(admission) == (0, 4, 2)
    assert granted(gate, 5) == []  # what was accepted still counts
    admission.advance(1)
    assert len(granted(gate, 10)) == 3
    assert numbers(admission) == (1, 4, 5)
    assert admission.counts.refused == 4 + 5 + 7


def test_with_no_staleness_only_one_batch_is_under_way(kind: Kind) -> None:
    admission, gate = kind.pair(max_staleness=0, batch=2)
    for version in range(3):
        admission.advance(version)
        leases = granted(gate, 5)
        assert len(leases) == 2
        assert all(gate.finish(lease) for lease in leases)


def test_an_abandoned_trajectory_makes_room(kind: Kind) -> None:
    admission, gate = kind.pair(max_staleness=0, batch=1)
    (lease,) = granted(gate, 2)
    gate.abandon(lease)
    assert numbers(admission) == (0, 0, 0)
    assert not gate.finish(lease)
    assert len(granted(gate, 2)) == 1


def test_a_lease_expires_with_its_producer_and_renewing_keeps_it(kind: Kind) -> None:
    admission, gate = kind.pair(max_staleness=0, batch=2, lease_seconds=10.0)
    dead, alive = granted(gate, 3)
    assert dead.seconds == 10.0
    kind.clock.now += 6
    assert gate.renew(alive)
    kind.clock.now += 6
    (lease,) = granted(gate, 3)  # in the place of the dead one
    assert numbers(admission) == (0, 0, 2)
    assert admission.counts.expired == 1
    assert not gate.renew(dead)
    assert not gate.finish(dead)  # too late: it is not accepted
    assert gate.finish(alive)
    assert gate.finish(lease)
    assert numbers(admission) == (0, 2, 0)


def test_a_lease_ends_once(kind: Kind) -> None:
    admission, gate = kind.pair(max_staleness=3, batch=1)
    (lease,) = granted(gate, 1)
    assert gate.finish(lease)
    assert not gate.finish(lease)
    assert not gate.finish(Lease(12345, 1.0))
    assert admission.counts.accepted == 1


def test_accepted_samples_that_were_lost_make_room(kind: Kind) -> None:
    admission, gate = kind.pair(max_staleness=0, batch=2)
    for lease in granted(gate, 2):
        gate.finish(lease)
    admission.forget(1)
    assert len(granted(gate, 2)) == 1


def test_a_version_never_goes_back() -> None:
    admission = Admission(1, 1)
    admission.advance(5)
    with pytest.raises(ValueError, match="version is 4"):
        admission.advance(4)


@pytest.mark.parametrize("settings", [(-1, 1, 1.0), (0, 0, 1.0), (0, 1, 0.0)])
def test_wrong_settings_are_refused(settings: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="max_staleness is"):
        Admission(settings[0], settings[1], lease_seconds=settings[2])


def test_ages_are_counted() -> None:
    admission = Admission(3, 1)
    admission.advance(7)
    admission.used(Frame(None, version=7))
    admission.used(SampleBatch(None, np.array([5, 7, 5])))
    assert admission.ages == {0: 2, 2: 2}


@pytest.mark.parametrize(("in_order", "oldest"), [(True, 2), (False, 6)])
def test_samples_used_in_the_order_of_their_starts_are_not_older_than_the_bound(in_order: bool, oldest: int) -> None:
    admission = Admission(max_staleness=2, batch=4)
    generator = np.random.default_rng(0)
    running: list[tuple[int, int, int, Lease]] = []
    finished: list[tuple[int, int]] = []
    now = n_started = n_used = 0
    while admission.counts.version < 50:
        now += 1
        while (lease := admission.may_start()) is not None:
            running.append((now + int(generator.integers(1, 40)), n_started, admission.counts.version, lease))
            n_started += 1
        for entry in [entry for entry in running if entry[0] <= now]:
            running.remove(entry)
            assert admission.finish(entry[3])  # nothing that has finished is thrown away, however long it took
            finished.append(entry[1:3])
        if in_order:
            finished.sort()
        if len(finished) >= 4 and (
            not in_order or [number for number, _ in finished[:4]] == [*range(n_used, n_used + 4)]
        ):
            for _, version in finished[:4]:
                admission.used(Frame(None, version=version))
            finished, n_used = finished[4:], n_used + 4
            admission.advance(admission.counts.version + 1)
    assert max(admission.ages) <= oldest
    assert sum(admission.ages.values()) == 200


# ---- other processes ----


def start_and_die(name: str, n: int) -> None:
    gate = AdmissionGate(name, DEADLINE)
    granted(gate, n)
    os._exit(1)


def test_processes_share_one_bound_and_their_leases_outlive_them_only_for_a_time() -> None:
    clock = Clock()
    clock.now = time.monotonic()
    name = f"test-{os.urandom(6).hex()}"
    with Admission(0, 10, lease_seconds=5.0, name=name, clock=clock) as admission, ExitStack() as stack:
        others = [stack.enter_context(process(start_and_die, name, 4)) for _ in range(3)]
        for other in others:
            other.join(DEADLINE)
        assert admission.counts.running == 10
        clock.now = time.monotonic() + 6.0
        assert admission.counts.running == 0
        assert admission.counts.expired == 10


def test_an_admission_that_is_not_there_is_an_error_in_time() -> None:
    with pytest.raises(StreamTimeout, match="no admission 'nobody'"):
        AdmissionGate("nobody", 0.05)


def test_calls_of_a_closed_gate_say_so() -> None:
    name = f"test-{os.urandom(6).hex()}"
    with Admission(0, 1, name=name):
        gate = AdmissionGate(name, DEADLINE)
        gate.close()
        gate.close()
        with pytest.raises(StreamClosed):
            gate.may_start()


def test_a_server_that_is_gone_is_an_error_in_time() -> None:
    pytest.importorskip("zmq", reason="admission on sockets needs pyzmq")
    with AdmissionServer(Admission(0, 1)) as server:
        client = AdmissionClient(server.address, timeout=DEADLINE)
        assert client.may_start() is not None
    gone = AdmissionClient(server.address, timeout=0.1)
    with pytest.raises(StreamTimeout, match="did not answer"):
        gone.may_start()
    gone.close()
    client.close()
    with pytest.raises(StreamClosed):
        client.may_start()


def test_an_answer_that_comes_too_late_is_not_taken_for_that_of_the_next_request() -> None:
    zmq: Any = pytest.importorskip("zmq", reason="admission on sockets needs pyzmq")
    server, address = bound(zmq.ROUTER, "127.0.0.1:0")
    with AdmissionClient(address, timeout=0.3) as client:
        with pytest.raises(StreamTimeout):
            client.may_start()

        def answer_both() -> None:
            answers = [(1, True, 111, 1.0), (2, False, 0, 0.0)]
            for answer in answers:
                assert server.poll(int(DEADLINE * 1e3))
                sender = server.recv_multipart(zmq.NOBLOCK)[0]
                if answer is answers[1]:
                    for late in answers:
                        server.send_multipart([sender, *encoded(Frame(late))])

        thread = threading.Thread(target=answer_both)
        thread.start()
        vars(client)["_timeout"] = DEADLINE
        assert client.may_start() is None
        thread.join(DEADLINE)
    close(server)


def test_only_clients_in_the_list_are_answered() -> None:
    pytest.importorskip("zmq", reason="admission on sockets needs pyzmq")
    server_keys, good, stranger = Keys.generate(), Keys.generate(), Keys.generate()
    with AdmissionServer(Admission(0, 1), keys=server_keys, allowed=AllowList([good.public])) as server:
        for keys in (None, stranger.of_server(server_keys.public), good.of_server(stranger.public)):
            with AdmissionClient(server.address, keys=keys, timeout=0.2) as client, pytest.raises(StreamTimeout):
                client.may_start()
        with AdmissionClient(server.address, keys=good.of_server(server_keys.public), timeout=DEADLINE) as client:
            assert client.may_start() is not None


def test_garbage_is_counted_and_the_server_goes_on() -> None:
    zmq: Any = pytest.importorskip("zmq", reason="admission on sockets needs pyzmq")
    with AdmissionServer(Admission(0, 1)) as server:
        socket = connected(zmq.DEALER, server.address, high_water=100)
        garbage = [
            [b""],
            [b"\x80\x04\x95"],
            encoded(Frame("start")),
            encoded(Frame((1, "explode", 0))),
            encoded(Frame((1, "start", "all"))),
            encoded(Frame(np.zeros(3))),
        ]
        assert socket.poll(int(DEADLINE * 1e3), zmq.POLLOUT)
        for parts in garbage:
            socket.send_multipart(parts)
        with AdmissionClient(server.address, timeout=DEADLINE) as client:
            socket.send_multipart(encoded(Frame((7, "start", 0))))
            assert socket.poll(int(DEADLINE * 1e3))
            assert server.rejected == len(garbage)
            assert client.may_start() is None  # the only one is taken
        close(socket)


def _one_admission(name: str) -> None:
    """A learner that dies as soon as it has been asked."""
    admission = Admission(0, 1, name=name)
    while not admission.counts.started:
        time.sleep(0.01)
    os._exit(1)


@pytest.mark.parametrize("dies", [False, True])
def test_nothing_waits_for_a_learner_that_has_ended(dies: bool) -> None:
    name = f"test-{os.urandom(6).hex()}"
    with ExitStack() as stack:
        learner: Any = None
        if dies:
            learner = stack.enter_context(process(_one_admission, name))
        else:
            admission = stack.enter_context(Admission(0, 1, name=name))
        gate = stack.enter_context(AdmissionGate(name, DEADLINE))
        lease = gate.may_start()
        assert lease is not None
        assert not gate.finish(Lease(lease.number + 1, 0.0))
        if dies:
            learner.join(DEADLINE)
        else:
            assert gate.may_start() is None
            admission.close()
        with pytest.raises(StreamError, match="has closed it, or ended"):
            gate.may_start()
