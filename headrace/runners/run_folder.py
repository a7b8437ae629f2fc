"""The folder of a run: its settings, and the program, versions and machine that ran it."""

from __future__ import annotations

import hmac
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.checkpoints.run_settings import described
from headrace.checkpoints.signing import signature
from headrace.plotting import plot_learning_curve, read_columns
from headrace.processes.affinity import usable_cores
from headrace.storage import write_whole

if TYPE_CHECKING:
    from headrace.runners.base import Runner

__all__ = ["RunFolder", "RunRecord"]

_log = logging.getLogger("headrace.runners")

#: Distributions whose versions may change results.
_PACKAGES = ("headrace", "torch", "numpy", "gymnasium")
#: A new run must not replace any of these.
_CHECKPOINTS = ("checkpoint.pt", "checkpoint-previous.pt", "best.pt")
#: Files that a run writes before its first checkpoint.
_WRITTEN = ("config.json", "run.json", "git-*.diff", "progress.csv", "learning_curve.png", "replay")
_SIGNATURE = "signature"
#: Training time in seconds from which on a run draws its learning curve. Drawing takes about 1.5 s, most of it to
#: import matplotlib, which would be a quarter of a run of a few seconds.
_DRAWN_FROM = 5.0


@dataclass(frozen=True)
class RunRecord:
    """What a run records about itself in its folder.

    Args:
        config: settings, as plain values or values that `str` makes plain.
        command: command line that started the run.
        draws: whether the runner draws the learning curve; False if the program draws it later, with an evaluation.
    """

    config: Mapping[str, Any]
    command: Sequence[str]
    draws: bool = True

    @staticmethod
    def of(runner: Runner) -> RunRecord:
        """Returns the settings of a runner, and the command line of this program."""
        return RunRecord(described(runner), sys.argv)


