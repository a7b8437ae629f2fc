"""Every example runs, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def test_there_are_examples_and_each_can_be_read_in_one_go() -> None:
    assert len(EXAMPLES) >= 4
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 100, path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
