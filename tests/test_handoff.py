"""Handing rows over between processes: nothing is lost, nobody sleeps through, a dead peer ends the wait."""

import mmap
import os
import random
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from typing import Any
from unittest.mock import MagicMock, call

import numpy as np
import pytest

from headrace import compiled, memory
from headrace.errors import EnvFailed, WorkerCrashed, WorkerHung
from headrace.processes import handoff, watch as watch_module
from headrace.processes.affinity import usable_cores
from headrace.processes.child import Channel
from headrace.processes.group import WorkerGroup
from headrace.processes.handoff import Bell, Cell, Handoff, make_cell
from headrace.processes.status import Phase
from headrace.processes.watch import WorkerWatch
from tests.group_targets import nothing

SPIN = 300_000  # ns
LONG = 60  # seconds: a tick so long that who is not woken is not taken for woken
FACTOR = 1_000_003  # between a number and the value that travels with it


def shared_cells(n: int) -> list[Cell]:
    memory = mmap.mmap(-1, 128 * n)

    def part(index: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.ndarray(shape, dtype, buffer=memory, offset=128 * index)

    return [make_cell(partial(part, index)) for index in range(n)]


@pytest.fixture
def pipes() -> Iterator[Callable[[], tuple[int, int]]]:
    """Makes pipes for bells, and closes them afterwards."""
    ends: list[int] = []

    def pipe() -> tuple[int, int]:
        ends.extend(made := Bell.pipe())
        return made

    yield pipe
    for end in ends:
        os.close(end)


@contextmanager
def forked(*works: Callable[[], None], deadline: int = 4 * LONG) -> Iterator[list[ForkProcess]]:
    """Runs each in a process of its own, on this one's memory; at the end none is left."""

    def run(work: Callable[[], None]) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest's own
        signal.alarm(deadline)
        work()

    processes = [get_context("fork").Process(target=run, args=(work,)) for work in works]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join(LONG)


def joined(processes: Sequence[ForkProcess]) -> list[int | None]:
    """Their exit codes, minus a signal's number."""
    for process in processes:
        process.join(LONG)
    return [process.exitcode for process in processes]


class PeerGone(Exception):
    pass


class Counting(Bell):
    """Says how often."""

    slept = rung = 0

    def ring(self) -> None:
        self.rung += 1
        super().ring()

    def sleep(self) -> bool:
        self.slept += 1
        return super().sleep()


def attending(bell: Bell, read: int, processes: Sequence[ForkProcess], tick: float = 0.05) -> Any:
    """A sleep on a bell and on the lives of others, as a server sleeps."""
    poll = select.poll()
    for source in (read, *(process.sentinel for process in processes)):
        poll.register(source, select.POLLIN)

    def sleep(awaited: Sequence[int]) -> bool:
        assert awaited
        bell.slept += 1  # type: ignore[attr-defined]
        ready = {fd for fd, _ in poll.poll(tick * 1000)}
        if ready and read not in ready:
            raise PeerGone(joined([process for process in processes if process.sentinel in ready]))
        return read in ready

    return sleep


class Pair:
    """Two sides: their numbers, flags, values that travel with the numbers, sleeps; how long to look, and the last
    number, once side 0 has decided on it.
    """

    def __init__(self, pipes: Any, spin_ns: int) -> None:
        cells = shared_cells(10)
        self.numbers, self.parked, self.values, self.slept = (cells[2 * k : 2 * k + 2] for k in range(4))
        self.spin_ns, self.last = cells[8:]
        self.spin_ns[0] = spin_ns
        self.pipes = [pipes(), pipes()]

    def side(self, index: int) -> tuple[Handoff, Counting]:
        other = 1 - index
        bell = Counting(self.parked[index], read_fd=self.pipes[index][0])
        ringing = Bell(self.parked[other], write_fd=self.pipes[other][1])
        hands = Handoff(self.numbers[index], [self.numbers[other]], bell, [ringing], spin_ns=self.spin_ns)
        return hands, bell

    def play(self, index: int, n: int, seconds: float, hands: Handoff, bell: Counting, sleep: Any = None) -> None:
        """Side 0 posts first, and ends it after n numbers, or so many seconds. Each number comes with a value that the
        other side must see.
        """
        end = time.monotonic() + seconds
        rng, own, other = random.Random(index), self.values[index], self.values[1 - index]
        peer = self.numbers[1 - index]
        if index == 0:
            own[0] = FACTOR
            assert hands.post() == 1
        for number in range(1, n + 1):
            hands.wait_for(number, sleep)
            if index == 1 and self.last[0] and number > self.last[0]:
                break
            assert hands.late == 0, f"side {index}, row {number}: the tick woke it, and nobody had rung"
            assert (peer[0], other[0]) == (number, number * FACTOR), f"side {index}"
            pause(rng)
            follower = number + (index == 0)
            own[0] = follower * FACTOR
            if index == 0 and (number == n or time.monotonic() > end):
                self.last[0] = number
            assert hands.post() == hands.count == follower
            if index == 0 and self.last[0]:
                break
        self.slept[index][0] = bell.slept


def pause(rng: random.Random) -> None:
    """Mostly nothing, sometimes a few µs of work, seldom a sleep: so that peers look, give way and sleep."""
    draw = rng.random()
    if draw < 0.0005:
        time.sleep(rng.random() * 0.003)
    elif draw < 0.2:
        end = time.perf_counter_ns() + rng.randrange(20_000)
        while time.perf_counter_ns() < end:
            pass


@pytest.fixture
def _no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not woken sleeps for a minute. (On a busy machine a peer may stand for a tick between number and ring.)"""
    monkeypatch.setattr(handoff, "_TICK_MS", LONG * 1000)


def handed_over(pipes: Any, n: int, spin_ns: int, cores: int, seconds: float) -> None:
    """n rows, or as many as this machine gets done in so many seconds."""
    allowed = sorted(os.sched_getaffinity(0))
    if min(len(allowed), usable_cores()) < cores:
        pytest.skip(f"needs {cores} cores")
    pair = Pair(pipes, spin_ns)
    os.sched_setaffinity(0, set(allowed[:cores]))
    try:
        with forked(lambda: pair.play(1, n, seconds, *pair.side(1)), deadline=int(seconds) + 4 * LONG) as processes:
            hands, bell = pair.side(0)
            pair.play(0, n, seconds, hands, bell, attending(bell, pair.pipes[0][0], processes, LONG))
            assert joined(processes) == [0]
    finally:
        os.sched_setaffinity(0, set(allowed))
    played = pair.last[0]
    assert played > 100
    assert [number[0] for number in pair.numbers] == [played + 1, played]
    assert [flag[0] for flag in pair.parked] == [0, 0]
    assert spin_ns or min(cell[0] for cell in pair.slept) > 0


@pytest.mark.parametrize(("cores", "spin_ns", "n"), [(2, SPIN, 15_000), (2, 0, 6_000), (1, 0, 7_000), (1, SPIN, 2_000)])
@pytest.mark.usefixtures("_no_ticks")
def test_thirty_thousand_rows_are_exchanged(pipes: Any, cores: int, spin_ns: int, n: int) -> None:
    handed_over(pipes, n, spin_ns, cores, seconds=5.0)


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.usefixtures("_no_ticks")
@pytest.mark.parametrize(
    ("cores", "spin_ns", "n"), [(2, SPIN, 5_000_000), (2, 0, 2_000_000), (1, 0, 2_500_000), (1, SPIN, 500_000)]
)
def test_ten_million_rows_are_exchanged(pipes: Any, cores: int, spin_ns: int, n: int) -> None:
    handed_over(pipes, n, spin_ns, cores, seconds=500.0)


# ---- one server, several workers ----


@pytest.mark.usefixtures("_no_ticks")
@pytest.mark.parametrize("spin_ns", [0, SPIN])
def test_server_sees_complete_rows_and_wakes_once_for_each(pipes: Any, spin_ns: int) -> None:
    n_workers, n_rows = 3, 1000
    # Numbers, flags, values and rings of the workers; then the server's number and flag, and how long to look.
    cells = shared_cells(4 * n_workers + 3)
    ready, parked, values, rings = (cells[k * n_workers : (k + 1) * n_workers] for k in range(4))
    acted, server_parked, spin = cells[4 * n_workers :]
    spin[0] = spin_ns
    ends = [pipes() for _ in range(n_workers)]
    read, write = pipes()

    def work(rank: int) -> None:
        rng = random.Random(rank)
        server_bell = Counting(server_parked, write_fd=write)
        hands = Handoff(
            ready[rank],
            [acted],
            Bell(parked[rank], read_fd=ends[rank][0]),
            [server_bell],
            companions=[cell for other, cell in enumerate(ready) if other != rank],
            spin_ns=spin,
        )
        for row in range(1, n_rows + 1):
            pause(rng)
            values[rank][0] = row * FACTOR + rank
            hands.post()
            hands.wait_for(row)
            assert hands.late == 0, f"row {row}: the tick woke it, and the server had not rung"
            assert acted[0] == row
        rings[rank][0] = server_bell.rung

    with forked(*(partial(work, rank) for rank in range(n_workers))) as processes:
        bell = Counting(server_parked, read_fd=read)
        bells = [Bell(parked[rank], write_fd=ends[rank][1]) for rank in range(n_workers)]
        server = Handoff(acted, ready, bell, bells, spin_ns=spin)
        sleep = attending(bell, read, processes, LONG)
        for row in range(1, n_rows + 1):
            server.wait_for(row, sleep)
            assert server.late == 0, f"row {row}: the tick woke the server, and no worker had rung"
            assert [value[0] for value in values] == [row * FACTOR + rank for rank in range(n_workers)]
            assert [number[0] for number in ready] == [row] * n_workers
            assert server.post() == row
        assert joined(processes) == [0] * n_workers
    # Two that come in at the same moment may both be the last; without that rule it would be three a row.
    assert sum(cell[0] for cell in rings) < 2 * n_rows
    if not spin_ns:
        assert bell.slept > 0


def test_only_the_last_of_several_workers_wakes_the_server(pipes: Any) -> None:
    *ready, acted, parked, spin = shared_cells(6)
    read, write = pipes()
    bells = [Counting(parked, read_fd=read, write_fd=write) for _ in ready]
    workers = [
        Handoff(own, [acted], bell, [bell], companions=[cell for cell in ready if cell is not own], spin_ns=spin)
        for own, bell in zip(ready, bells, strict=True)
    ]
    parked[0] = 1
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        before = [bell.rung for bell in bells]
        for worker in order:
            workers[worker].post()
        assert [bell.rung - then for bell, then in zip(bells, before, strict=True)] == [
            int(worker == order[-1]) for worker in range(3)
        ]


def test_awake_process_is_not_rung(pipes: Any) -> None:
    own, peer, parked, spin = shared_cells(4)
    read, write = pipes()
    bell = Counting(parked, read_fd=read, write_fd=write)
    hands = Handoff(own, [peer], bell, [bell], spin_ns=spin)
    hands.post()
    assert (bell.rung, hands.count) == (0, 1)
    parked[0] = 1
    hands.post()
    assert (bell.rung, hands.count) == (1, 2)


def test_lagging_peers_are_listed(pipes: Any) -> None:
    own, parked, spin, *peers = shared_cells(6)
    for peer, number in zip(peers, (3, 2, 4), strict=True):
        peer[0] = number
    hands = Handoff(own, peers, Bell(parked, read_fd=pipes()[0]), [], spin_ns=spin)
    assert (hands.lagging(2), hands.lagging(3), hands.lagging(5)) == ([], [1], [0, 1, 2])
    heard = []

    def sleep(awaited: Sequence[int]) -> bool:
        heard.append(list(awaited))
        peers[awaited[0]][0] = 5
        return True

    hands.wait_for(5, sleep)
    assert heard == [[0, 1, 2], [1, 2], [2]]


# ---- the moments a ring could be missed: too short for a real race to hit reliably ----


class Watched:
    """A cell that calls before it is read."""

    def __init__(self, cell: Cell, before: Callable[[], None]) -> None:
        self._cell = cell
        self._before = before

    def __getitem__(self, index: int) -> int:
        self._before()
        return self._cell[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._cell[index] = value


class Fences:
    """What a cell held at each fence: by then all can see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cell: Cell) -> None:
        self.seen: list[int] = []
        real = memory.fence

        def fence(lock: Any) -> None:
            assert isinstance(lock, type(threading.Lock()))
            real(lock)
            self.seen.append(cell[0])

        monkeypatch.setattr(handoff, "fence", fence)


