"""The folder of a run: settings, versions, git state."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from headrace.runners.run_folder import RunFolder
from tests.leftovers import DEADLINE


@dataclass
class Inner:
    epochs: int = 4


@dataclass
class Settings:
    env: str = "CartPole-v1"
    folder: Path = Path("somewhere")
    ppo: Inner = field(default_factory=Inner)


COMMAND = ["headrace", "train", "--seed", "3"]


def starts_of(path: Path) -> list[dict[str, object]]:
    starts: list[dict[str, object]] = json.loads((path / "run.json").read_text())
    return starts


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=DEADLINE)
    return done.stdout.decode().strip()


def test_run_json_records_command_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy
    import torch

    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create(tmp_path / "runs" / "first", asdict(Settings()), COMMAND)
    assert folder.config() == {"env": "CartPole-v1", "folder": "somewhere", "ppo": {"epochs": 4}}
    (start,) = starts_of(folder.path)
    assert start["command"] == COMMAND
    assert start["folder"] == str(tmp_path)
    assert start["python"] == platform.python_version()
    assert start["platform"] == platform.platform()
    packages = start["packages"]
    assert isinstance(packages, dict)
    assert (packages["numpy"], packages["torch"].split("+")[0]) == (numpy.__version__, torch.__version__.split("+")[0])
    assert {"headrace", "gymnasium"} <= packages.keys()
    assert isinstance(start["usable_cores"], int)
    assert start["git"] is None, "here is no git work tree"
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.json", "run.json"]


def test_git_commit_and_diff_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("runs/\n")
    (tmp_path / "agent.py").write_text("gain = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = RunFolder.create("runs/clean", {}, COMMAND)
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert starts_of(clean.path)[0]["git"] == {"commit": commit, "dirty": False, "changed": []}
    assert not list(clean.path.glob("*.diff"))

    (tmp_path / "agent.py").write_text("gain = 2\n")
    (tmp_path / "new.py").write_text("")
    dirty = RunFolder.create("runs/dirty", {}, COMMAND)
    state = {"commit": commit, "dirty": True, "changed": ["agent.py", "new.py"]}
    assert starts_of(dirty.path)[0]["git"] == state
    git(tmp_path, "checkout", "-q", "agent.py")
    git(tmp_path, "apply", "runs/dirty/git-0.diff")
    assert (tmp_path / "agent.py").read_text() == "gain = 2\n", "the difference brings the files back"


def test_run_continues_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = RunFolder.create(tmp_path / "run", {}, COMMAND)
    assert starts_of(folder.path)[0]["git"] is None


@pytest.mark.parametrize("mark", ["checkpoint.pt", "checkpoint-previous.pt", "best.pt", "config.json", "progress.csv"])
def test_folder_of_another_run_is_refused(mark: str, tmp_path: Path) -> None:
    (tmp_path / mark).write_text("precious")
    (tmp_path / "notes.txt").write_text("a person may keep other things here")
    with pytest.raises(FileExistsError, match=rf"\({mark} exists.*\); choose another"):
        RunFolder.create(tmp_path, {}, COMMAND)
    if mark.endswith(".pt"):
        (tmp_path / "run.json").write_text("[]")
        with pytest.raises(FileExistsError, match=rf"contains another run \({mark} exists"):
            RunFolder.create(tmp_path, {}, COMMAND)
        (tmp_path / "run.json").unlink()
    assert (tmp_path / mark).read_text() == "precious"
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / mark).unlink()
    assert RunFolder.create(tmp_path, {"seed": 1}, COMMAND).config() == {"seed": 1}


def test_files_of_a_run_without_checkpoint_are_moved_aside(tmp_path: Path) -> None:
    for number in range(3):
        folder = RunFolder.create(tmp_path, {"seed": number}, [*COMMAND, str(number)])
        (tmp_path / "progress.csv").write_text(f"rows of {number}")
        (tmp_path / "notes.txt").write_text("a person may keep other things here")
        assert [start["command"] for start in starts_of(tmp_path)] == [[*COMMAND, str(number)]]
        assert folder.config() == {"seed": number}
    for number in range(2):
        earlier = tmp_path / f"earlier-{number}"
        assert RunFolder.open(earlier).config() == {"seed": number}
        assert (earlier / "progress.csv").read_text() == f"rows of {number}"
        assert not (earlier / "notes.txt").exists()


def test_files_of_a_run_that_did_not_start_are_removed(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").touch()
    RunFolder.create(tmp_path, {}, COMMAND)
    assert not list(tmp_path.glob("earlier-*"))
    assert not (tmp_path / "progress.csv").exists()


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"3", b'{"time": 1}', b"[" * 100_000, b""])
def test_damaged_run_json_is_put_aside(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder.create(tmp_path, {}, COMMAND)
    for number in range(2):
        caplog.clear()
        (tmp_path / "run.json").write_bytes(content)
        folder.note_start([*COMMAND, "again"], {"seed": 2})
        assert (tmp_path / f"run-damaged-{number}.json").read_bytes() == content
        assert [start["command"] for start in starts_of(tmp_path)] == [[*COMMAND, "again"]]
        assert "run.json is damaged" in caplog.text


def test_settings_are_signed_by_their_author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"env": "mine:Env", "rates": (0.1, float("inf")), "folder": Path("x")}
    folder = RunFolder.create(tmp_path / "run", config, COMMAND)
    assert folder.is_own()
    assert folder.config() == {"env": "mine:Env", "rates": [0.1, float("inf")], "folder": "x"}
    text = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(text.replace("mine:Env", "evil:Env"))
    assert not folder.is_own(), "somebody changed them"
    for signature in ('"0"', "3", "null"):
        (tmp_path / "run" / "config.json").write_text(f'{{"env": "evil:Env", "signature": {signature}}}')
        assert not folder.is_own()
    (tmp_path / "run" / "config.json").write_text(text)
    assert folder.is_own()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another user"))
    assert not folder.is_own()
    assert folder.config()["env"] == "mine:Env"


def test_run_continues_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    folder = RunFolder.create(tmp_path / "run", {"seed": 1}, COMMAND)
    assert folder.config() == {"seed": 1}
    assert not folder.is_own()
    assert "config.json is not signed" in caplog.text


def test_resume_adds_an_entry_to_run_json(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {"seed": 1}, COMMAND)
    folder = RunFolder.open(tmp_path)
    assert folder.config() == {"seed": 1}
    folder.note_start(["headrace", "train", "--resume", str(tmp_path)], {"seed": 1, "n_steps": 2})
    assert folder.config() == {"seed": 1, "n_steps": 2}
    first, second = starts_of(tmp_path)
    assert (first["command"], second["command"]) == (COMMAND, ["headrace", "train", "--resume", str(tmp_path)])


def test_learning_curve_is_drawn_only_after_long_runs(tmp_path: Path) -> None:
    """The time of all parts counts, so a long run that is resumed briefly draws it again."""
    pytest.importorskip("matplotlib")
    folder, picture = RunFolder.create(tmp_path / "run", {}, COMMAND), tmp_path / "run" / "learning_curve.png"
    rows = "CumSteps,CumTime,ReturnAverage,ReturnMin,ReturnMax\n10,2.5,1,0,2\n20,{},3,1,4\n"
    (folder.path / "progress.csv").write_text(rows.format("4.9"))
    assert f"less than 5 s; to draw one, run: headrace plot {folder.path}" in folder.draw()
    assert not picture.exists()
    (folder.path / "progress.csv").write_text(rows.format("5.1"))
    assert folder.draw(3.5) == ""
    assert picture.read_bytes().startswith(b"\x89PNG")
    for unusable in ("CumTime\n30\n", "CumSteps\n30\n", ""):
        (folder.path / "progress.csv").write_text(unusable)
        assert folder.draw()


def test_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"contains no run: it has no config\.json"):
        RunFolder.open(tmp_path)
    for content in (b"{", b"\xff\xfe\x00", b"[1]", b"3", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            RunFolder.open(tmp_path).config()
