"""No process is left: workers that hold the interpreter, and programs that environments start."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.agents.pg import CategoricalPgAgent
from headrace.errors import WorkerCrashed, WorkerHung
from headrace.samplers import AsyncCpuSampler, BaseSampler, CpuSampler, GpuSampler, SerialSampler
from tests.leftovers import DEADLINE, all_gone
from tests.orphan_script import start_programs
from tests.test_master import ROOT, family
from tests.walk import Walk

pytestmark = pytest.mark.programs


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program of its own process group, as a terminal gives it."""
    started = subprocess.Popen(
        [sys.executable, "tests/orphan_script.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate(timeout=DEADLINE)


def words(started: subprocess.Popen[str], number: int) -> list[str]:
    assert started.stdout is not None
    return [started.stdout.readline().strip() for _ in range(number)]


def programs(started: subprocess.Popen[str], number: int) -> list[psutil.Process]:
    return [psutil.Process(int(word)) for word in words(started, number)]


def rest(method: str) -> list[pytest.MarkDecorator]:
    return [] if method == "fork" else [pytest.mark.slow]


HOLDING = [
    ("cpu", "step", "fork"),
    ("gpu", "step", "fork"),
    ("async", "step", "fork"),
    ("cpu", "constructor", "forkserver"),
    ("cpu", "constructor", "fork"),
    ("cpu", "step", "forkserver"),
    ("cpu", "step", "spawn"),
    ("cpu", "constructor", "spawn"),
    ("async-serial", "constructor", "fork"),
    ("async", "constructor", "spawn"),
]


@pytest.mark.parametrize(
    ("kind", "where", "start_method"),
    [pytest.param(*case, marks=[pytest.mark.slow] if index >= 4 else []) for index, case in enumerate(HOLDING)],
)
def test_worker_that_holds_the_gil_does_not_outlive_a_killed_program(kind: str, where: str, start_method: str) -> None:
    with program(kind, "holds", where, start_method) as started:
        assert words(started, 1) == ["holding"]
        children = family(started)
        assert children
        started.kill()
        assert all_gone(children)


@pytest.mark.parametrize(
    ("kind", "start_method"),
    [
        ("cpu", "fork"),
        ("async", "fork"),
        pytest.param("cpu", "forkserver", marks=pytest.mark.slow),
        pytest.param("gpu", "spawn", marks=pytest.mark.slow),
    ],
)
def test_child_of_an_environment_does_not_outlive_a_killed_program(kind: str, start_method: str) -> None:
    with program(kind, "starts", "constructor", start_method) as started:
        found = programs(started, 2)
        assert words(started, 1) == ["sampled"]
        started.kill()
        assert all_gone(found)


@pytest.mark.parametrize("kind", ["cpu", pytest.param("async", marks=pytest.mark.slow)])
def test_workers_outlive_the_starting_thread_but_not_the_program(kind: str) -> None:
    with program(kind, "starts", "thread", "fork") as started:
        found = programs(started, 2)
        assert words(started, 1) == ["sampled"]
        started.kill()
        assert all_gone(found)


@pytest.mark.parametrize(
    ("kind", "start_method"),
    [
        ("cpu", "fork"),
        pytest.param("async", "fork", marks=pytest.mark.slow),
        pytest.param("gpu", "forkserver", marks=pytest.mark.slow),
    ],
)
def test_child_of_an_environment_ends_with_shutdown(kind: str, start_method: str) -> None:
    """Also one that moved into the background, with its own session."""
    with program(kind, "leaves", "shutdown", start_method) as started:
        found = programs(started, 4)
        assert words(started, 2) == ["sampled", "shut down"]
        assert all_gone(found)
        assert started.poll() is None


class Leaves(Walk):
    """`Leaves` of tests/orphan_script.py that can also die in a step."""

    def __init__(self, numbers: str, fault: int | None) -> None:
        super().__init__()
        self._fault = fault
        for program in start_programs():
            with open(numbers, "a") as file:
                file.write(f"{program}\n")

    def step(self, action: Any) -> Any:
        if self._fault is not None:
            os.kill(os.getpid(), self._fault)
        return super().step(action)


@pytest.mark.parametrize("cls", [CpuSampler, GpuSampler, AsyncCpuSampler])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_child_of_an_environment_ends_with_a_crash_or_a_hang(
    cls: type[BaseSampler], fault: int, tmp_path: Path
) -> None:
    numbers = tmp_path / "numbers"
    options: dict[str, Any] = {"batch_T": 4, "batch_B": 2, "n_workers": 1, "max_decorrelation_steps": 0, "timeout": 3.0}
    sampler = cls(Leaves, {"numbers": str(numbers), "fault": fault}, **options, start_method="fork")
    with pytest.raises((WorkerCrashed, WorkerHung)), sampler.initialize(CategoricalPgAgent(), seed=0):
        sampler.obtain_samples(0)
    pids = [int(line) for line in numbers.read_text().split()]
    assert len(pids) == 4
    if fault == signal.SIGKILL:  # nobody is left to say whose a program was that has a session of its own
        for pid in pids[1::2]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert all_gone([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)])


def test_serial_sampler_does_not_change_its_process_group() -> None:
    group = os.getpgrp()
    with SerialSampler(Walk, batch_T=2, batch_B=1).initialize(CategoricalPgAgent(), seed=0) as sampler:
        sampler.obtain_samples(0)
        assert os.getpgrp() == group
