"""Snapshots of whole objects after some epochs of a run, for algorithms that cannot describe their state as data."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from headrace.checkpoints.signing import signature
from headrace.errors import CheckpointError
from headrace.storage import write_whole

__all__ = ["SNAPSHOT_MODES", "SnapshotConfig", "Snapshots"]

SNAPSHOT_MODES = ("all", "last", "gap", "gap_overwrite", "gap_and_last", "none")

_HEADER = b"headrace snapshot 1\n"
_SIGNATURE = 32
_NAME = re.compile(r"itr_(\d+)\.pkl")


@dataclass(frozen=True)
class SnapshotConfig:
    """Where snapshots are written, and which epochs have one.

    Args:
        snapshot_dir: the folder.
        snapshot_mode: "all": a file for every epoch. "last": one file, of the last epoch. "gap": a file for every
            `snapshot_gap`-th epoch. "gap_overwrite": one file, of the last such epoch. "gap_and_last": files for these,
            and one of the last epoch. "none": no file.
        snapshot_gap: number of epochs.
    """

    snapshot_dir: str | Path
    snapshot_mode: str = "last"
    snapshot_gap: int = 1

    def __post_init__(self) -> None:
        if self.snapshot_mode not in SNAPSHOT_MODES:
            known = ", ".join(map(repr, SNAPSHOT_MODES))
            raise ValueError(f"snapshot_mode must be one of {known}, got {self.snapshot_mode!r}")
        if self.snapshot_gap < 1:
            raise ValueError(f"snapshot_gap must be at least 1, got {self.snapshot_gap!r}")


class Snapshots:
    """The snapshots in a folder: `itr_N.pkl` of epoch N, and `params.pkl` where one file is overwritten.

    A snapshot is a pickle, which runs code when it is read, so only files that this user has signed are read.

    Args:
        config: where and which.
    """

    def __init__(self, config: SnapshotConfig) -> None:
        self._folder = Path(config.snapshot_dir).absolute()
        self._mode, self._gap = config.snapshot_mode, config.snapshot_gap

    def save(self, epoch: int, state: Any) -> None:
        """Writes the files that this epoch has.

        Args:
            epoch: number of the epoch.
            state: what `load` returns.

        Raises:
            OSError: if a file cannot be written.
        """
        due = epoch % self._gap == 0
        names = {
            "all": [f"itr_{epoch}.pkl"],
            "last": ["params.pkl"],
            "gap": [f"itr_{epoch}.pkl"] * due,
            "gap_overwrite": ["params.pkl"] * due,
            "gap_and_last": [*[f"itr_{epoch}.pkl"] * due, "params.pkl"],
            "none": [],
        }[self._mode]
        if not names:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        payload: bytes = cloudpickle.dumps((epoch, state))
        for name in names:
            write_whole(self._folder / name, [_HEADER, signature(payload), payload])

    def load(self, epoch: int | str = "last") -> tuple[int, Any]:
        """Loads a snapshot.

        Args:
            epoch: number of the epoch, "last" or "first".

        Returns:
            The number of the epoch, and what was saved.

        Raises:
            FileNotFoundError: if there is no such snapshot.
            CheckpointError: if the file is damaged, or was not written by this user.
        """
        numbered = sorted((int(found[1]), path) for path in self._paths() if (found := _NAME.fullmatch(path.name)))
        newest = [path for path in self._paths() if path.name == "params.pkl"]
        if isinstance(epoch, int):
            paths = [path for number, path in numbered if number == epoch]
        elif epoch in ("last", "first"):
            paths = [path for _, path in numbered]
            paths = (newest or paths[-1:]) if epoch == "last" else (paths[:1] or newest)
        else:
            raise ValueError(f'from_epoch must be a number, "last" or "first", got {epoch!r}')
        if not paths:
            have = ", ".join(str(number) for number, _ in numbered) or ("the last" if newest else "none")
            raise FileNotFoundError(f"{self._folder} has no snapshot of epoch {epoch!r}; it has {have}")
        return self._read(paths[0])

    def _paths(self) -> list[Path]:
        return list(self._folder.glob("*.pkl"))

    def _read(self, path: Path) -> tuple[int, Any]:
        if not path.is_file():  # reading a pipe would not return
            raise CheckpointError(f"{path} is not a file")
        content = path.read_bytes()
        start = len(_HEADER) + _SIGNATURE
        if not content.startswith(_HEADER):
            raise CheckpointError(f"{path} is not a snapshot of headrace")
        payload = content[start:]
        if not hmac.compare_digest(content[len(_HEADER) : start], signature(payload)):
            raise CheckpointError(
                f"{path} is damaged, or was not written by this user; it is a pickle, which runs code when it is read, "
                "so it is not read"
            )
        epoch, state = cloudpickle.loads(payload)
        return epoch, state
