"""Programs with a Ray of their own: a sampler that started Ray ends it, also at exit and after errors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.leftovers import DEADLINE, all_gone
from tests.ray_here import NEEDS_RAY

pytestmark = [pytest.mark.programs, NEEDS_RAY]

ROOT = Path(__file__).parent.parent


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "tests/ray_program.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # Ray's own messages; its processes would keep a pipe open
        text=True,
    )


def run(*arguments: str) -> list[str]:
    """Returns what a program says; fails if a process of its session remains."""
    with started(*arguments) as program:
        output, _ = program.communicate(timeout=DEADLINE)
        assert program.returncode == 0, output
    return output.splitlines()


def test_last_sampler_ends_the_ray_that_the_first_started_and_none_starts_it_under_another() -> None:
    works, *lives, message, after_error, works_too, ended, after_end = run("life")
    assert (works, works_too) == ("(8, 2)", "(8, 2)")
    assert lives == ["True", "False"]
    assert "ValueError: the simulator is unhappy" in message
    assert after_error == "False"
    assert ended.startswith("the Ray session has ended: the program called ray.shutdown()")
    assert after_end == "False"


@pytest.mark.parametrize(
    "end",
    [
        "exit_without_shutdown",
        pytest.param("SIGINT", marks=pytest.mark.slow),
        pytest.param("SIGKILL", marks=pytest.mark.slow),  # Ray takes its time
    ],
)
def test_end_of_the_program_ends_its_ray(end: str) -> None:
    with started("exit_without_shutdown" if end == "exit_without_shutdown" else "sleep") as program:
        assert program.stdout is not None
        assert program.stdout.readline().strip() == "(8, 2)"
        family = psutil.Process(program.pid).children(recursive=True)
        assert any(process.name() == "raylet" for process in family)
        if end.startswith("SIG"):
            assert program.stdout.readline().strip() == "asleep"
            program.send_signal(signal.Signals[end])
        program.communicate(timeout=DEADLINE)
        assert all_gone(family)


#: What a sampler with two workers returns: the shape of a batch, the environments of its episodes.
each_kind = pytest.mark.parametrize(("kind", "result"), [("batches", "(8, 4)"), ("episodes", "[0, 0, 1, 1]")])


@pytest.mark.slow
@each_kind
def test_worker_of_a_machine_that_dies_is_an_error(kind: str, result: str) -> None:
    lines = run("node_dies", kind, "0")
    assert lines[0] == result
    (message,) = [line for line in lines if line.startswith("worker ")]
    assert "its machine left the cluster" in message or "Ray lost the connection to it" in message
    assert lines[-2:] == ["[]", "False"]  # the sampler joined the cluster, and left it


@pytest.mark.slow
@each_kind
def test_restarted_worker_moves_to_a_machine_that_lives(kind: str, result: str) -> None:
    lines = run("node_dies", kind, "1")
    assert [line for line in lines if line.startswith(result[:2])] == [result] * 2
    assert lines[-2].count("it is started again") == 1
    assert lines[-1] == "False"
