"""Programs that do something unusual around a sampler: it works, or one line says what is wrong."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.leftovers import DEADLINE, all_gone
from tests.test_master import ROOT, family, started

pytestmark = pytest.mark.programs


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tests/odd_program.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run(*arguments: str) -> list[str]:
    done = ended(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["ignores", "reaps"])
@pytest.mark.parametrize(
    ("kind", "fault", "start_method"),
    [
        ("cpu", "SIGKILL", "fork"),
        ("async", "python loop", "fork"),
        pytest.param("gpu", "SIGKILL", "fork", marks=pytest.mark.slow),
        pytest.param("gpu", "C loop", "spawn", marks=pytest.mark.slow),
        pytest.param("async", "_exit", "fork", marks=pytest.mark.slow),
        pytest.param("cpu", "_exit", "forkserver", marks=pytest.mark.slow),
    ],
)
def test_program_that_reaps_its_children_gets_a_readable_error(
    how: str, kind: str, fault: str, start_method: str
) -> None:
    well, error, done = run(how, kind, fault, start_method)
    assert (well, done) == ("well", "done")
    if "loop" in fault:
        assert error.startswith("WorkerHung: worker 1 made no progress")
    else:
        known = {"SIGKILL": "was killed by SIGKILL", "_exit": "ended with exit code 3"}[fault]
        assert error.startswith("WorkerCrashed: worker 1 ")
        assert known in error or "ended with an unknown exit code" in error


def test_daemon_process_that_starts_a_sampler_gets_an_explaining_error() -> None:
    (line,) = run("daemon", "cpu")
    assert line.startswith("SamplerError: workers cannot be started from a daemonic process")
    assert "daemon=False" in line


@pytest.mark.parametrize("kind", ["cpu", pytest.param("async", marks=pytest.mark.slow)])
def test_second_thread_is_refused_and_the_first_continues(kind: str) -> None:
    *refused, well = run("threads", kind)
    assert well == "well"
    calls = ["obtain_samples", "shutdown", "state"]
    assert refused == [
        f"SamplerError: {call}() was called while another thread is in obtain_samples() of this sampler; "
        "use a sampler from one thread at a time"
        for call in calls
    ]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("async", "start"),
        pytest.param("cpu", "start", marks=pytest.mark.slow),
        pytest.param("gpu", "start", marks=pytest.mark.slow),
        ("gpu", "open"),
        pytest.param("cpu", "open", marks=pytest.mark.slow),
        pytest.param("async", "open", marks=pytest.mark.slow),
    ],
)
def test_running_out_of_descriptors_names_the_limit(kind: str, stage: str) -> None:
    """At any moment. An open sampler needs no more descriptors."""
    lines = run("descriptors", kind, stage)
    assert lines
    assert set(lines) <= {"named", "well"}
    assert "named" in lines or stage == "open"


@pytest.mark.parametrize("kind", ["cpu", pytest.param("async", marks=pytest.mark.slow)])
def test_sampler_that_is_shut_down_at_exit_closes_its_environments(kind: str) -> None:
    assert run("shut down at exit", kind) == ["closed"] * 4


@pytest.mark.parametrize("kind", ["async", pytest.param("gpu", marks=pytest.mark.slow)])
def test_ctrl_c_while_python_exits_does_not_leave_it_waiting_for_workers(kind: str) -> None:
    """multiprocessing waits at exit for processes that are not daemons."""
    done = ended("interrupted at exit", kind)
    assert "interrupts" in done.stderr
    assert done.stderr.rstrip(": \n").endswith("KeyboardInterrupt")


@pytest.mark.parametrize("sampler", ["cpu", pytest.param("async", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pause", [0.0, 0.01, pytest.param(0.05, marks=pytest.mark.slow)])
def test_a_second_ctrl_c_does_not_disturb_the_clean_up(sampler: str, pause: float) -> None:
    with started("sampling", sampler) as program:
        children = family(program)
        os.killpg(program.pid, signal.SIGINT)
        for _ in range(3):
            time.sleep(pause)
            os.killpg(program.pid, signal.SIGINT)
        program.communicate(timeout=DEADLINE)
        assert all_gone(children)
        assert program.returncode == -signal.SIGINT
        # What is printed depends on what else an interrupt hits: Python's exit, torch's, even the printing of a report.