def test_counter_change_during_parking_is_not_missed(pipes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, peer, parked, spin = shared_cells(4)
    flag = Fences(monkeypatch, parked)

    def move() -> None:
        if 1 in flag.seen:  # its owner saw no flag yet, and does not ring
            peer[0] = 1

    hands = Handoff(own, [Watched(peer, move)], Bell(parked, read_fd=pipes()[0]), [], spin_ns=spin)  # type: ignore[list-item]

    def sleep(awaited: Sequence[int]) -> bool:
        raise AssertionError("slept although the number had moved before")

    hands.wait_for(1, sleep)
    assert (parked[0], hands.late) == (0, 0)


def test_process_that_parks_during_a_post_is_rung(pipes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, peer, parked, spin = shared_cells(4)
    read, write = pipes()
    number = Fences(monkeypatch, own)

    def park() -> None:
        if 1 in number.seen:  # its owner saw no number yet, and sleeps
            parked[0] = 1

    bell = Counting(Watched(parked, park), read_fd=read, write_fd=write)  # type: ignore[arg-type]
    Handoff(own, [peer], bell, [bell], spin_ns=spin).post()
    assert bell.rung == 1


@pytest.mark.parametrize("weakly", [False, True])
def test_data_written_before_a_counter_is_visible_on_weakly_ordered_processors(
    pipes: Any, monkeypatch: pytest.MonkeyPatch, weakly: bool
) -> None:
    own, peer, parked, spin = shared_cells(4)
    monkeypatch.setattr(handoff, "WEAKLY_ORDERED", weakly)
    hands = Handoff(own, [peer], Bell(parked, read_fd=pipes()[0]), [], spin_ns=spin)
    with monkeypatch.context() as patch:
        number = Fences(patch, own)
        hands.post()
    assert number.seen == ([0, 1] if weakly else [1])
    peer[0] = 1
    with monkeypatch.context() as patch:
        number = Fences(patch, peer)
        hands.wait_for(1)
    assert number.seen == ([1] if weakly else [])


@pytest.mark.parametrize(("weakly", "exchanges"), [(False, 1), (True, 2)])
def test_a_fence_is_an_atomic_exchange(monkeypatch: pytest.MonkeyPatch, weakly: bool, exchanges: int) -> None:
    """Interpreted code is too slow for a race to show that there is none."""
    lock = MagicMock()
    monkeypatch.setattr(memory, "WEAKLY_ORDERED", weakly)
    memory.fence(lock)
    assert lock.mock_calls == [call.__enter__(), call.__exit__(None, None, None)] * exchanges


@pytest.mark.parametrize("spin_ns", [0, 1_000_000_000])
def test_wait_without_spin_budget_sleeps_at_once(pipes: Any, spin_ns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "waiting", None)  # which reads the memory itself
    own, peer, parked, spin = shared_cells(4)
    spin[0] = spin_ns
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1

    def sleep(awaited: Sequence[int]) -> bool:
        peer[0] = 1
        return True

    watched_peer: Any = Watched(peer, look)
    read, write = pipes()
    os.write(write, b"!")
    Handoff(own, [watched_peer], Bell(parked, read_fd=read), [], spin_ns=spin).wait_for(1, sleep)
    assert (looks > 16) == (spin_ns > 0)


@pytest.mark.skipif(compiled.waiting is None, reason="no compiled part")
def test_the_compiled_poll_returns_when_the_number_is_reached_or_time_is_up() -> None:
    (cell,) = shared_cells(1)
    cell[0] = 7
    assert compiled.waiting is not None
    assert compiled.waiting.spin(cell, 7, LONG * 10**9)
    before = time.monotonic()
    assert not compiled.waiting.spin(cell, 8, 10_000_000)
    assert time.monotonic() - before >= 0.01
    # Another thread runs meanwhile, because the poll does not hold the interpreter lock.
    threading.Timer(0.02, cell.__setitem__, (0, 8)).start()
    assert compiled.waiting.spin(cell, 8, LONG * 10**9)


# ---- a peer that dies ----


@pytest.mark.parametrize("spin_ns", [0, 20_000_000])
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.05])
def test_killed_peer_ends_a_sleeping_wait(pipes: Any, spin_ns: int, delay: float) -> None:
    pair = Pair(pipes, spin_ns)

    def child() -> None:
        while not pair.parked[0][0]:
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    with forked(child) as processes:
        hands, bell = pair.side(0)
        with pytest.raises(PeerGone, match=r"\[-9\]"):
            hands.wait_for(1, attending(bell, pair.pipes[0][0], processes, LONG))
    assert bell.slept == 1
    assert pair.parked[0][0] == 0, "a flag that stays up would have others ring for nobody"
    assert hands.late == 0


