"""A newcomer's path: the files and commands of docs/tutorials/whole_path.md, in an empty folder and an empty home."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from headrace.runners import load_checkpoint
from tests.leftovers import DEADLINE

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/tutorials/whole_path.md").read_text()
INSTALL, *COMMANDS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
FILES = re.findall(r"^```\{code-block\} python\n:caption: ([\w.]+)\n\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_packages_it_installs_are_extras_there_are() -> None:
    named = re.search(r'pip install -e "\.\[([\w,]+)\]"', INSTALL)
    assert named is not None
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(named[1].split(",")) <= extras.keys()


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder after all commands, and what each printed."""
    folder, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home")
    for name, content in FILES:
        (folder / name).write_text(content)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PYTEST_"))}
    environment |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return folder, [printed(command, folder, environment) for command in COMMANDS]


def printed(command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def test_the_environment_keeps_the_contract(walked: tuple[Path, list[str]]) -> None:
    assert "contract" in walked[1][0]


def test_a_killed_training_goes_on_and_ends(walked: tuple[Path, list[str]]) -> None:
    folder, (_, trained, *_) = walked
    assert "resumed from" in trained
    assert "every episode goes on" in trained
    assert load_checkpoint(folder / "runs/lane/checkpoint.pt")["steps"] >= 60_000


def test_the_run_leaves_what_it_says(walked: tuple[Path, list[str]]) -> None:
    folder, (_, _, looked, _) = walked
    mean_return = re.search(r"mean return (-?[\d.]+)", looked)
    assert mean_return is not None
    assert float(mean_return[1]) > 50
    run = folder / "runs/lane"
    for name in ("config.json", "run.json", "progress.csv", "learning_curve.png"):
        assert (run / name).stat().st_size, name
    assert any((run / "tensorboard").iterdir())


def test_tensorboard_has_every_column_of_the_log(walked: tuple[Path, list[str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = walked[0] / "runs/lane"
    columns = (run / "progress.csv").read_text().splitlines()[0].split(",")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == {re.sub("(.+)(Average|Std|Median|Min|Max)", r"\1/\2", column) for column in columns}
    assert "Return/Average" in tags


def test_the_saved_agent_acts_in_another_program(walked: tuple[Path, list[str]]) -> None:
    acted = re.search(r"return (-?[\d.]+) after (\d+) steps", walked[1][3])
    assert acted is not None
    assert float(acted[1]) > 50
    assert acted[2] == "100"
