"""Checkpoint files: written completely or not at all, and read without running code.

A file is a line with the format, the SHA-256 of that line and the rest (32 bytes), and the output of `torch.save`.
PyTorch does not verify the checksums in its own files: 9 of 10 flipped bits would silently load as other weights.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headrace.errors import CheckpointError
from headrace.storage import Part, framed, unframed, write_whole

__all__ = [
    "FORMAT",
    "Damaged",
    "Sealed",
    "load_checkpoint",
    "require_checkpoint",
    "save_checkpoint",
    "sealed",
    "unsealed",
]

#: The format that is written. Format 1 had no sampler state.
FORMAT = 2
_HEADER = re.compile(rb"headrace checkpoint ([1-9][0-9]{0,8})\n")
#: How other files begin that may be taken for a checkpoint.
_OTHERS = {
    b"headrace replay ": "a part of the replay of a run",
    b"headrace environments ": "the environments of a run",
    b"PK": "a zip archive, as torch.save writes",
    b"\x89PNG": "a picture",
}
#: Maximum nesting depth of containers.
_DEEPEST = 100


class Damaged(CheckpointError):
    """Raised for a file that is damaged or is no checkpoint; an earlier checkpoint may be intact."""


@dataclass(frozen=True)
class Sealed:
    """A checkpoint as bytes.

    Args:
        parts: contents of the file, in parts.
        seal: checksum of everything, unique to this checkpoint.
    """

    parts: Sequence[Part]
    seal: bytes


def sealed(state: Mapping[str, Any]) -> Sealed:
    """Returns `state` as the contents of a file."""
    header = b"headrace checkpoint %d\n" % FORMAT
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    parts = framed(header, [buffer.getbuffer()])
    _, seal, _ = parts
    return Sealed(parts, bytes(seal))


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint; in every case, either the complete old file or the complete new one exists.

    Args:
        path: the file.
        state: nested dicts, lists, tensors, numbers and strings.

    Raises:
        OSError: if the disk does not accept the file.
    """
    write_whole(Path(path), sealed(state).parts)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads the state saved at `path`, with tensors on the CPU.

    A valid file can come from anyone: the caller must check that its entries are those that a runner writes.

    Args:
        path: the file.

    Returns:
        The state.

    Raises:
        FileNotFoundError: if there is no file.
        CheckpointError: if the file was not written by headrace, is damaged, has another format, or contains more than
            data.
    """
    return unsealed(path)[0]


def require_checkpoint(path: str | Path) -> None:
    """Raises Damaged, which says what the file is, if it does not begin as a checkpoint does."""
    path = Path(path)
    _require_file(path)
    with path.open("rb") as file:
        _header(path, file.read(100))


def unsealed(path: str | Path) -> tuple[dict[str, Any], bytes]:
    """Returns the state saved at `path`, as `load_checkpoint` does, and the seal of the file."""
    path = Path(path)
    _require_file(path)
    content = memoryview(path.read_bytes())
    header = _header(path, content)
    # Verify the checksum before using the number: a flipped bit in it is damage like any other.
    whole = unframed(content, header.end())
    if whole is None:
        raise Damaged(f"{path} is damaged: its checksum does not match; use an earlier checkpoint")
    seal, payload = whole
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
        # torch's own message would advise loading the file anyway.
        why = f" ({error})" if isinstance(error, ValueError) else ""
        raise CheckpointError(
            f"{path} contains something other than tensors and plain values{why}; it was not loaded, because loading "
            "it could run code; give another file"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path} contains a {type(state).__name__}, expected a dict; give a file that save_checkpoint wrote"
        )
    return state, seal


def _require_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # reading a pipe would block, and some devices never end
        raise Damaged(f"{path} is not a file; give one that save_checkpoint wrote")


def _header(path: Path, content: bytes | memoryview) -> re.Match[bytes]:
    """Returns the header of a checkpoint; raises Damaged, which says what else the file is."""
    header = _HEADER.match(content)
    if header is None:
        kind = next((f", but {what}" for begin, what in _OTHERS.items() if bytes(content[:30]).startswith(begin)), "")
        raise Damaged(
            f"{path} is not a headrace checkpoint{kind}; give the folder of a run, its "
            "checkpoint.pt, or a file that agent.save() or save_checkpoint() wrote"
        )
    return header


def _require_no_bomb(payload: memoryview) -> None:
    """Raises ValueError for an archive that unpacks to more than its size: `torch.save` does not compress."""
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > len(payload):
        raise ValueError(f"its {len(payload)} bytes unpack to {size}")


def _require_plain(state: Any, most: int) -> None:
    """Raises ValueError for values that readers cannot handle.

    These are containers that contain themselves or are nested too deeply, and tensors without numbers in host memory.

    Args:
        state: what was read.
        most: maximum number of values, since each takes at least a byte of the file.
    """
    waiting = [(state, 0)]
    for _ in range(most):
        if not waiting:
            return
        value, depth = waiting.pop()
        if isinstance(value, Mapping | list | tuple | set):
            if depth == _DEEPEST:
                raise ValueError(f"containers are nested more than {_DEEPEST} deep")
            waiting += [(item, depth + 1) for item in (value.values() if isinstance(value, Mapping) else value)]
        elif isinstance(value, torch.Tensor) and (
            value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized
        ):
            raise ValueError(f"a tensor is {value.layout} on {value.device}, not dense on the CPU")
    raise ValueError("containers contain themselves")