def test_killed_peer_ends_a_polling_wait(pipes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "waiting", None)  # which reads the memory itself
    pair = Pair(pipes, 20_000_000)
    looks = slept_before = 0

    def look() -> None:
        nonlocal looks, slept_before
        looks += 1
        if looks == 5:  # the first was before it began to look for long
            slept_before = bell.slept
            processes[0].kill()

    with forked(partial(time.sleep, LONG)) as processes:
        bell = Counting(pair.parked[0], read_fd=pair.pipes[0][0])
        peer: Any = Watched(pair.numbers[1], look)
        hands = Handoff(pair.numbers[0], [peer], bell, [], spin_ns=pair.spin_ns)
        with pytest.raises(PeerGone, match=r"\[-9\]"):
            hands.wait_for(1, attending(bell, pair.pipes[0][0], processes, LONG))
    assert slept_before == 0
    assert pair.parked[0][0] == 0
    assert hands.late == 0


def test_tick_wakes_a_sleeper_whose_peer_died_before_ringing(pipes: Any) -> None:
    pair = Pair(pipes, 0)
    go = pair.slept[1]

    def child() -> None:
        while not go[0]:
            time.sleep(0.001)
        pair.numbers[1][0] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    with forked(child) as processes:
        hands, bell = pair.side(0)

        def sleep(awaited: Sequence[int]) -> bool:
            assert list(awaited) == [0]
            go[0] = 1
            assert joined(processes) == [-signal.SIGKILL]
            return bell.sleep()

        hands.wait_for(1, sleep)
    assert hands.late == 1
    assert pair.parked[0][0] == 0


