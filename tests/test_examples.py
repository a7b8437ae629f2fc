"""Every example runs, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.leftovers import DEADLINE

pytestmark = pytest.mark.programs

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
#: What Python 3.12 and later say of each fork of a process with threads.
FORKS = "ignore:This process:DeprecationWarning"
#: Arguments with which there is less to do.
LESS = {
    "async_dqn.py": "2000",
    "async_ppo.py": "4000",
    "bit_flipping.py": "4 4 100",
    "custom_environment.py": "2500",
    "dqn.py": "50",
    "obtain_samples_loop.py": "12",
    "local_runner.py": "local 0 2",
    "memory_length.py": "stored_state 3200",
    "whole_episodes.py": "0 5",
}


def test_examples_exist_and_are_short() -> None:
    assert len(EXAMPLES) >= 4
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 100, path


def ran(path: Path, cwd: Path, *arguments: str) -> str:
    """Runs a script, whose warnings are errors; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", FORKS, str(path), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,  # the deadline of the other tests is for less work
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    assert ran(path, tmp_path, *LESS.get(path.name, "").split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LESS)
def test_example_runs_to_its_end(name: str, tmp_path: Path) -> None:
    assert ran(FOLDER / name, tmp_path)
