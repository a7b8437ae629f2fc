"""Nobody stays behind: workers that cannot look around, and the programs that environments start."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.test_master import DEADLINE, ROOT, family, gone


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
def test_a_worker_that_holds_the_interpreter_does_not_outlive_a_killed_program(
    kind: str, where: str, start_method: str
) -> None:
    with program(kind, "holds", where, start_method) as started:
        assert words(started, 1) == ["holding"]
        children = family(started)
        assert children
        started.kill()
        assert gone(children)


@pytest.mark.parametrize(
    ("kind", "start_method"),
    [
        ("cpu", "fork"),
        ("async", "fork"),
        pytest.param("cpu", "forkserver", marks=pytest.mark.slow),
        pytest.param("gpu", "spawn", marks=pytest.mark.slow),
    ],
)
def test_what_an_environment_started_does_not_outlive_a_killed_program(kind: str, start_method: str) -> None:
    with program(kind, "starts", "constructor", start_method) as started:
        found = programs(started, 2)
        assert words(started, 1) == ["sampled"]
        started.kill()
        assert gone(found)


@pytest.mark.parametrize("kind", ["cpu", pytest.param("async", marks=pytest.mark.slow)])
def test_workers_outlive_the_thread_that_started_them_and_not_the_program(kind: str) -> None:
    with program(kind, "starts", "thread", "fork") as started:
        found = programs(started, 2)
        assert words(started, 1) == ["sampled"]
        started.kill()
        assert gone(found)
