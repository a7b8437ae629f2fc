"""The checkpoints in the folder of a run: newest, previous and best, and the saved environments beside them."""

from __future__ import annotations

import hmac
import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.checkpoints.file import Damaged, Sealed, save_checkpoint, sealed, unsealed
from headrace.checkpoints.lock import locked
from headrace.checkpoints.signing import Sign, signer
from headrace.compiled import implementation
from headrace.errors import CheckpointError, headline
from headrace.samplers.collection.snapshot import SamplerState
from headrace.schema import fields, text
from headrace.storage import digest, write_whole
from headrace.types import Tree

__all__ = ["CheckpointStore"]

_log = logging.getLogger("headrace.runners")

_HEADER = b"headrace environments 2\n"
_SIGNATURE = 32
#: Schema of the entry about environments. The file may come from anyone, so no name may lead out of its folder.
_FILE = fields({"file": text(r"environments-[0-9]+\.pkl"), "sha256": text(r"[0-9a-f]{64}")})
_NO_FILE = fields({"why_not": text()})


class CheckpointStore:
    """The files `checkpoint.pt`, `checkpoint-previous.pt`, `best.pt` and `environments-N.pkl` in a folder.

    N is the number of batches of the checkpoint that the environments belong to. Checkpoints contain data only.
    Environments are pickles, which run code when read: they are in separate files, and are read only if this user
    signed them (`headrace.checkpoints.signing`) for this very checkpoint: the signature covers its checksum too.

    Args:
        folder: the folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder = folder.absolute()
        self.newest, self.previous = folder / "checkpoint.pt", folder / "checkpoint-previous.pt"
        self.best = folder / "best.pt"
        self._newest_is_whole = True

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Creates the folder, locks it against other runs, and removes partial files that a killed run left.

        Raises:
            OSError: if the folder cannot be made.
            CheckpointError: if another run holds the lock.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"the folder of the run, {self.folder}, cannot be made ({error.strerror}); choose another"
            raise OSError(error.errno, text) from error
        with locked(self.folder):
            for name in ("checkpoint", "best", "environments"):
                for leftover in self.folder.glob(f"{name}*.tmp"):
                    leftover.unlink()
            yield

    def require_empty(self) -> None:
        """Raises FileExistsError if there is a checkpoint of a run, since another run must never overwrite it."""
        for path in (self.newest, self.previous):
            if path.exists():
                raise FileExistsError(
                    f"{path} already exists, from another run; choose another log directory, or resume that run with "
                    "resume_from"
                )

    def save(self, state: Mapping[str, Any], sampler: SamplerState) -> None:
        """Writes the newest checkpoint; the one before becomes the previous checkpoint.

        Args:
            state: agent, algorithm and runner.
            sampler: state of the sampler.

        Raises:
            OSError: if it cannot be written; both earlier checkpoints are then intact.
        """
        about: dict[str, str] = {"why_not": sampler.why_not}
        payload, sign = b"", None
        if sampler.train:
            try:
                sign = signer()
            except OSError as error:
                about = {"why_not": f"they cannot be signed ({headline(error)})"}
            else:
                payload = pickle.dumps((sampler.train, sampler.evaluation, sampler.memory), pickle.HIGHEST_PROTOCOL)
                name = f"environments-{sampler.batches}.pkl"
                about = {"file": name, "sha256": digest(payload).hex()}
        checkpoint = sealed(_complete(state, sampler, about))
        if sign is not None:
            signed = sign(_covered(checkpoint.seal, payload))
            write_whole(self.folder / about["file"], [_HEADER, signed, payload])
        self._write(checkpoint)
        self._forget_environments(about)

    def save_best(self, state: Mapping[str, Any], sampler: SamplerState) -> None:
        """Writes `best.pt`, without environments; raises OSError if it cannot be written."""
        save_checkpoint(self.best, _complete(state, sampler, {"why_not": "the best one"}))

    def load(self) -> tuple[Path, dict[str, Any]]:
        """Loads the newest intact checkpoint; logs a warning for each one that is not.

        Returns:
            The file and its contents.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            CheckpointError: if none is intact, or if the newest intact one was not written by a runner of this
                headrace: it has another format, or contains more than data.
        """
        path, state, _ = self.found()
        return path, state

    def found(self) -> tuple[Path, dict[str, Any], bytes]:
        """Loads a checkpoint as `load` does, and also returns its seal."""
        passed: list[str] = []
        any_damaged = False
        for path in (self.newest, self.previous):
            try:
                state, seal = unsealed(path)
            except FileNotFoundError:
                passed.append(f"{path} does not exist")
                continue
            except Damaged as error:
                any_damaged = True
                passed.append(str(error))
                if path == self.newest:
                    self._newest_is_whole = False  # a damaged one must never replace an intact previous one
                continue
            for sentence in passed:
                _log.warning("%s; %s is used instead", sentence, path)
            return path, state, seal
        if any_damaged:
            raise CheckpointError("; ".join(passed))
        raise FileNotFoundError(f"{self.folder} contains no checkpoint; give the folder of a run that saved one")

    def sampler_state(self, state: Mapping[str, Any], seal: bytes) -> SamplerState:
        """Returns the sampler's state of a checkpoint in this folder, with its environments if they may be read.

        Args:
            state: contents of the checkpoint.
            seal: seal of the checkpoint.

        Returns:
            The state; `why_not` is the reason if it has no environments.

        Raises:
            ValueError: for entries that no runner wrote.
        """
        sampler, about = SamplerState.of(state["sampler"]), state["environments"]
        (_FILE if "file" in about else _NO_FILE)(about, "environments")
        self._kept = about.get("file")
        if "file" not in about:
            return replace(sampler, why_not=about["why_not"])
        try:
            train, evaluation, memory = self._load_environments(about, seal)
        except (OSError, CheckpointError) as error:
            return replace(sampler, why_not=str(error))
        return replace(sampler, train=train, evaluation=evaluation, memory=memory)

    def _write(self, checkpoint: Sealed) -> None:
        """Writes the newest checkpoint; the current one becomes the previous, unless it is damaged."""
        write_whole(self.newest, checkpoint.parts, self._keep_newest)
        self._newest_is_whole = True

    def _keep_newest(self) -> None:
        """Links the newest file as the previous one too, so that a newest checkpoint exists at all times."""
        if not (self._newest_is_whole and self.newest.exists()):
            return
        second = self.folder / "checkpoint-previous.tmp"
        second.unlink(missing_ok=True)
        try:
            os.link(self.newest, second)
        except OSError:  # a file system without hard links: for a moment, only the previous checkpoint exists
            os.replace(self.newest, self.previous)
            return
        os.replace(second, self.previous)
        second.unlink(missing_ok=True)  # if both names link to one file, as after a kill, renaming keeps both

    def _load_environments(
        self, about: Mapping[str, str], seal: bytes
    ) -> tuple[dict[int, bytes], dict[int, bytes], dict[int, Tree]]:
        path = self.folder / about["file"]
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a file")
        content = path.read_bytes()
        signed, payload = content[len(_HEADER) :][:_SIGNATURE], content[len(_HEADER) + _SIGNATURE :]
        if not content.startswith(_HEADER) or digest(payload).hex() != about["sha256"]:
            raise CheckpointError(f"{path} does not belong to this checkpoint")
        sign: Sign = signer()
        if not hmac.compare_digest(sign(_covered(seal, payload)), signed):
            raise CheckpointError(f"{path} was not signed by this user on this machine for this checkpoint")
        train, evaluation, memory = pickle.loads(payload)
        return train, evaluation, memory

    def _forget_environments(self, about: Mapping[str, str]) -> None:
        """Removes environments that belong to neither the newest nor the previous checkpoint."""
        kept = {about.get("file"), self._kept}
        self._kept = about.get("file")
        for path in self.folder.glob("environments-*.pkl"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    #: File of the environments of the checkpoint that was saved or loaded last.
    _kept: str | None = None


def _covered(seal: bytes, payload: bytes) -> bytes:
    """Returns what a signature of environments covers: the environments and the checkpoint they belong to."""
    return _HEADER + seal + payload


def _complete(state: Mapping[str, Any], sampler: SamplerState, environments: dict[str, str]) -> dict[str, Any]:
    return {**state, "implementation": implementation, "sampler": sampler.numbers(), "environments": environments}
