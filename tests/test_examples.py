"""Every example runs, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.leftovers import DEADLINE

pytestmark = pytest.mark.programs

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def test_there_are_examples_and_each_can_be_read_in_one_go() -> None:
    assert len(EXAMPLES) >= 4
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 100, path


def ran(path: Path, cwd: Path, *arguments: str) -> str:
    """Runs a script, whose warnings are errors; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    assert ran(path, tmp_path)
    assert list(tmp_path.iterdir()) == []
