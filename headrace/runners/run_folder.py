"""The folder of a run: what was asked for, and with what it was done."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from headrace.processes.affinity import usable_cores

__all__ = ["RunFolder"]

#: Distributions whose versions a result depends on.
_PACKAGES = ("headrace", "torch", "numpy", "gymnasium")
#: Any of these says that a run was here.
_MARKS = ("config.json", "progress.csv", "checkpoint.pt")


@dataclass(frozen=True)
class RunFolder:
    """Holds `config.json`, the settings, nested as they came; `run.json`, a list with an entry for the start and one
    for every resumption: time, command line, versions, machine, git commit; and, where a file under version control
    differed from that commit, the difference in `git-N.diff`, N being the number of the entry.

    `RunFolder.create` for a new run, `RunFolder.open` for one that is there.
    """

    path: Path

    @staticmethod
    def create(path: str | Path, config: Mapping[str, Any], command: Sequence[str]) -> RunFolder:
        """A new folder, made if it is not there; config: plain values, or what `str` makes plain.

        Raises FileExistsError if it holds a run already.
        """
        folder = RunFolder(Path(path))
        for name in _MARKS:
            if (folder.path / name).exists():
                raise FileExistsError(f"{folder.path} holds another run ({name} is there); choose another folder")
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.note_start(command, config)
        return folder

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """The folder of an earlier run; raises FileNotFoundError if there is none."""
        folder = RunFolder(Path(path))
        if not (folder.path / "config.json").is_file():
            raise FileNotFoundError(f"{folder.path} holds no run: it has no config.json; give the folder of a run")
        return folder

    def config(self) -> dict[str, Any]:
        """The settings; raises ValueError if the file is not what `create` wrote."""
        path = self.path / "config.json"
        try:
            config = json.loads(path.read_text())
        except ValueError as error:  # also text that is no UTF-8
            raise ValueError(f"{path} is damaged: {error}; restore it, or give another run") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} is damaged: it holds a {type(config).__name__}, not settings; give another run")
        return config

    def note_start(self, command: Sequence[str], config: Mapping[str, Any]) -> None:
        """Adds an entry to `run.json`, of the start or of a resumption, and writes the settings from now on."""
        _write(self.path / "config.json", config)
        path = self.path / "run.json"
        starts = json.loads(path.read_text()) if path.exists() else []
        git, diff = _git()
        if diff:
            (self.path / f"git-{len(starts)}.diff").write_text(diff)
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
        _write(path, starts)


def _write(path: Path, content: Any) -> None:
    """JSON, there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
    os.replace(temporary, path)


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
