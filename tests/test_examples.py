"""Every example runs, as a user runs it."""

import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
#: The folder an example runs in, which it must leave empty, and what it prints.
Output = tuple[Path, Future[str]]


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
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def outputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Output]:
    """What the examples did whose tests were selected; two run at a time, since most of it is loading torch."""
    selected = [one.callspec.params["path"] for one in request.session.items if test_it_runs.__name__ in one.name]
    folders = {path: tmp_path_factory.mktemp(path.stem) for path in selected}
    with ThreadPoolExecutor(2) as pool:
        return {path: (folder, pool.submit(ran, path, folder)) for path, folder in folders.items()}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_runs(path: Path, outputs: dict[Path, Output]) -> None:
    folder, output = outputs[path]
    assert output.result()
    assert list(folder.iterdir()) == []
