"""Checkpoints on disk: whole or not there at all, and read without running any code they hold.

A file is a magic line, the SHA-256 of the rest (32 bytes), and what `torch.save` writes. PyTorch does not look at the
checksums in its own files: 9 of 10 flipped bits load as other weights without a word.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headrace.errors import CheckpointError, headline

__all__ = ["load_checkpoint", "save_checkpoint"]

_MAGIC = b"headrace checkpoint 1\n"
_DIGEST = hashlib.sha256().digest_size


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes `state` (nested dicts, lists, tensors, numbers, strings) to `path`; whatever happens, the old file or the
    new one is there, whole.

    Raises OSError where the disk does not take it.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getbuffer()
    # In the same directory: a rename is atomic within one file system only.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_MAGIC)
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state saved at `path`, tensors on the CPU.

    Raises FileNotFoundError, or CheckpointError if the file is not one of ours, not whole, or holds more than data.
    """
    content = Path(path).read_bytes()
    if not content.startswith(_MAGIC):
        raise CheckpointError(f"{path} is not a headrace checkpoint; give a file that save_checkpoint wrote")
    digest, payload = content[len(_MAGIC) :][:_DIGEST], content[len(_MAGIC) + _DIGEST :]
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path} is damaged: its checksum does not match; use an earlier checkpoint")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} holds something else than tensors and plain values ({headline(error).splitlines()[0]}); "
            "it was not loaded, since that could run code"
        ) from error
    return state


def _sync_directory(directory: Path) -> None:
    """Makes the rename itself durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