def test_tick_wakes_a_sleeping_worker(pipes: Any) -> None:
    """A worker's wait, which nobody looks after."""
    pair = Pair(pipes, 0)

    class Late(Counting):
        def sleep(self) -> bool:
            pair.numbers[1][0] = 1
            return super().sleep()

    bell = Late(pair.parked[0], read_fd=pair.pipes[0][0])
    hands = Handoff(pair.numbers[0], [pair.numbers[1]], bell, [], spin_ns=pair.spin_ns)
    hands.wait_for(1)
    assert (hands.late, pair.parked[0][0]) == (1, 0)


def test_ring_at_the_tick_is_not_late(pipes: Any) -> None:
    pair = Pair(pipes, 0)
    hands, _ = pair.side(0)
    peer, _ = pair.side(1)

    def sleep(awaited: Sequence[int]) -> bool:
        peer.post()
        return False  # the tick was a moment earlier

    hands.wait_for(1, sleep)
    assert (hands.late, pair.parked[0][0]) == (0, 0)


def test_long_wait_is_not_late(pipes: Any) -> None:
    pair = Pair(pipes, 0)
    hands, bell = pair.side(0)
    peer, _ = pair.side(1)
    ticks = 0

    def sleep(awaited: Sequence[int]) -> bool:
        nonlocal ticks
        ticks += 1
        if ticks == 4:
            peer.post()
        return bell.sleep()

    hands.wait_for(1, sleep)
    assert (ticks, hands.late, pair.parked[0][0]) == (4, 0, 0)


