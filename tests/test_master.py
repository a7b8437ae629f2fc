"""The program that samples ends by Ctrl-C, by a kill, or without `shutdown()`: nothing is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.leftovers import DEADLINE, all_gone

pytestmark = pytest.mark.programs

ROOT = Path(__file__).parent.parent
STAGES = ["start", "sampling", "idle", "shutdown"]


@contextmanager
def started(stage: str, sampler: str = "cpu", start_method: str = "fork") -> Iterator[subprocess.Popen[str]]:
    """A program of its own process group, as a terminal gives it, that has reached `stage`."""
    program = subprocess.Popen(
        [sys.executable, "tests/master_script.py", stage, sampler, start_method],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline().strip() == stage
        yield program
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.communicate(timeout=DEADLINE)


def family(program: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(program.pid).children(recursive=True)


CTRL_C = [
    pytest.param(
        method,
        stage,
        id=f"{method}-{stage}",
        marks=[pytest.mark.slow] if method != "fork" and (method, stage) != ("forkserver", "sampling") else [],
    )
    for method in ("fork", "forkserver", "spawn")
    for stage in STAGES
]


@pytest.mark.parametrize(("start_method", "stage"), CTRL_C)
def test_ctrl_c_ends_everything_with_a_short_traceback(start_method: str, stage: str) -> None:
    with started(stage, start_method=start_method) as program:
        children = family(program)
        assert len(children) >= 2 or stage == "start"
        os.killpg(program.pid, signal.SIGINT)  # a terminal sends it to every process of the group
        _, stderr = program.communicate(timeout=DEADLINE)
        assert program.returncode == -signal.SIGINT  # what a shell shows as 130
        assert len(stderr.strip().splitlines()) <= 10, stderr
        assert "KeyboardInterrupt" in stderr
        assert all_gone(children)


def test_ctrl_c_in_a_serial_sampler_has_a_short_traceback() -> None:
    with started("sampling", sampler="serial") as program:
        os.killpg(program.pid, signal.SIGINT)
        _, stderr = program.communicate(timeout=DEADLINE)
        assert len(stderr.strip().splitlines()) <= 10, stderr


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("start", signal.SIGKILL),
        ("sampling", signal.SIGKILL),
        *(pytest.param(stage, signal.SIGKILL, marks=pytest.mark.slow) for stage in STAGES[2:]),
        *(pytest.param(stage, signal.SIGTERM, marks=pytest.mark.slow) for stage in STAGES),
    ],
)
def test_workers_do_not_outlive_a_killed_program(stage: str, how: signal.Signals) -> None:
    with started(stage) as program:
        children = family(program)
        assert len(children) >= 1
        program.send_signal(how)
        program.communicate(timeout=DEADLINE)
        assert program.returncode == -how
        assert all_gone(children)


@pytest.mark.parametrize("start_method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_other_start_methods_do_not_outlive_a_killed_program(start_method: str) -> None:
    with started("sampling", start_method=start_method) as program:
        children = family(program)
        program.kill()
        program.communicate(timeout=DEADLINE)
        assert all_gone(children)


@pytest.mark.parametrize("sampler", ["gpu", "async", pytest.param("alternating", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_served_workers_do_not_outlive_their_server(sampler: str, how: signal.Signals) -> None:
    """Whether the server acts or waits for them at that moment."""
    with started("sampling", sampler=sampler) as program:
        children = family(program)
        assert len(children) == 2 + (sampler == "async")
        os.killpg(program.pid, how) if how == signal.SIGINT else program.kill()
        _, stderr = program.communicate(timeout=DEADLINE)
        assert program.returncode == -how
        assert len(stderr.strip().splitlines()) <= 10, stderr
        assert all_gone(children)


@pytest.mark.parametrize("sampler", ["cpu", "async", pytest.param("alternating", marks=pytest.mark.slow)])
def test_program_without_shutdown_ends_normally(sampler: str) -> None:
    with started("forget", sampler=sampler) as program:
        children = family(program)
        _, stderr = program.communicate(timeout=DEADLINE)
        assert (program.returncode, stderr) == (0, "")
        assert all_gone(children)
