"""The checkpoints of a run in its folder: the newest, the one before, the best, and the environments beside them."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.errors import CheckpointError, headline
from headrace.runners.lock import locked
from headrace.runners.signing import signature
from headrace.samplers.snapshot import SamplerState
from headrace.storage import NewerFormat, load_checkpoint, save_checkpoint, sync_directory, write_whole
from headrace.types import Tree

__all__ = ["CheckpointStore"]

_log = logging.getLogger("headrace.runners")

_HEADER = b"headrace environments 1\n"
_SIGNATURE = 32
_NAME = re.compile(r"environments-[0-9]+\.pkl")


class CheckpointStore:
    """Checkpoints in a folder: `checkpoint.pt`, `checkpoint-previous.pt`, `best.pt`, and `environments-N.pkl`, N being
    the batches of the checkpoint they belong to.

    A checkpoint is data. Environments are pickles, which run code when read: they are apart, tied to their checkpoint
    by a checksum, and read only if this user signed them (`headrace.runners.signing`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest, self.previous = folder / "checkpoint.pt", folder / "checkpoint-previous.pt"
        self.best = folder / "best.pt"
        self._newest_is_whole = True

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Makes the folder, keeps other runs out of it, and clears what a killed one left half written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            for name in ("checkpoint", "best", "environments"):
                for leftover in self.folder.glob(f"{name}*.tmp"):
                    leftover.unlink()
            yield

    def require_empty(self) -> None:
        """Raises FileExistsError if a run has a checkpoint here: it is never written over by another's."""
        for path in (self.newest, self.previous):
            if path.exists():
                raise FileExistsError(
                    f"{path} is there already, from another run; choose another log directory, or go on with that run "
                    "(resume_from)"
                )

    def save(self, state: Mapping[str, Any], sampler: SamplerState) -> None:
        """Writes the newest checkpoint; what was the newest is the one before. Raises OSError; both are then intact."""
        about = self._save_environments(sampler)
        temporary = self.folder / "checkpoint-next.tmp"
        try:
            save_checkpoint(temporary, {**state, "sampler": _plain(sampler), "environments": about})
            if self._newest_is_whole and self.newest.exists():
                self._keep_newest()
            os.replace(temporary, self.newest)
            sync_directory(self.folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(error.errno, str(error.strerror).replace(temporary.name, self.newest.name)) from error
        self._newest_is_whole = True
        self._forget_environments(about)

    def save_best(self, state: Mapping[str, Any], sampler: SamplerState) -> None:
        """Writes `best.pt`, without environments."""
        save_checkpoint(self.best, {**state, "sampler": _plain(sampler), "environments": {"why_not": "the best one"}})

    def load(self) -> tuple[Path, dict[str, Any]]:
        """The newest checkpoint that is whole; those that are not are named in a warning.

        Raises FileNotFoundError if there is none, CheckpointError if none is whole or one is of a newer format.
        """
        damaged: list[str] = []
        for path in (self.newest, self.previous):
            try:
                state = load_checkpoint(path)
            except FileNotFoundError:
                continue
            except NewerFormat:
                raise
            except CheckpointError as error:
                damaged.append(str(error))
                if path == self.newest:
                    self._newest_is_whole = False  # never in the place of one that is
                continue
            for text in damaged:
                _log.warning("%s; going on from %s", text, path)
            return path, state
        if damaged:
            raise CheckpointError("; ".join(damaged))
        raise FileNotFoundError(f"{self.folder} holds no checkpoint; give the folder of a run that saved one")

    def sampler_state(self, state: Mapping[str, Any]) -> SamplerState:
        """The sampler's state of a checkpoint in this folder, with its environments if they may be read."""
        sampler = SamplerState(**state["sampler"])
        about = state["environments"]
        self._kept = about.get("file")
        if "file" not in about:
            return replace(sampler, why_not=about["why_not"])
        try:
            train, evaluation, memory = self._load_environments(about)
        except (OSError, CheckpointError) as error:
            return replace(sampler, why_not=str(error))
        return replace(sampler, train=train, evaluation=evaluation, memory=memory)

    def _keep_newest(self) -> None:
        """Gives the newest the name of the one before as well, so that it never is without its own."""
        second = self.folder / "checkpoint-previous.tmp"
        second.unlink(missing_ok=True)
        try:
            os.link(self.newest, second)
        except OSError:  # a file system without hard links: for a moment only the previous one has a name
            os.replace(self.newest, self.previous)
            return
        os.replace(second, self.previous)
        second.unlink(missing_ok=True)  # two names of one file are both left by a rename: a kill left them so

    def _save_environments(self, sampler: SamplerState) -> dict[str, str]:
        """Writes them, if there are any; returns what the checkpoint must know."""
        if not sampler.train:
            return {"why_not": sampler.why_not}
        payload = pickle.dumps((sampler.train, sampler.evaluation, sampler.memory), pickle.HIGHEST_PROTOCOL)
        try:
            signed = signature(_HEADER + payload)
        except OSError as error:
            return {"why_not": f"they cannot be signed ({headline(error)})"}
        path = self.folder / f"environments-{sampler.batches}.pkl"
        write_whole(path, [_HEADER, signed, payload])
        return {"file": path.name, "sha256": hashlib.sha256(_HEADER + signed + payload).hexdigest()}

    def _load_environments(
        self, about: Mapping[str, str]
    ) -> tuple[dict[int, bytes], dict[int, bytes], dict[int, Tree]]:
        if not _NAME.fullmatch(about["file"]):  # a checkpoint may come from anywhere
            raise CheckpointError(f"{about['file']!r} is no name of a file of environments")
        path = self.folder / about["file"]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise CheckpointError(f"{path} is not the file this checkpoint was saved with")
        signed, payload = content[len(_HEADER) :][:_SIGNATURE], content[len(_HEADER) + _SIGNATURE :]
        if not hmac.compare_digest(signature(_HEADER + payload), signed):
            raise CheckpointError(f"{path} was not signed by this user on this machine")
        train, evaluation, memory = pickle.loads(payload)
        return train, evaluation, memory

    def _forget_environments(self, about: Mapping[str, str]) -> None:
        """Removes what neither the newest checkpoint nor the one before belongs to."""
        kept = {about.get("file"), self._kept}
        self._kept = about.get("file")
        for path in self.folder.glob("environments-*.pkl"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    #: The environments of the checkpoint before.
    _kept: str | None = None


def _plain(sampler: SamplerState) -> dict[str, int]:
    return {
        "batches": sampler.batches,
        "evaluations": sampler.evaluations,
        "version": sampler.version,
        "incarnation": sampler.incarnation,
        "ahead": sampler.ahead,
    }
