"""Parameters as safetensors files. A file contains data only: reading one never runs code.

The arrays of a tree have the names of their paths, as JSON pointers without the first slash: keys joined by "/", with
"~1" for a "/" in a key and "~0" for a "~". A flat state dict therefore keeps its names ("layers.0.weight"), and other
programs can load the file. The metadata of the file has one entry, "headrace": the SHA-256 of a JSON text, in hex, and
that text, with these entries::

    format        1
    parameters    the tree: a dict for a dict, "array" or "bfloat16" for an array, [value] for anything else
    metadata      what the caller of `push` said about this version

NumPy has no bfloat16, so the file has the bits of such an array as int16.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from headrace.errors import ParameterDBError
from headrace.extras import extra
from headrace.schema import anything, fields, shown, whole
from headrace.services.parameters.metadata import plain_metadata
from headrace.storage import digest
from headrace.types import Tree

__all__ = ["MODES", "Damaged", "Header", "header_of_file", "packed", "require_safetensors", "unpacked"]

#: Kinds of results of `unpacked`.
MODES = ("numpy", "torch", "bytes")

_KEY = "headrace"
_FORMAT = 1
_HEX = 64  # length of a SHA-256 in hex
_MOST_HEADER_BYTES = 100_000_000  # the limit of safetensors
_DTYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
_DTYPES |= {"float16", "float32", "float64"}
_TEXT = fields({"format": whole(1), "parameters": anything, "metadata": anything})


class Damaged(ParameterDBError):
    """Raised for a file that is damaged, or is none of a parameter database; an earlier version may be intact."""


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Args:
        tree: the structure of the parameters.
        metadata: what the caller of `push` said about this version.
    """

    tree: Any
    metadata: dict[str, Any]


def packed(parameters: Tree, metadata: Mapping[str, Any]) -> bytes:
    """Returns the contents of a file; the same parameters and metadata always give the same bytes.

    Args:
        parameters: nested dicts with strings as keys, of arrays, torch tensors, numbers, strings and None.
        metadata: what `plain_metadata` returned.

    Raises:
        TypeError: if the parameters contain something else.
        ImportError: if safetensors is missing, with the extra that has it.
    """
    if not isinstance(parameters, dict):
        raise TypeError(f"parameters is a {type(parameters).__name__}, expected a dict of arrays, such as a state dict")
    arrays: dict[str, np.ndarray] = {}
    tree = _described(parameters, (), arrays)
    text = json.dumps({"format": _FORMAT, "parameters": tree, "metadata": metadata}, separators=(",", ":"))
    entry = digest(text.encode()).hex() + text
    content: bytes = require_safetensors().save(arrays, metadata={_KEY: entry})
    return content


def unpacked(content: bytes, mode: str) -> Tree:
    """Returns the parameters in the contents of a file.

    Args:
        content: contents whose checksum was verified.
        mode: "numpy": arrays, float32 for bfloat16; "torch": tensors on the CPU; "bytes": `content` itself.

    Raises:
        Damaged: if the file was not written by `packed`.
    """
    if mode == "bytes":
        return content
    header = _header_of(content)
    try:
        arrays: dict[str, np.ndarray] = dict(require_safetensors().load(content))
    except ImportError:
        raise
    except Exception as error:  # SafetensorError, and what NumPy raises for a forged header
        raise Damaged(f"it is no safetensors file ({error})") from error
    # Arrays over a read-only buffer are copied: torch cannot share their memory, and callers may write into theirs.
    arrays = {name: array if array.flags.writeable else array.copy() for name, array in arrays.items()}
    try:
        tree = _restored(header.tree, (), arrays, mode)
    except RecursionError:
        raise Damaged("its parameters are nested too deeply") from None
    if arrays:
        raise Damaged(f"its parameters do not contain its array {shown(min(arrays))}")
    return tree


def _header_of(content: bytes) -> Header:
    """Returns the header in the contents of a file.

    Raises:
        Damaged: if the header is damaged, or was not written by `packed`.
    """
    return _parsed(content[8 : 8 + int.from_bytes(content[:8], "little")])


