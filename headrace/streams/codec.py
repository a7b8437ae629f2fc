"""Trees of arrays as messages: a header, which says what follows, and the bytes of the arrays.

A message is a list of parts. The first part is the header: four magic bytes, a CRC-32, and a list in msgpack. Each
further part has the bytes of one array, as they are in memory or compressed. Nothing is ever pickled, so a message
cannot execute code; and a receiver checks every number of the header against its `Limits` before it allocates memory.

A header has these entries, in one list: format, name, version, producer, epoch, sequence, schema, values, checksum of
the payload or None. The schema (`headrace.streams.schemas`) says what the tree is; the values are its numbers and
strings.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from headrace.errors import FrameRejected
from headrace.streams.limits import LIMITS, Limits
from headrace.streams.schemas import (
    ARRAY,
    VALUE,
    Plan,
    flattened,
    packers,
    plan_of,
    schema_of,
    unpacked_within,
)
from headrace.types import Tree

__all__ = ["LIMITS", "Frame", "Limits", "Part", "Received", "decoded", "encoded", "like", "packers", "received"]

#: A part of a message.
Part = bytes | memoryview

_MAGIC = b"HRF1"
_FORMAT = 2
_ENTRIES = (int, str, int, bytes, int, int, bytes, list)
_TYPES = ((*_ENTRIES, int), (*_ENTRIES, type(None)))  # of the entries of a header, with a checksum and without
_OTHER_SIZE = "a message has an array whose bytes are not as many as its header says"
_COLUMNS = 1021
_ROW_BYTES = 8 * _COLUMNS
_LEAST_ROWS = 4


class Frame(NamedTuple):
    """The content of a message.

    Args:
        tree: arrays, numbers and strings nested in dicts and tuples.
        name: what the tree is, as its sender says: a stream, a policy.
        version: number of the parameters that it belongs to, -1: none.
        producer: who sent it, a random id; empty if that does not matter.
        epoch: which life of the producer it comes from.
        sequence: number of the message among those of this producer and epoch.
    """

    tree: Tree
    name: str = ""
    version: int = -1
    producer: bytes = b""
    epoch: int = 0
    sequence: int = 0


def encoded(frame: Frame, *, compressed: Sequence[str] = (), checksum: bool = True) -> list[Part]:
    """Returns the parts of a message.

    The arrays are not copied, unless they are compressed or not contiguous: send the parts before you change them.

    Args:
        frame: what to send.
        compressed: paths of the fields to compress, with zlib: "observation" means this field and all below it,
            "env.observation" a field of a field. Images shrink several times, other observations hardly.
        checksum: whether the receiver shall check the payload.

    Raises:
        TypeError: for a leaf that cannot be transported.
    """
    tree, name, version, producer, epoch, sequence = frame
    key: list[Any] = []
    leaves: list[Any] = []
    flattened(tree, key, leaves)
    schema = schema_of(tuple(key), tuple(compressed))
    parts: list[Part] = []
    values: list[Any] = []
    for kind, leaf in zip(schema.kinds, leaves, strict=True):
        if kind == ARRAY:
            parts.append(_bytes_of(leaf))
        elif kind == VALUE:
            values.append(leaf)
        else:
            data = zlib.compress(_bytes_of(leaf), 1)
            parts.append(data)
            values.append(len(data))
    crc = _checksum(parts) if checksum else None
    packb, _ = packers()
    header: bytes = packb((_FORMAT, name, version, producer, epoch, sequence, schema.packed, values, crc))
    return [_MAGIC + zlib.crc32(header).to_bytes(4, "little") + header, *parts]


def _bytes_of(array: np.ndarray) -> Part:
    try:
        return array.data.cast("B")
    except (TypeError, ValueError):  # not contiguous, empty, of another byte order, or of a kind that Python has not
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""


class Received(NamedTuple):
    """A message whose header and checksum are right; see `Frame`.

    Args:
        schema: what tells messages of one kind from others, see `headrace.streams.schemas`.
        plan: how to build the tree.
        payload: the bytes of the arrays.
        values: the numbers and strings, and the sizes of compressed arrays.
    """

    name: str
    version: int
    producer: bytes
    epoch: int
    sequence: int
    schema: bytes
    plan: Plan
    payload: Sequence[Part]
    values: Sequence[Any]

    def tree(self, take: Callable[[Any], Any] | None = None) -> Tree:
        """Returns the tree; arrays are read-only views of the parts where these are not compressed.

        Args:
            take: what to do with each leaf before the tree is built.

        Raises:
            FrameRejected: if a leaf is not as its header says.
        """
        plan = self.plan
        leaves = _mixed_leaves(self) if plan.n_values else _arrays(plan, self.payload)
        return plan.build(iter(leaves) if take is None else map(take, leaves))


def received(parts: Sequence[Part], limits: Limits = LIMITS) -> Received:
    """Returns a message that has arrived, before its tree is built.

    Args:
        parts: bytes, or memoryviews of bytes.
        limits: what to accept.

    Raises:
        FrameRejected: if the message is damaged or exceeds the limits. Nothing was allocated for it before the check.
    """
    _, name, version, producer, epoch, sequence, schema, values, crc = _header(parts, limits)
    plan = plan_of(schema, limits)
    if plan.n_parts != len(parts) - 1 or plan.n_values != len(values):
        raise FrameRejected(
            f"a message has {len(parts) - 1} arrays and {len(values)} values, and its header describes {plan.n_parts} "
            f"and {plan.n_values}"
        )
    payload = parts[1:]
    if crc is not None and _checksum(payload) != crc:
        raise FrameRejected("a message is damaged: its arrays do not have the checksum that its header says")
    return Received(name, version, producer, epoch, sequence, schema, plan, payload, values)


def decoded(parts: Sequence[Part], limits: Limits = LIMITS) -> Frame:
    """Returns the content of a message; arrays are read-only views of its parts where these are not compressed.

    Args:
        parts: bytes, or memoryviews of bytes, as they were received.
        limits: what to accept.

    Raises:
        FrameRejected: if the message is damaged or exceeds the limits. Nothing was allocated for it before the check.
    """
    found = received(parts, limits)
    return Frame(found.tree(), *found[:5])


def _arrays(plan: Plan, payload: Sequence[Part]) -> list[np.ndarray]:
    arrays = []
    for (_, dtype, shape, nbytes), data in zip(plan.leaves, payload, strict=True):
        if len(data) != nbytes:
            raise FrameRejected(_OTHER_SIZE)
        arrays.append(np.ndarray(shape, dtype, data))
    return arrays


def _mixed_leaves(found: Received) -> list[Any]:
    leaves = []
    payload, values = iter(found.payload), iter(found.values)
    for kind, type_, shape, nbytes in found.plan.leaves:
        if kind == VALUE:
            value = next(values)
            if type(value) is not type_:
                raise FrameRejected(f"a message has a {type(value).__name__} where it says {type_.__name__}")
            leaves.append(value)
            continue
        data = next(payload)
        if len(data) != (nbytes if kind == ARRAY else next(values)):
            raise FrameRejected(_OTHER_SIZE)
        leaves.append(np.ndarray(shape, type_, data if kind == ARRAY else _decompressed(data, nbytes)))
    return leaves


def _header(parts: Sequence[Part], limits: Limits) -> list[Any]:
    """Returns the entries of the header, each of which has its type."""
    first = parts[0] if parts else b""
    if type(first) is not bytes:
        first = bytes(first[: limits.header_bytes + 9])  # one more than is accepted
    if first[:4] != _MAGIC:
        raise FrameRejected("a message does not begin as messages of headrace do")
    packed = first[8:]
    if len(packed) > limits.header_bytes:
        raise FrameRejected(f"a message has a header of more than {limits.header_bytes} bytes, the most accepted")
    if zlib.crc32(packed) != int.from_bytes(first[4:8], "little"):
        raise FrameRejected("a message is damaged: its header does not have its checksum")
    entries = unpacked_within(packed, limits)
    if type(entries) is not list or not entries or type(entries[0]) is not int or entries[0] != _FORMAT:
        raise FrameRejected(f"a message has another format than {_FORMAT}; use the same headrace on both sides")
    if tuple(map(type, entries)) not in _TYPES or len(entries[3]) > limits.text:
        raise FrameRejected("a message has a header without the entries that a header has")
    return entries


def _decompressed(data: Part, nbytes: int) -> bytes:
    """Returns exactly `nbytes` bytes, and never allocates more."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, nbytes + 1)  # with 0 there would be no limit
    except zlib.error as error:
        raise FrameRejected(f"a message has an array that cannot be decompressed ({error})") from error
    if len(plain) != nbytes or not stream.eof or stream.unused_data:
        raise FrameRejected("a message has a compressed array of another size than its header says")
    return plain