@dataclass(frozen=True)
class RunFolder:
    """The files that describe a run.

    `config.json` contains the settings, nested as they were given. `run.json` is a list with one entry for the start
    and one for each resumption: time, command line, versions, machine and git commit. If a file under version control
    differed from that commit, `git-N.diff` contains the difference, where N is the number of the entry.

    `config.json` ends with a signature of this user on this machine (`headrace.checkpoints.signing`): only settings
    with a valid signature may name code to import without asking the user again.

    Use `RunFolder.create` for a new run and `RunFolder.open` for an existing one.

    Args:
        path: the folder.
    """

    path: Path

    @staticmethod
    def create(path: str | Path, config: Mapping[str, Any], command: Sequence[str]) -> RunFolder:
        """Creates the files of a new run, and the folder if it is missing; see `make_room` and `RunRecord`."""
        folder = RunFolder(Path(path).absolute())
        folder.make_room()
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.note_start(command, config)
        return folder

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """Returns the folder of an earlier run; raises FileNotFoundError if there is none."""
        folder = RunFolder(Path(path).absolute())
        if not (folder.path / "config.json").is_file():
            raise FileNotFoundError(f"{folder.path} contains no run: it has no config.json; give the folder of a run")
        return folder

    def make_room(self) -> None:
        """Prepares the folder for a new run: moves files of a run that never reached a checkpoint to `earlier-N`.

        Raises:
            FileExistsError: if there is a checkpoint, or a file of these names that no run wrote.
        """
        for name in _CHECKPOINTS:
            if (self.path / name).exists():
                raise FileExistsError(
                    f"{self.path} contains another run ({name} exists); choose another folder, or resume that run "
                    "with resume_from"
                )
        there = [path for pattern in _WRITTEN for path in sorted(self.path.glob(pattern))]
        if not (self.path / "run.json").exists():
            for path in there:
                if not (path.name == "progress.csv" and not path.stat().st_size):  # else left by a run that never began
                    raise FileExistsError(
                        f"{self.path} contains files that are not of a run ({path.name} exists, run.json does not); "
                        "choose another folder"
                    )
                path.unlink()
            return
        number = next(n for n in count() if not (self.path / f"earlier-{n}").exists())
        earlier = self.path / f"earlier-{number}"
        earlier.mkdir()
        for path in there:
            path.rename(earlier / path.name)
        _log.warning(
            "%s: an earlier run ended before its first checkpoint; its files are now in %s", self.path, earlier
        )

    def config(self) -> dict[str, Any]:
        """Returns the settings; raises ValueError if `note_start` did not write the file."""
        config = self._config()
        config.pop(_SIGNATURE, None)
        return config

    def is_own(self) -> bool:
        """Returns whether this user wrote the settings on this machine; raises ValueError as `config` does."""
        config = self._config()
        signed = config.pop(_SIGNATURE, None)
        return isinstance(signed, str) and hmac.compare_digest(signed.encode(), (_signature(config) or "-").encode())

    def note_start(self, command: Sequence[str], config: Mapping[str, Any]) -> None:
        """Adds an entry for a start or a resumption to `run.json`, and replaces the settings in `config.json`."""
        signed = _signature(config)
        _write(self.path / "config.json", config if signed is None else {**config, _SIGNATURE: signed})
        starts = self._starts()
        git, diff = _git()
        if diff:
            write_whole(self.path / f"git-{len(starts)}.diff", [diff.encode(errors="replace")])
        starts.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": list(command),
                "folder": os.getcwd(),
                "python": platform.python_version(),
                "packages": {name: _version(name) for name in _PACKAGES},
                "platform": platform.platform(),
                "usable_cores": usable_cores(),
                "git": git,
            }
        )
        _write(self.path / "run.json", starts)

    def draw(self, final_return: float | None = None) -> str:
        """Draws `learning_curve.png` if training took at least 5 s, resumptions included.

        Args:
            final_return: mean return of a final evaluation, if there was one.

        Returns:
            Why there is no picture; empty if there is one.
        """
        csv_path = self.path / "progress.csv"
        try:
            seconds = read_columns(csv_path, ["CumTime"])["CumTime"]
            if len(seconds) and seconds[-1] < _DRAWN_FROM:
                return f"training took less than {_DRAWN_FROM:g} s; to draw one, run: headrace plot {self.path}"
            plot_learning_curve(csv_path, self.path / "learning_curve.png", final_return)
        except (ImportError, KeyError, ValueError, OSError) as error:
            return str(error)
        return ""

    def _config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            config = json.loads(_content(path))
        except (ValueError, RecursionError) as error:  # ValueError also for text that is not UTF-8
            raise ValueError(f"{path} is damaged: {error}; restore it, or give another run") from error
        if not isinstance(config, dict):
            raise ValueError(
                f"{path} is damaged: it contains a {type(config).__name__}, expected a dict; restore it, or give "
                "another run"
            )
        return config

    def _starts(self) -> list[Any]:
        """Returns the entries of `run.json`; renames a damaged file and returns an empty list."""
        path = self.path / "run.json"
        try:
            starts = json.loads(_content(path))
            if not isinstance(starts, list):
                raise ValueError(f"it contains a {type(starts).__name__}, expected a list")
        except FileNotFoundError:
            return []
        except (ValueError, RecursionError) as error:
            number = next(n for n in count() if not (self.path / f"run-damaged-{n}.json").exists())
            aside = path.rename(self.path / f"run-damaged-{number}.json")
            _log.warning("%s is damaged: %s; it was renamed to %s, and a new file is begun", path, error, aside.name)
            return []
        return starts


def _content(path: Path) -> str:
    """Returns the text of a file; raises ValueError for a folder, and for a pipe, of which reading would not return."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    return path.read_text()


def _text(content: Any) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


def _signature(config: Mapping[str, Any]) -> str | None:
    """Returns the signature of the settings as they will be read back; None if no key can be stored."""
    try:
        return signature(b"config.json\n" + _text(json.loads(_text(config))).encode()).hex()
    except OSError as error:
        _log.warning("config.json is not signed: %s", error)
        return None


def _write(path: Path, content: Any) -> None:
    """Writes a JSON file, completely or not at all."""
    write_whole(path, [_text(content).encode()])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        # The package is used from a source tree that is not installed.
        return getattr(sys.modules.get(package), "__version__", None)


def _git() -> tuple[dict[str, Any] | None, str]:
    """Returns the commit and whether and how the current work tree differs from it; `(None, "")` without git."""
    commit = _git_says("rev-parse", "HEAD")
    status = _git_says("status", "--porcelain")
    if commit is None or status is None:
        return None, ""
    # `changed` also lists untracked files, which are not in the diff.
    changed = [line[3:] for line in status.splitlines()]
    return {"commit": commit.strip(), "dirty": bool(changed), "changed": changed}, _git_says("diff", "HEAD") or ""


def _git_says(*arguments: str) -> str | None:
    """Returns the output of a git command; None if git is missing, fails, or takes more than 10 s."""
    # Without optional locks, this does not interfere with a person who is committing.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            ["git", *arguments], capture_output=True, env=environment, timeout=10, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout
