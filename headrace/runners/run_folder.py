"""The folder of a run: what was asked for, and with what it was done."""

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
from headrace.plotting import plot_learning_curve
from headrace.processes.affinity import usable_cores
from headrace.storage import write_whole

if TYPE_CHECKING:
    from headrace.runners.base import Runner

__all__ = ["RunFolder", "RunRecord"]

_log = logging.getLogger("headrace.runners")

#: Distributions whose versions a result depends on.
_PACKAGES = ("headrace", "torch", "numpy", "gymnasium")
#: Any of these is worth more than a new run.
_CHECKPOINTS = ("checkpoint.pt", "checkpoint-previous.pt", "best.pt")
#: What a run writes before its first checkpoint.
_WRITTEN = ("config.json", "run.json", "git-*.diff", "progress.csv", "learning_curve.png", "replay")
_SIGNATURE = "signature"


@dataclass(frozen=True)
class RunRecord:
    """What a run says of itself in its folder. config: settings, plain values, or what `str` makes plain; command: the
    words it was started with.
    """

    config: Mapping[str, Any]
    command: Sequence[str]

    @staticmethod
    def of(runner: Runner) -> RunRecord:
        """Its settings, and the command line of this program."""
        return RunRecord(described(runner), sys.argv)


@dataclass(frozen=True)
class RunFolder:
    """Holds `config.json`, the settings, nested as they came; `run.json`, a list with an entry for the start and one
    for every resumption: time, command line, versions, machine, git commit; and, where a file under version control
    differed from that commit, the difference in `git-N.diff`, N being the number of the entry.

    `config.json` ends with a signature of this user on this machine (`headrace.checkpoints.signing`): only
    settings that have it may name code to import without being asked again.

    `RunFolder.create` for a new run, `RunFolder.open` for one that is there.
    """

    path: Path

    @staticmethod
    def create(path: str | Path, config: Mapping[str, Any], command: Sequence[str]) -> RunFolder:
        """A new folder, made if it is not there; see `make_room` and `RunRecord`."""
        folder = RunFolder(Path(path).absolute())
        folder.make_room()
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.note_start(command, config)
        return folder

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """The folder of an earlier run; raises FileNotFoundError if there is none."""
        folder = RunFolder(Path(path).absolute())
        if not (folder.path / "config.json").is_file():
            raise FileNotFoundError(f"{folder.path} holds no run: it has no config.json; give the folder of a run")
        return folder

    def make_room(self) -> None:
        """For a new run: what one left that never reached a checkpoint goes into a folder of its own, `earlier-N`.

        Raises FileExistsError if there is a checkpoint, or a file of these names that no run wrote.
        """
        for name in _CHECKPOINTS:
            if (self.path / name).exists():
                raise FileExistsError(
                    f"{self.path} holds another run ({name} is there); choose another folder, or go on with that run "
                    "(resume_from)"
                )
        there = [path for pattern in _WRITTEN for path in sorted(self.path.glob(pattern))]
        if not (self.path / "run.json").exists():
            for path in there:
                if not (path.name == "progress.csv" and not path.stat().st_size):  # of a run that did not start
                    raise FileExistsError(
                        f"{self.path} holds something else ({path.name} is there, and no run.json); choose another "
                        "folder"
                    )
                path.unlink()
            return
        number = next(n for n in count() if not (self.path / f"earlier-{n}").exists())
        earlier = self.path / f"earlier-{number}"
        earlier.mkdir()
        for path in there:
            path.rename(earlier / path.name)
        _log.warning("%s: an earlier run never reached a checkpoint; what it left is in %s", self.path, earlier)

    def config(self) -> dict[str, Any]:
        """The settings; raises ValueError if the file is not what `note_start` wrote."""
        config = self._config()
        config.pop(_SIGNATURE, None)
        return config

    def is_own(self) -> bool:
        """Whether this user wrote the settings, on this machine; raises ValueError as `config` does."""
        config = self._config()
        signed = config.pop(_SIGNATURE, None)
        return isinstance(signed, str) and hmac.compare_digest(signed.encode(), (_signature(config) or "-").encode())

    def note_start(self, command: Sequence[str], config: Mapping[str, Any]) -> None:
        """Adds an entry to `run.json`, of the start or of a resumption, and writes the settings from now on."""
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
        """Draws `learning_curve.png`; returns why there is none, empty if there is. final_return: of an evaluation."""
        try:
            plot_learning_curve(self.path / "progress.csv", self.path / "learning_curve.png", final_return)
        except (ImportError, ValueError, OSError) as error:
            return str(error)
        return ""

    def _config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            config = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:  # also text that is no UTF-8
            raise ValueError(f"{path} is damaged: {error}; restore it, or give another run") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} is damaged: it holds a {type(config).__name__}, not settings; give another run")
        return config

    def _starts(self) -> list[Any]:
        """The entries of `run.json`; a damaged one is kept beside it, and the list begins anew."""
        path = self.path / "run.json"
        try:
            starts = json.loads(path.read_text())
            if not isinstance(starts, list):
                raise ValueError(f"it holds a {type(starts).__name__}, not a list")
        except FileNotFoundError:
            return []
        except (ValueError, RecursionError, IsADirectoryError) as error:
            number = next(n for n in count() if not (self.path / f"run-damaged-{n}.json").exists())
            aside = path.rename(self.path / f"run-damaged-{number}.json")
            _log.warning("%s is damaged: %s; it is %s now, and a new one begins", path, error, aside.name)
            return []
        return starts


def _text(content: Any) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


def _signature(config: Mapping[str, Any]) -> str | None:
    """Of the settings as they are read back; None where no key can be kept."""
    try:
        return signature(b"config.json\n" + _text(json.loads(_text(config))).encode()).hex()
    except OSError as error:
        _log.warning("config.json is not signed: %s", error)
        return None


def _write(path: Path, content: Any) -> None:
    """JSON, there whole or not at all."""
    write_whole(path, [_text(content).encode()])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        # Used from a source tree that nobody installed.
        return getattr(sys.modules.get(package), "__version__", None)


def _git() -> tuple[dict[str, Any] | None, str]:
    """Commit and whether the work tree we stand in differs from it, and how; `(None, "")` where there is no git."""
    commit = _git_says("rev-parse", "HEAD")
    status = _git_says("status", "--porcelain")
    if commit is None or status is None:
        return None, ""
    # `changed` also counts files that git does not know yet; they are not in the difference.
    changed = [line[3:] for line in status.splitlines()]
    return {"commit": commit.strip(), "dirty": bool(changed), "changed": changed}, _git_says("diff", "HEAD") or ""


def _git_says(*arguments: str) -> str | None:
    """What a git command prints; None where git is missing, fails, or takes 10 s."""
    # Without optional locks, looking does not get in the way of a person who commits.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            ["git", *arguments], capture_output=True, env=environment, timeout=10, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout
