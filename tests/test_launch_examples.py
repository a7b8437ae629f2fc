"""The experiments in examples/launch run as they are printed, with fewer steps."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "launch"
DEADLINE = 240  # seconds
#: Exit status of a script that lacks what it needs.
LACKS = 77

pytestmark = pytest.mark.programs


def ran(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a command with the program `headrace` of this interpreter on its path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=DEADLINE
    )


def require_end(done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"mean return \d+\.\d over 100 episodes", done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["cartpole.py", "cartpole_inline.py"])
def test_an_experiment_runs_to_its_end(name: str, tmp_path: Path) -> None:
    done = ran(["headrace", "launch", str(FOLDER / name), "--n-steps", "8192"], tmp_path)
    require_end(done)
    (run,) = tmp_path.glob("runs/*/default")
    again = ran(["headrace", "launch", str(FOLDER / name), "--n-steps", "8192"], tmp_path)
    assert again.returncode == 2
    assert "give --resume to go on, or another --trial" in again.stderr
    longer = ran(["headrace", "launch", str(FOLDER / name), "--n-steps", "10240", "--resume"], tmp_path)
    require_end(longer)
    assert "training goes on after update 8 of 10" in longer.stderr
    shown = ran(["headrace", "top", str(run), "--once"], tmp_path)
    assert re.search(r"trainer 0 .* completed", shown.stdout)


def test_two_machines_in_two_network_namespaces(tmp_path: Path) -> None:
    done = ran([str(FOLDER / "two_machines.sh"), str(tmp_path / "run"), "--n-steps", "8192"], tmp_path)
    if done.returncode == LACKS:
        pytest.skip(done.stderr.strip())
    require_end(done)


def test_an_experiment_is_drawn(tmp_path: Path) -> None:
    if shutil.which("dot") is None:
        pytest.skip("graphviz is not installed")
    done = ran(["headrace", "launch", str(FOLDER / "cartpole.py"), "--plot", "run.svg"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "policy worker" in (tmp_path / "run.svg").read_text()