def header_of_file(path: Path) -> Header:
    """Returns the header of a file without reading its arrays.

    Raises:
        FileNotFoundError: if there is no file.
        Damaged: if the header is damaged, or was not written by `packed`.
    """
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        if n_bytes > min(_MOST_HEADER_BYTES, os.fstat(file.fileno()).st_size):
            raise Damaged("its header is longer than the file")
        return _parsed(file.read(n_bytes))


def _parsed(header: bytes) -> Header:
    try:
        entry = json.loads(header)["__metadata__"][_KEY]
        found, text = entry[:_HEX], entry[_HEX:]
        if digest(text.encode()).hex() != found:
            raise Damaged("the checksum of its header does not match")
        values = json.loads(text)
        _TEXT(values, "its header")
        if values["format"] != _FORMAT:
            raise Damaged(f"it has format {values['format']}, and this headrace reads format {_FORMAT}")
        return Header(values["parameters"], plain_metadata(values["metadata"], "its metadata"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"it has no header of a parameter database ({type(error).__name__})") from error


def _path(parts: tuple[str, ...]) -> str:
    return "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)


def _described(tree: Tree, parts: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    """Returns the structure of a tree, and adds its arrays to `arrays` under their paths."""
    if isinstance(tree, dict):
        for key in tree:
            if type(key) is not str:
                raise TypeError(f"parameters{_place(parts)} has the key {key!r}, expected strings as keys")
        return {key: _described(value, (*parts, key), arrays) for key, value in tree.items()}
    if tree is None or type(tree) in (bool, int, float, str):
        return [tree]
    kind = "array"
    torch = sys.modules.get("torch")  # without it, no tensor can have been made
    if torch is not None and isinstance(tree, torch.Tensor):
        kind, array = _of_tensor(torch, tree)
    elif isinstance(tree, np.ndarray | np.generic):
        array = np.asarray(tree)
    else:
        raise TypeError(
            f"parameters{_place(parts)} is a {type(tree).__name__}, expected an array, a tensor, a number, a string, "
            "None or a dict of them"
        )
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"parameters{_place(parts)} is an array of {array.dtype}, expected numbers or booleans")
    path = _path(parts)
    if path == "__metadata__":
        raise ValueError("parameters has the key '__metadata__', which safetensors files use themselves; rename it")
    arrays[path] = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return kind


def _of_tensor(torch: ModuleType, tensor: Any) -> tuple[str, np.ndarray]:
    """Returns the kind of a tensor and its values; one on a GPU is copied."""
    if tensor.dtype == torch.bfloat16:
        return "bfloat16", tensor.detach().contiguous().view(torch.int16).numpy(force=True)
    if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
        raise TypeError(f"parameters has a tensor of {tensor.dtype}, expected numbers or booleans")
    return "array", tensor.numpy(force=True)


def _restored(tree: Any, parts: tuple[str, ...], arrays: dict[str, np.ndarray], mode: str) -> Tree:
    """Returns the parameters of a structure, and removes their arrays from `arrays`."""
    if isinstance(tree, dict):
        return {key: _restored(value, (*parts, key), arrays, mode) for key, value in tree.items()}
    if isinstance(tree, list) and len(tree) == 1 and (tree[0] is None or type(tree[0]) in (bool, int, float, str)):
        return tree[0]
    array = arrays.pop(_path(parts), None) if tree in ("array", "bfloat16") else None
    if array is None or (tree == "bfloat16" and array.dtype != np.int16):
        raise Damaged(f"its header describes parameters{_place(parts)}, which is not there")
    if mode == "torch":
        import torch

        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if tree == "bfloat16" else tensor
    if tree == "bfloat16":  # the upper half of the float32 of the same value
        return np.asarray(np.asarray(array.view(np.uint16).astype(np.uint32) << 16).view(np.float32))
    return array


def _place(parts: tuple[str, ...]) -> str:
    return "".join(f"[{part!r}]" for part in parts)


def require_safetensors() -> Any:
    """Returns `safetensors.numpy`.

    Raises:
        ImportError: if it is missing, with the extra that has it.
    """
    with extra("streams", "parameters are stored as safetensors files"):
        import safetensors.numpy
    return safetensors.numpy