def test_stale_ring_does_not_end_a_wait(pipes: Any) -> None:
    """Meant for who looked once more and did not sleep, it comes when that one waits for something else."""
    pair = Pair(pipes, 0)
    hands, bell = pair.side(0)
    os.write(pair.pipes[0][1], b"!")
    heard = []

    def sleep(awaited: Sequence[int]) -> bool:
        heard.append(rang := bell.sleep())
        if not rang:
            pair.numbers[1][0] = 1
            os.write(pair.pipes[0][1], b"!")
        return rang

    hands.wait_for(1, sleep)
    assert heard == [True, False]
    assert hands.late == 0


# ---- bells ----


def test_ring_before_a_sleep_ends_it_and_silence_discards_it(pipes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = pipes()
    bell = Bell(shared_cells(1)[0], read_fd=read, write_fd=write)
    bell.silence()
    bell.ring()
    bell.ring()
    with monkeypatch.context() as patch:
        patch.setattr(handoff, "_TICK_MS", LONG * 1000)
        assert bell.sleep()
        assert bell.sleep()  # nobody forgot it
    bell.silence()
    bell.silence()
    assert not any(bell.sleep() for _ in range(3))
    bell.ring()
    assert bell.sleep()


def test_a_ring_wakes_a_process_that_sleeps(pipes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff, "_TICK_MS", LONG * 1000)
    parked = shared_cells(1)[0]
    read, write = pipes()

    def child() -> None:
        while not parked[0]:
            time.sleep(0.001)
        time.sleep(0.05)
        Bell(parked, write_fd=write).ring()

    with forked(child) as processes:
        parked[0] = 1
        assert Bell(parked, read_fd=read).sleep()
        assert joined(processes) == [0]


def test_full_pipe_does_not_block_a_ring(pipes: Any) -> None:
    read, write = pipes()
    bell = Bell(shared_cells(1)[0], read_fd=read, write_fd=write)
    for _ in range(70_000):  # more than a pipe holds
        bell.ring()
    with pytest.raises(BlockingIOError):
        os.write(write, b"!")
    assert bell.sleep()


def test_ringing_for_a_dead_process_is_no_error() -> None:
    read, write = Bell.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        os.write(write, b"!")
    Bell(shared_cells(1)[0], write_fd=write).ring()
    os.close(write)


# ---- a server's sleep ----


def obey(channel: Channel, argument: Any) -> None:
    """Takes a descriptor to ring, then does what it is told. argument: what its replies begin with."""
    write, replied = channel.receive_fd(), 0
    while (command := channel.receive()) is not None:
        match command:
            case "ring":
                os.write(write, b"!")
            case "step":
                channel.status.enter(Phase.STEPPING)
            case "reply":
                replied += 1
                channel.reply((argument, replied))
            case "start a program":
                held = channel._pipe.fileno()
                channel.reply(subprocess.Popen(["sleep", str(LONG)], pass_fds=[held]).pid)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise ValueError("the worker is unhappy")
            case "fail and stay":
                threading.Thread(target=time.sleep, args=(LONG,)).start()
                raise ValueError("the worker is unhappy")
    channel.reply(None)


@contextmanager
def watched(pipes: Any, timeout: float = 20.0) -> Iterator[tuple[WorkerGroup, WorkerWatch, int]]:
    """Two workers, a server's sleep, and what it sleeps on."""
    group = WorkerGroup(obey, [0, 1], start_method="fork", prologue=nothing, name="test", timeout=timeout)
    try:
        read, write = pipes()
        group.send_fd(write)
        yield group, WorkerWatch(group, read), read
    finally:
        group.kill()


@pytest.fixture
def _long_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleep that is not ended by what happens lasts for a minute, and returns False."""
    monkeypatch.setattr(watch_module, "TICK", LONG)


@pytest.mark.usefixtures("_long_ticks")
def test_server_wakes_when_a_worker_rings(pipes: Any) -> None:
    with watched(pipes) as (group, watch, read):
        for rank in (1, 0):
            group.send_to(rank, "ring")
            assert watch.sleep([0, 1])
            assert os.read(read, 10) == b"!"


def test_server_wakes_every_tick_without_a_ring(pipes: Any) -> None:
    with watched(pipes) as (_, watch, _):
        assert not any(watch.sleep([0, 1]) for _ in range(3))


@pytest.mark.usefixtures("_long_ticks")
def test_reply_that_arrives_while_the_server_waits_is_kept(pipes: Any) -> None:
    with watched(pipes) as (group, watch, read):
        group.send_to(0, "reply")
        assert not watch.sleep([0, 1]), "a reply is no ring"
        group.send_to(1, "reply")
        group.send_to(1, "ring")
        while not watch.sleep([0, 1]):  # by the ring the reply has been there
            pass
        assert os.read(read, 10) == b"!"
        assert group.replies() == [(0, 1), (1, 1)]
        group.send("reply")
        assert group.replies() == [(0, 2), (1, 2)], "each is given once"


@pytest.mark.usefixtures("_long_ticks")
@pytest.mark.parametrize("spin_ns", [0, SPIN])
def test_killed_worker_ends_the_wait_of_the_server_with_an_error(pipes: Any, spin_ns: int) -> None:
    own, peer, parked, spin = shared_cells(4)
    spin[0] = spin_ns
    with watched(pipes) as (group, watch, read):
        hands = Handoff(own, [peer], Bell(parked, read_fd=read), [], spin_ns=spin)
        group.send_to(1, "die")
        with pytest.raises(WorkerCrashed, match="SIGKILL") as caught:
            hands.wait_for(1, watch.sleep)  # for worker 0
        assert caught.value.where is not None
        assert caught.value.where.worker == 1
        assert (parked[0], hands.late) == (0, 0)


@pytest.mark.usefixtures("_long_ticks")
def test_worker_death_is_noticed_while_its_child_lives(pipes: Any) -> None:
    """Which may hold the worker's end of the pipe, so that it does not hang up."""
    with watched(pipes) as (group, watch, _):
        group.send("start a program")
        programs = group.replies()
        try:
            group.send_to(1, "die")
            with pytest.raises(WorkerCrashed, match="SIGKILL"):
                watch.sleep([0, 1])
        finally:
            for program in programs:
                os.kill(program, signal.SIGKILL)


@pytest.mark.usefixtures("_long_ticks")
@pytest.mark.parametrize("how", ["fail", "fail and stay"])
def test_failing_worker_ends_the_wait_of_the_server_with_its_error(pipes: Any, how: str) -> None:
    """Also if its process does not end, because something of the environment's still runs."""
    with watched(pipes) as (group, watch, _):
        group.send_to(0, how)
        with pytest.raises(EnvFailed, match=r"ValueError: the worker is unhappy") as caught:
            watch.sleep([1])
        assert caught.value.where is not None
        assert caught.value.where.worker == 0


def test_idle_worker_counts_as_hung_only_if_awaited(pipes: Any) -> None:
    with watched(pipes, timeout=0.4) as (_, watch, _):

        def sleep_for(ticks: int) -> None:
            assert not any(watch.sleep([1]) for _ in range(ticks))

        deadline = time.monotonic() + 0.8  # twice the timeout
        while time.monotonic() < deadline:
            assert not watch.sleep([])
        watch.awake()
        sleep_for(1)  # counted anew
        with pytest.raises(WorkerHung, match=r"worker 1 made no progress for 0\.4 s") as caught:
            sleep_for(200)
        assert caught.value.where is not None
        assert caught.value.where.worker == 1


def test_progressing_worker_may_take_longer_than_the_timeout(pipes: Any) -> None:
    with watched(pipes, timeout=2.0) as (group, watch, _):
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            group.send_to(0, "step")
            assert not watch.sleep([0])
