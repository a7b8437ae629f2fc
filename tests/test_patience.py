"""`Patience`: how long the processes of a served sampler poll before they sleep."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from headrace.processes import affinity, patience
from headrace.processes.affinity import Affinity, cores_shared_by, cpu_quota, usable_cores
from headrace.processes.patience import Patience
from tests.leftovers import until

CORES = 4


class Machine:
    """A simulated machine with four cores. busy: core-seconds used so far; own: by each process."""

    def __init__(self) -> None:
        self.now = 100.0
        self.busy = 1000.0
        self.own = {1: 30.0, 2: 5.0, 3: 5.0, 4: 5.0, 5: 5.0}

    def passes(self, seconds: float, foreign: float, **own: float) -> None:
        """foreign: cores' worth that other programs use meanwhile; own: that of p1, p2, …"""
        self.now += seconds
        self.busy += seconds * (foreign + sum(own.values()))
        for name, cores in own.items():
            self.own[int(name[1:])] += cores * seconds

    def process(self, pid: int) -> Any:
        if pid not in self.own:
            raise psutil.NoSuchProcess(pid)

        def cpu_times() -> Any:
            if pid not in self.own:
                raise psutil.NoSuchProcess(pid)
            return SimpleNamespace(user=self.own[pid] - 1, system=1.0)

        return SimpleNamespace(cpu_times=cpu_times)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(patience, "perf_counter", lambda: made.now)
    monkeypatch.setattr("os.cpu_count", lambda: CORES)
    monkeypatch.setattr("psutil.Process", made.process)
    times = lambda: SimpleNamespace(user=made.busy - 5, nice=2.0, system=3.0)  # noqa: E731
    monkeypatch.setattr("psutil.cpu_times", times)
    return made


def looks(cell: list[int], chooser: Patience) -> bool:
    chooser.decide()
    return cell[0] > 0


@pytest.mark.parametrize(
    ("n_processes", "quota", "expected"), [(2, None, True), (5, None, True), (3, 3, True), (4, 3, False), (2, 1, False)]
)
def test_processes_poll_unless_a_quota_is_too_small(
    n_processes: int, quota: int | None, expected: bool, machine: Machine
) -> None:
    cell: Any = [0]
    chooser = Patience(cell, range(1, n_processes + 1), CORES, quota)
    assert (cell[0] > 0) == expected
    machine.passes(1.0, foreign=0.0)
    assert looks(cell, chooser) == expected


def test_processes_with_a_core_each_poll_longer(machine: Machine) -> None:
    own: Any = [0]
    shared: Any = [0]
    Patience(own, [1, 2, 3, 4], CORES, None)
    Patience(shared, [1, 2, 3, 4, 5], CORES, None)
    assert own[0] > shared[0] > 0


def test_processes_do_not_poll_while_other_programs_are_busy(machine: Machine) -> None:
    cell: Any = [0]
    chooser = Patience(cell, [1, 2, 3, 4, 5], CORES, None)  # no core to spare
    machine.passes(1.0, foreign=0.3)
    assert looks(cell, chooser)
    machine.passes(1.0, foreign=1.0)
    assert not looks(cell, chooser)
    machine.passes(1.0, foreign=0.3)
    assert looks(cell, chooser)


def test_own_processes_do_not_count_as_other_programs(machine: Machine) -> None:
    cell: Any = [0]
    chooser = Patience(cell, [1, 2, 3, 4, 5], CORES, None)
    machine.passes(1.0, foreign=0.3, p1=1.0, p2=0.7, p3=0.7, p4=0.7, p5=0.6)
    assert looks(cell, chooser)


def test_other_programs_may_use_spare_cores(machine: Machine) -> None:
    cell: Any = [0]
    chooser = Patience(cell, [1, 2], CORES, None)
    machine.passes(1.0, foreign=2.0, p1=1.0, p2=1.0)
    assert looks(cell, chooser)
    machine.passes(1.0, foreign=3.0, p1=0.5, p2=0.5)
    assert not looks(cell, chooser)


