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
from pathlib import Path
from typing import Any

from headrace.processes.affinity import usable_cores
from headrace.runners.files import write_whole
from headrace.runners.signing import signer

__all__ = ["RunFolder"]

#: Distributions whose versions a result depends on.
_PACKAGES = ("headrace", "torch", "numpy", "gymnasium")
#: Any of these says that a run was here.
_MARKS = ("config.json", "progress.csv", "checkpoint.pt")
#: Of the signature beside a file, and what it covers before the content: no signature counts for another purpose.
_SUFFIX, _COVERED = ".signature", b"headrace config 1\n"

_log = logging.getLogger("headrace.runners")


@dataclass(frozen=True)
class RunFolder:
    """Holds `config.json`, the settings, nested as they came; `run.json`, a list with an entry for the start and one
    for every resumption: time, command line, versions, machine, git commit; and, where a file under version control
    differed from that commit, the difference in `git-N.diff`, N being the number of the entry. `config.signature` says
    which user wrote the settings, since they may name code to run.

    `RunFolder.create` for a new run, `RunFolder.open` for one that is there.
    """

    path: Path

    @staticmethod
    def create(path: str | Path, config: Mapping[str, Any], command: Sequence[str]) -> RunFolder:
        """A new folder, made if it is not there; config: plain values, or what `str` makes plain.

        Raises FileExistsError if it holds a run already.
        """
        folder = RunFolder(Path(path).absolute())
        for name in _MARKS:
            if (folder.path / name).exists():
                raise FileExistsError(f"{folder.path} holds another run ({name} is there); choose another folder")
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

    def config(self) -> dict[str, Any]:
        """The settings; raises ValueError if the file is not what `create` wrote."""
        path = self.path / "config.json"
        try:
            config = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:  # also text that is no UTF-8
            raise ValueError(f"{path} is damaged: {error}; restore it, or give another run") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} is damaged: it holds a {type(config).__name__}, not settings; give another run")
        return config

    def runnable(self, env: str) -> dict[str, Any]:
        """The settings, for who makes the environment they name; `env`: the one a person named, if any.

        Raises ValueError as `config` does, and for the name of code to import (`module:callable`) that neither this
        person nor, by the signature beside it, this user on this machine chose: a folder may come from anywhere.
        """
        path = self.path / "config.json"
        config, content = self.config(), path.read_bytes()
        named = str(config.get("env", ""))
        if ":" in named and named != env and not _signed(path, content):
            raise ValueError(
                f"{path} names code to run, {named!r}, and was not written by this user on this machine; if you "
                f"trust it, say so: --env {named}"
            )
        return config

    def note_start(self, command: Sequence[str], config: Mapping[str, Any]) -> None:
        """Adds an entry to `run.json`, of the start or of a resumption, and writes the settings from now on."""
        _write(self.path / "config.json", config)
        _sign(self.path / "config.json")
        path = self.path / "run.json"
        starts = _starts(path)
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
        _write(path, starts)


def _write(path: Path, content: Any) -> None:
    """JSON, there whole or not at all."""
    write_whole(path, [json.dumps(content, indent=2, default=str).encode() + b"\n"])


def _starts(path: Path) -> list[Any]:
    """The entries of `run.json`; one that is damaged gets another name."""
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_text()) if path.is_file() else None
    except (ValueError, RecursionError):
        starts = None
    if isinstance(starts, list):
        return starts
    aside = path.with_name(path.name + ".damaged")
    os.replace(path, aside)
    _log.warning("%s is damaged: it begins anew, what it was is now %s", path, aside)
    return []


def _sign(path: Path) -> None:
    """Beside a file, that this user wrote it; where no key can be kept, nothing."""
    try:
        signed = signer()(_COVERED + path.read_bytes()).hex()
    except OSError as error:
        _log.info("%s is not signed (%s)", path, error)
        path.with_suffix(_SUFFIX).unlink(missing_ok=True)
    else:
        write_whole(path.with_suffix(_SUFFIX), [signed.encode()])


def _signed(path: Path, content: bytes) -> bool:
    try:
        beside = path.with_suffix(_SUFFIX)
        return beside.is_file() and hmac.compare_digest(
            signer()(_COVERED + content).hex().encode(), beside.read_bytes()
        )
    except OSError:
        return False


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
