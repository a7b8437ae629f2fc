"""The files and commands of docs/tutorials/whole_path.md, in an empty folder with an empty home."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from headrace.runners import load_checkpoint
from tests.leftovers import DEADLINE

pytestmark = pytest.mark.programs

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/tutorials/whole_path.md").read_text()
INSTALL, *COMMANDS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
FILES = re.findall(r"^```\{code-block\} python\n:caption: ([\w.]+)\n\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_extras_of_the_tutorial_exist() -> None:
    named = re.search(r'pip install -e "\.\[([\w,]+)\]"', INSTALL)
    assert named is not None
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(named[1].split(",")) <= extras.keys()


def printed(command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=4 * DEADLINE,  # the second command trains twice
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.mark.timeout(5 * DEADLINE)
def test_commands_of_the_tutorial_run(tmp_path: Path) -> None:
    """In one test, because each step needs the one before."""
    folder, home = tmp_path / "project", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    for name, content in FILES:
        (folder / name).write_text(content)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PYTEST_"))}
    environment |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    checked, trained, looked, acted = (printed(command, folder, environment) for command in COMMANDS)
    assert "contract" in checked
    run = folder / "runs/lane"
    assert_went_on(run, trained)
    assert_left(run, looked)
    assert (folder / "comparison.png").stat().st_size
    assert_logged(run)
    assert_acts(acted)


def assert_went_on(run: Path, trained: str) -> None:
    """The training that was killed."""
    assert "resumed from" in trained
    assert "all episodes continue" in trained
    assert load_checkpoint(run / "checkpoint.pt")["steps"] >= 60_000


def assert_left(run: Path, looked: str) -> None:
    mean_return = re.search(r"mean return (-?[\d.]+)", looked)
    assert mean_return is not None
    assert float(mean_return[1]) > 50
    for name in ("config.json", "run.json", "progress.csv"):
        assert (run / name).stat().st_size, name
    assert any((run / "tensorboard").iterdir())


def assert_logged(run: Path) -> None:
    """TensorBoard has every column of the log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    columns = (run / "progress.csv").read_text().splitlines()[0].split(",")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == {re.sub("(.+)(Average|Std|Median|Min|Max)", r"\1/\2", column) for column in columns}
    assert "Return/Average" in tags


def assert_acts(acted: str) -> None:
    """The saved agent, in another program."""
    found = re.search(r"return (-?[\d.]+) after (\d+) steps", acted)
    assert found is not None
    assert float(found[1]) > 50
    assert found[2] == "100"
