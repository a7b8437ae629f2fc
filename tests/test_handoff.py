"""Handing rows over between processes: nothing is lost, nobody sleeps through, a dead peer ends the wait."""

import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from headrace.errors import EnvFailed, WorkerCrashed, WorkerHung
from headrace.processes import handoff
from headrace.processes.affinity import Affinity, cores_shared_by, usable_cores
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.handoff import Bell, Cell, Handoff, Patience, make_cell
from tests.group_targets import nothing

SPIN = 300_000  # ns


def shared_cells(n: int) -> list[Cell]:
    memory = mmap.mmap(-1, 128 * n)

    def part(index: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.ndarray(shape, dtype, buffer=memory, offset=128 * index)

    return [make_cell(partial(part, index)) for index in range(n)]


@dataclass
class Pair:
    """Two sides on shared memory: numbers, a value that travels with each, how long to look, bells."""

    cells: list[Cell]
    pipes: tuple[tuple[int, int], tuple[int, int]]

    @staticmethod
    def new(spin_ns: int) -> "Pair":
        pair = Pair(shared_cells(9), (Bell.pipe(), Bell.pipe()))
        pair.cells[4][0] = spin_ns
        return pair

    def side(self, index: int) -> Handoff:
        other = 1 - index
        own_bell = Bell(self.cells[2 + index], read_fd=self.pipes[index][0], write_fd=self.pipes[index][1])
        other_bell = Bell(self.cells[2 + other], write_fd=self.pipes[other][1])
        return Handoff(self.cells[index], [self.cells[other]], own_bell, [other_bell], spin_ns=self.cells[4])

    def close(self) -> None:
        for fd in (*self.pipes[0], *self.pipes[1]):
            os.close(fd)


def pause(rng: random.Random) -> None:
    """Mostly nothing, sometimes a few µs of work, seldom a sleep: so that peers look, give way and sleep."""
    draw = rng.random()
    if draw < 0.0005:
        time.sleep(rng.random() * 0.002)
    elif draw < 0.2:
        end = time.perf_counter_ns() + rng.randrange(20_000)
        while time.perf_counter_ns() < end:
            pass


def forked(child: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with suppress(BaseException):
        signal.alarm(100)
        child()
        status = 0
    os._exit(status)


def joined(pid: int) -> int:
    """The exit code, or minus the signal."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the other side did not end")


def play(pair: Pair, index: int, n: int) -> None:
    """Side 0 posts first; each number comes with a value that the other side must see."""
    hands, rng = pair.side(index), random.Random(index)
    own, other = pair.cells[5 + index], pair.cells[6 - index]
    if index == 0:
        own[0] = 1_000_003
        hands.post()
    for number in range(1, n + 1):
        hands.wait_for(number)
        assert other[0] == number * 1_000_003, (index, number, other[0])
        pause(rng)
        follower = number + (index == 0)
        own[0] = follower * 1_000_003
        assert hands.post() == follower
    pair.cells[7 + index][0] = hands.late


def handed_over(n: int, spin_ns: int, cores: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < cores:
        pytest.skip(f"needs {cores} cores")
    pair = Pair.new(spin_ns)
    os.sched_setaffinity(0, set(allowed[:cores]))
    try:
        pid = forked(lambda: play(pair, 1, n))
        signal.alarm(100)
        play(pair, 0, n)
        signal.alarm(0)
        assert joined(pid) == 0
    finally:
        os.sched_setaffinity(0, set(allowed))
    assert pair.cells[0][0] == n + 1
    assert pair.cells[1][0] == n
    assert (pair.cells[7][0], pair.cells[8][0]) == (0, 0), "woken by the tick although the number had moved"
    pair.close()


@pytest.mark.parametrize(
    ("cores", "spin_ns", "n"), [(2, SPIN, 150_000), (2, 0, 60_000), (1, 0, 80_000), (1, SPIN, 10_000)]
)
def test_three_hundred_thousand_rows_are_handed_over(cores: int, spin_ns: int, n: int) -> None:
    handed_over(n, spin_ns, cores)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("cores", "spin_ns", "n"), [(2, SPIN, 5_000_000), (2, 0, 2_000_000), (1, 0, 3_000_000)])
def test_ten_million_rows_are_handed_over(cores: int, spin_ns: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "alarm", lambda seconds: 0)
    handed_over(n, spin_ns, cores)


@pytest.mark.parametrize("spin_ns", [0, SPIN])
def test_a_server_sees_whole_rows_and_is_woken_once_for_each(spin_ns: int) -> None:
    n_workers, n_rows = 3, 3000
    # Numbers, flags, values and rings of the workers; then the server's number and flag, and how long to look.
    cells = shared_cells(4 * n_workers + 3)
    ready, parked, values, rings = (cells[k * n_workers : (k + 1) * n_workers] for k in range(4))
    acted, server_parked, spin = cells[4 * n_workers :]
    spin[0] = spin_ns
    pipes = [Bell.pipe() for _ in range(n_workers + 1)]

    class Counting(Bell):
        rung = 0

        def ring(self) -> None:
            self.rung += 1
            super().ring()

    def work(rank: int) -> None:
        rng = random.Random(rank)
        server_bell = Counting(server_parked, write_fd=pipes[-1][1])
        hands = Handoff(
            ready[rank],
            [acted],
            Bell(parked[rank], read_fd=pipes[rank][0]),
            [server_bell],
            companions=[cell for other, cell in enumerate(ready) if other != rank],
            spin_ns=spin,
        )
        for row in range(1, n_rows + 1):
            pause(rng)
            values[rank][0] = row
            hands.post()
            hands.wait_for(row)
        rings[rank][0] = server_bell.rung
        assert hands.late == 0

    pids = [forked(partial(work, rank)) for rank in range(n_workers)]
    bells = [Bell(parked[rank], write_fd=pipes[rank][1]) for rank in range(n_workers)]
    server = Handoff(acted, ready, Bell(server_parked, read_fd=pipes[-1][0]), bells, spin_ns=spin)
    signal.alarm(60)
    for row in range(1, n_rows + 1):
        server.wait_for(row)
        assert [value[0] for value in values] == [row] * n_workers
        assert server.post() == row
    signal.alarm(0)
    assert [joined(pid) for pid in pids] == [0] * n_workers
    assert server.late == 0
    # Two that come in at the same moment may both be the last.
    assert sum(cell[0] for cell in rings) <= 1.5 * n_rows
    for fd in [end for pipe in pipes for end in pipe]:
        os.close(fd)


class PeerGone(Exception):
    pass


def sleeper(bell: Bell, pid: int) -> Callable[[Sequence[int]], bool]:
    """Sleeps on a bell, and raises once the peer is gone."""

    def sleep(awaited: Sequence[int]) -> bool:
        assert list(awaited) == [0]
        rang = bell.sleep()
        if not rang and os.waitpid(pid, os.WNOHANG)[0]:
            raise PeerGone
        return rang

    return sleep


@pytest.mark.parametrize("spin_ns", [0, 20_000_000])
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.2])
def test_a_peer_that_dies_before_its_post_ends_the_wait(spin_ns: int, delay: float) -> None:
    """While this side looks at the number, or sleeps."""
    pair = Pair.new(spin_ns)

    def child() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = forked(child)
    hands = pair.side(0)
    with pytest.raises(PeerGone):
        hands.wait_for(1, sleeper(hands._bell, pid))
    assert pair.cells[2][0] == 0, "a flag that stays up would have others ring for nobody"
    pair.close()


def test_a_peer_that_dies_between_its_number_and_the_ring_is_noticed_by_the_tick() -> None:
    pair = Pair.new(0)

    def child() -> None:
        while not pair.cells[2][0]:  # until the other side sleeps
            time.sleep(0.001)
        time.sleep(0.005)
        pair.cells[1][0] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    pid = forked(child)
    hands = pair.side(0)
    hands.wait_for(1)
    assert joined(pid) == -signal.SIGKILL
    assert hands.late == 1
    pair.close()


# ---- bells ----


def test_a_ring_before_the_sleep_ends_it_and_silence_forgets_it() -> None:
    read, write = Bell.pipe()
    bell = Bell(shared_cells(1)[0], read_fd=read, write_fd=write)
    bell.ring()
    bell.ring()
    assert bell.sleep()
    bell.silence()
    bell.silence()
    assert not bell.sleep()
    os.close(read)
    bell.ring()  # nobody listens any more
    os.close(write)


def test_a_bell_that_has_rung_for_ever_still_rings() -> None:
    read, write = Bell.pipe()
    bell = Bell(shared_cells(1)[0], read_fd=read, write_fd=write)
    for _ in range(100_000):  # more than a pipe holds
        bell.ring()
    assert bell.sleep()
    os.close(read)
    os.close(write)


# ---- how long to look ----


@pytest.mark.parametrize(("n_processes", "cores", "looks"), [(2, 2, True), (3, 2, False), (2, 1, False), (2, 8, True)])
def test_nobody_looks_where_there_are_fewer_cores_than_processes(
    n_processes: int, cores: int, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff, "_running", lambda: 1)
    (cell,) = shared_cells(1)
    Patience(cell, n_processes, cores).decide()
    assert (cell[0] > 0) == looks


def test_other_programs_take_the_cores_only_if_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.cpu_count() or 1
    (cell,) = shared_cells(1)
    patience = Patience(cell, 2, machine + 1)  # one core more than are needed for n_processes 2 on this machine
    patience._spare = 0
    crowd = 1 + 2 * machine
    found = []
    for running in (1, crowd, crowd, crowd, crowd, 1):
        monkeypatch.setattr(handoff, "_running", lambda running=running: running)
        patience.decide()
        found.append(cell[0] > 0)
    assert found == [True, True, True, False, False, True]


def test_the_kernel_says_how_many_run() -> None:
    assert handoff._running() >= 1


def test_cores_are_those_of_the_master_and_of_all_workers() -> None:
    own = sorted(os.sched_getaffinity(0))
    assert cores_shared_by(Affinity(), 3) == usable_cores()
    one = Affinity(master_cpus=(own[0],), workers_cpus=((own[0],), (own[0],)))
    assert cores_shared_by(one, 2) == 1
    both = Affinity(master_cpus=(own[0],), workers_cpus=((own[0],), (own[-1],)))
    assert cores_shared_by(both, 2) == min(len({own[0], own[-1]}), usable_cores())
    unpinned = Affinity(master_cpus=(own[0],), set_affinity=False)
    assert cores_shared_by(unpinned, 2) == usable_cores()


# ---- a server's sleep ----


def obey(channel: Channel, argument: Any) -> None:
    """Takes a descriptor to ring, then does what it is told."""
    write = channel.receive_fd()
    while (command := channel.receive()) is not None:
        match command:
            case "ring":
                os.write(write, b"!")
            case "reply":
                channel.reply(os.getpid())
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise ValueError("the worker is unhappy")
    channel.reply(None)


@pytest.fixture
def watched() -> Any:
    group = WorkerGroup(obey, [None, None], start_method="fork", prologue=nothing, name="test", timeout=0.5)
    read, write = Bell.pipe()
    group.send_fd(write)
    yield group, group.sentry(read), read
    group.kill()
    os.close(read)
    os.close(write)


def slept(sentry: Any, awaited: Sequence[int]) -> int:
    """Sleeps until it rings; returns how many ticks that took."""
    for ticks in range(200):
        if sentry.sleep(awaited):
            return ticks
    raise AssertionError("nobody rang")


def test_a_server_wakes_when_a_worker_rings(watched: Any) -> None:
    group, sentry, _ = watched
    group.send_to(1, "ring")
    slept(sentry, [0, 1])


def test_a_reply_that_comes_while_the_server_waits_is_kept(watched: Any) -> None:
    group, sentry, _ = watched
    group.send("reply")
    while len(group._answers) < 2:
        sentry.sleep([])
    group.send_to(0, "ring")
    slept(sentry, [0])
    assert len(set(group.replies())) == 2


def test_a_worker_that_dies_wakes_the_server_with_the_error(watched: Any) -> None:
    group, sentry, _ = watched
    group.send_to(1, "die")
    with pytest.raises(WorkerCrashed, match="SIGKILL") as caught:
        slept(sentry, [0])  # also if another one is awaited
    assert caught.value.where is not None
    assert caught.value.where.worker == 1


def test_a_worker_that_fails_wakes_the_server_with_its_error(watched: Any) -> None:
    group, sentry, _ = watched
    group.send_to(0, "fail")
    with pytest.raises(EnvFailed, match="unhappy"):
        slept(sentry, [0, 1])


def test_a_worker_that_stands_still_hangs_only_if_it_is_awaited(watched: Any) -> None:
    _, sentry, _ = watched
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:  # twice the timeout
        sentry.sleep([])
    sentry.awake()
    with pytest.raises(WorkerHung, match="worker 1 made no progress"):
        slept(sentry, [1])