def _checksum(parts: Sequence[Part]) -> int:
    """Returns a number that changes with any changed byte, at the speed of memory.

    It is the CRC-32 of small parts. Of large ones, which would take ten times as long as to copy them, it is that of
    the sums of 1,021 columns of 8-byte numbers, and of the bytes that are left. So it finds any one changed byte and
    any two blocks that were exchanged, unless their distance is a multiple of 8,168 bytes. (The number of columns is a
    prime, so no such multiple is a number of pages, sectors or other blocks whose size is a power of two, below 4 MB.)
    Changes that cancel out in the sums of their columns are not found.
    """
    crc = 0
    for part in parts:
        n_rows = len(part) // _ROW_BYTES
        if n_rows >= _LEAST_ROWS:
            columns = np.frombuffer(part, "<u8", n_rows * _COLUMNS).reshape(n_rows, _COLUMNS)
            crc = zlib.crc32(np.add.reduce(columns, axis=0), crc)
            part = memoryview(part)[n_rows * _ROW_BYTES :]
        crc = zlib.crc32(part, crc)
    return crc


def like(example: Tree, tree: Tree, path: str = "", *, axes: int = 0) -> Tree:
    """Returns the tree with the dataclasses of `example` in the places of dicts.

    Args:
        example: dataclasses, dicts and tuples of arrays, numbers and strings.
        tree: what was received.
        path: the place of the tree, for the error.
        axes: how many more dimensions arrays have than those of the example.

    Raises:
        FrameRejected: if the tree has other keys, other dtypes, or arrays with other numbers of dimensions.
    """
    place = path or "the tree"
    names = getattr(type(example), "__dataclass_fields__", None)
    if isinstance(example, dict) or names is not None:
        expected = {*(example if names is None else names)}
        if not isinstance(tree, dict) or tree.keys() != expected:
            raise FrameRejected(f"{place} of a message has {_keys(tree)}, expected {_keys(dict.fromkeys(expected))}")
        parts = {}
        for key, value in tree.items():
            of_key = example[key] if names is None else getattr(example, key)
            parts[key] = like(of_key, value, f"{path}.{key}" if path else key, axes=axes)
        return parts if names is None else type(example)(**parts)
    if isinstance(example, tuple):
        if not isinstance(tree, tuple) or len(tree) != len(example):
            raise FrameRejected(f"{place} of a message is not a tuple of {len(example)}")
        pairs = enumerate(zip(example, tree, strict=True))
        return tuple(
            [like(one, other, f"{path}.{index}" if path else str(index), axes=axes) for index, (one, other) in pairs]
        )
    if isinstance(example, np.ndarray | np.generic):
        if not isinstance(tree, np.ndarray) or tree.dtype != example.dtype or tree.ndim != example.ndim + axes:
            raise FrameRejected(f"{place} of a message is {_shown(tree)}, expected {_shown(example)} of any sizes")
    elif type(tree) is not type(example):
        raise FrameRejected(f"{place} of a message is {_shown(tree)}, expected {_shown(example)}")
    return tree


def _keys(tree: Tree) -> str:
    return f"the keys {sorted(tree)}" if isinstance(tree, dict) else _shown(tree)


def _shown(leaf: Any) -> str:
    return f"an array {leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, np.ndarray) else f"a {type(leaf).__name__}"
