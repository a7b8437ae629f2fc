"""Checkpoints on disk: whole or not there at all, and read without running any code they hold.

A file is a line that names the format, the SHA-256 of that line and the rest (32 bytes), and what `torch.save` writes.
PyTorch does not look at the checksums in its own files: 9 of 10 flipped bits load as other weights without a word.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headrace.errors import CheckpointError
from headrace.storage import write_whole

__all__ = ["FORMAT", "Damaged", "Sealed", "load_checkpoint", "save_checkpoint", "sealed", "unsealed"]

#: The format written here. Format 1 had no state of the sampler.
FORMAT = 2
_HEADER = re.compile(rb"headrace checkpoint ([1-9][0-9]{0,8})\n")
_DIGEST = hashlib.sha256().digest_size
#: Containers in containers, at most.
_DEEPEST = 100


class Damaged(CheckpointError):
    """The file is not as anybody wrote it: an earlier one may be whole."""


@dataclass(frozen=True)
class Sealed:
    """A checkpoint as bytes, in parts. seal: the checksum of all of it, which no other checkpoint has."""

    parts: Sequence[bytes | memoryview]
    seal: bytes


def sealed(state: Mapping[str, Any]) -> Sealed:
    """`state` as the bytes of a file."""
    header = b"headrace checkpoint %d\n" % FORMAT
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getbuffer()
    seal = _digest(header, payload)
    return Sealed([header, seal, payload], seal)


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes `state` (nested dicts, lists, tensors, numbers, strings) to `path`; whatever happens, the old file or the
    new one is there, whole.

    Raises OSError where the disk does not take it.
    """
    write_whole(Path(path), sealed(state).parts)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state saved at `path`, tensors on the CPU.

    Raises FileNotFoundError, or CheckpointError if the file is not one of ours, not whole, of another format, or holds
    more than data. Anybody can write a whole file: that its entries are what a runner wrote is for the reader to see.
    """
    return unsealed(path)[0]


def unsealed(path: str | Path) -> tuple[dict[str, Any], bytes]:
    """The state saved at `path`, as `load_checkpoint` has it, and the seal of the file."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would be waited for, and some devices never end
        raise Damaged(f"{path} is not a file; give one that save_checkpoint wrote")
    content = memoryview(path.read_bytes())
    header = _HEADER.match(content)
    if header is None:
        raise Damaged(f"{path} is not a headrace checkpoint; give a file that save_checkpoint wrote")
    seal, payload = bytes(content[header.end() :][:_DIGEST]), content[header.end() + _DIGEST :]
    # Before the number is believed: a flipped bit in it is damage like any other.
    if _digest(header[0], payload) != seal:
        raise Damaged(f"{path} is damaged: its checksum does not match; use an earlier checkpoint")
    number = int(header[1])
    if number > FORMAT:
        raise CheckpointError(
            f"{path} is a checkpoint of format {number}, and this headrace reads format {FORMAT}; upgrade headrace"
        )
    if number < FORMAT:
        raise CheckpointError(
            f"{path} is a checkpoint of format {number}, and this headrace reads format {FORMAT}; load it with the "
            "headrace that wrote it, or train again"
        )
    try:
        _require_no_bomb(payload)
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        _require_plain(state, len(payload))
    except Exception as error:
        # What torch says advises to load it all the same.
        why = f" ({error})" if isinstance(error, ValueError) else ""
        raise CheckpointError(
            f"{path} holds something else than tensors and plain values{why}; it was not loaded, since that could run "
            "code"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state; give a file of save_checkpoint")
    return state, seal


def _require_no_bomb(payload: memoryview) -> None:
    """Raises ValueError for an archive that is larger unpacked than packed: `torch.save` compresses nothing."""
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > len(payload):
        raise ValueError(f"an archive of {len(payload)} bytes that unpacks to {size}")


def _require_plain(state: Any, most: int) -> None:
    """Raises ValueError for what those who read it cannot rely on: containers that are in themselves, or in too many
    others; tensors without numbers in memory. most: values there can be, since each takes a byte of the file.
    """
    waiting = [(state, 0)]
    for _ in range(most):
        if not waiting:
            return
        value, depth = waiting.pop()
        if isinstance(value, Mapping | list | tuple | set):
            if depth == _DEEPEST:
                raise ValueError(f"containers in containers, more than {_DEEPEST} deep")
            waiting += [(item, depth + 1) for item in (value.values() if isinstance(value, Mapping) else value)]
        elif isinstance(value, torch.Tensor) and (
            value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized
        ):
            raise ValueError(f"a tensor of another kind, {value.layout} on {value.device}")
    raise ValueError("containers that repeat each other without end")


def _digest(header: bytes, payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(header)
    digest.update(payload)
    return digest.digest()