def test_load_of_other_programs_is_spread_over_all_cores(machine: Machine) -> None:
    """If others use 2 of 4 cores, 1 of them is assumed to be one of these two."""
    cell: Any = [0]
    chooser = Patience(cell, [1], CORES // 2, None)  # one to spare
    machine.passes(1.0, foreign=2.0)
    assert looks(cell, chooser)
    machine.passes(1.0, foreign=3.5)
    assert not looks(cell, chooser)


def test_load_is_measured_over_at_least_half_a_second(machine: Machine) -> None:
    cell: Any = [0]
    chooser = Patience(cell, [1, 2, 3, 4, 5], CORES, None)
    machine.passes(0.2, foreign=4.0)
    assert looks(cell, chooser)
    machine.passes(0.4, foreign=0.0)
    assert not looks(cell, chooser)  # 0.8 core-seconds in 0.6 s


def test_ended_process_is_ignored(machine: Machine) -> None:
    cell: Any = [0]
    chooser = Patience(cell, [1, 2, 77], CORES, None)
    del machine.own[2]
    machine.passes(1.0, foreign=0.0)
    chooser.decide()


@contextmanager
def busy_processes(n: int) -> Iterator[list[int]]:
    def spin() -> None:
        while True:
            pass

    processes = [get_context("fork").Process(target=spin, daemon=True) for _ in range(n)]
    try:
        for process in processes:
            process.start()
        yield [process.pid or 0 for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join(10)


def test_load_of_real_programs_is_measured_without_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PERIOD", 0.4)
    n_cores = os.cpu_count() or 1
    with busy_processes(n_cores + 2) as pids:
        theirs: Any = [0]
        ours: Any = [0]
        crowded = Patience(theirs, [os.getpid()], n_cores, None)
        among_us = Patience(ours, [os.getpid(), *pids], n_cores, None)
        processes = [psutil.Process(pid) for pid in pids]
        before = measured(among_us, crowded, processes)
        assert until(lambda: measured(among_us, crowded, processes)[2] > before[2] + 1.0), "they use cores"
        after = measured(among_us, crowded, processes)
        assert until(lambda: not looks(theirs, crowded))
    foreign_of_us, foreign_of_all, own = (now - then for now, then in zip(after, before, strict=True))
    assert foreign_of_all - foreign_of_us == pytest.approx(own, rel=0.2), "whatever else the machine does"


def measured(among_us: Patience, crowded: Patience, processes: list[psutil.Process]) -> tuple[float, float, float]:
    """Core-seconds: foreign to a sampler of these processes, foreign to one of others, and those of the processes."""
    foreign = among_us._foreign_seconds(), crowded._foreign_seconds()
    return *foreign, sum(sum(process.cpu_times()[:2]) for process in processes)


# ---- cores ----


def test_cores_include_those_of_master_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    own = len(os.sched_getaffinity(0))
    first = min(os.sched_getaffinity(0))
    assert cores_shared_by(Affinity(), 3) == own
    workers = ((101, 102), (102, 103), (104,))
    assert cores_shared_by(Affinity(master_cpus=(100, 101), workers_cpus=workers), 3) == 5
    assert cores_shared_by(Affinity(master_cpus=(100, 101), workers_cpus=workers), 2) == 4
    assert cores_shared_by(Affinity(master_cpus=(100,), workers_cpus=((100,), (100,))), 2) == 1
    assert cores_shared_by(Affinity(workers_cpus=workers), 3) == own + 4
    assert cores_shared_by(Affinity(workers_cpus=((first,),)), 1) == own
    assert cores_shared_by(Affinity(master_cpus=(100,)), 3) == 1
    unpinned = Affinity(master_cpus=(100,), workers_cpus=workers, set_affinity=False)
    assert cores_shared_by(unpinned, 3) == own


@pytest.mark.parametrize(
    ("words", "quota", "usable"),
    [("250000 100000", 3, 3), ("50000 100000", 1, 1), ("max 100000", None, 4), ("", None, 4)],
)
def test_container_quota_limits_usable_cores(
    words: str, quota: int | None, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affinity, "_allowed_cpus", lambda: [0, 1, 2, 3])
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: words)
    assert (cpu_quota(), usable_cores()) == (quota, usable)
