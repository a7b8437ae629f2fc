"""Trees of arrays as messages: a header, which says what follows, and the bytes of the arrays.

A message is a list of parts. The first part is the header: four magic bytes, a CRC-32, and a list in msgpack. Each
further part has the bytes of one array, as they are in memory or compressed. Nothing is ever pickled, so a message
cannot execute code; and a receiver checks every number of the header against its `Limits` before it allocates memory.

A header has these entries, in one list: format, name, version, producer, epoch, sequence, tree, CRC-32 of the
payload or None. The tree is described by nested lists::

    None                                    None
    [0, value]                              a bool, int, float or str
    [1, dtype, shape]                       an array: the bytes of the next part
    [2, dtype, shape, size]                 an array, compressed to `size` bytes
    [3, key, tree, key, tree, ...]          a dict, or a dataclass, which arrives as a dict of its fields
    [4, tree, tree, ...]                    a tuple
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from headrace.errors import FrameRejected
from headrace.extras import extra
from headrace.types import Tree

__all__ = ["LIMITS", "Frame", "Limits", "Part", "decoded", "encoded", "like", "packers"]

#: A part of a message.
Part = bytes | memoryview

_MAGIC = b"HRF1"
_FORMAT = 1
_SCALAR, _ARRAY, _COMPRESSED, _DICT, _TUPLE = range(5)
#: The dtypes that are transported, in both byte orders, by the names that headers have.
_DTYPES = {
    order + code: np.dtype(order + code)
    for order in "<>|"
    for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
}
_CODES = {dtype: dtype.str for dtype in _DTYPES.values()}


_TYPES = [str, int, bytes, int, int]  # of name, version, producer, epoch, sequence
_COLUMNS = 1024
_ROW_BYTES = 8 * _COLUMNS
_LEAST_ROWS = 4


@dataclass(frozen=True)
class Limits:
    """What a message may contain; a receiver rejects anything above before it allocates memory.

    Args:
        header_bytes: size of the header.
        payload_bytes: size of all arrays together, uncompressed.
        leaves: arrays and values in the tree.
        depth: levels of nesting.
        text: characters of a string, a name or a key.
    """

    header_bytes: int = 2**16
    payload_bytes: int = 2**30
    leaves: int = 1024
    depth: int = 16
    text: int = 1024


#: What is accepted where nobody says anything else.
LIMITS = Limits()


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


@cache
def packers() -> tuple[Callable[[Any], bytes], Callable[..., Any]]:
    """Returns `packb` and `unpackb` of msgpack.

    Raises:
        ImportError: if msgpack is missing, with the extra that has it.
    """
    with extra("streams", "streams need msgpack"):
        import msgpack
    return msgpack.packb, msgpack.unpackb


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
    packb, _ = packers()
    parts: list[Part] = []
    described = _described(frame.tree, "", parts, {*compressed}, False)
    crc = _checksum(parts) if checksum else None
    header: bytes = packb(
        (_FORMAT, frame.name, frame.version, frame.producer, frame.epoch, frame.sequence, described, crc)
    )
    return [_MAGIC + zlib.crc32(header).to_bytes(4, "little") + header, *parts]


def _described(tree: Tree, path: str, parts: list[Part], compressed: set[str], compress: bool) -> Any:
    """Returns the description of a tree for the header, and appends the bytes of its arrays to `parts`."""
    if isinstance(tree, np.ndarray):
        return _described_array(tree, path, parts, compress)
    if tree is None:
        return None
    names = getattr(type(tree), "__dataclass_fields__", None)
    if isinstance(tree, dict):
        items: Any = tree.items()
    elif isinstance(tree, tuple):
        items = enumerate(tree)
    elif names is not None:
        items = [(name, getattr(tree, name)) for name in names]
    elif type(tree) in (bool, float, str) or (type(tree) is int and -(2**63) <= tree < 2**64):
        return (_SCALAR, tree)
    elif isinstance(tree, np.generic):
        return _described_array(np.asarray(tree), path, parts, compress)
    else:
        raise TypeError(
            f"{path or 'the tree'} is a {type(tree).__name__}, expected an array, a number, a string, None, or a dict, "
            "tuple or dataclass of them (of a tensor: tensor.numpy())"
        )
    keyed = not isinstance(tree, tuple)
    described: list[Any] = [_DICT if keyed else _TUPLE]
    for key, value in items:
        place = f"{path}.{key}" if path else str(key)
        if keyed:
            if type(key) is not str:
                raise TypeError(f"{path or 'the tree'} has the key {key!r}, expected strings as keys")
            described.append(key)
        compress_it = compress or place in compressed
        if isinstance(value, np.ndarray):  # most are, and need no further call
            described.append(_described_array(value, place, parts, compress_it))
        else:
            described.append(_described(value, place, parts, compressed, compress_it))
    return described


def _described_array(array: np.ndarray, path: str, parts: list[Part], compress: bool) -> Any:
    code = _CODES.get(array.dtype)
    if code is None:
        raise TypeError(f"{path or 'the tree'} is an array of {array.dtype}, expected numbers or booleans")
    if not array.flags.c_contiguous:
        array = array.copy()
    try:
        data: Part = array.data.cast("B")
    except (TypeError, ValueError):  # of no numbers, of another byte order, or of a kind that Python does not have
        data = array.reshape(-1).view(np.uint8).data if array.size else b""
    if compress:
        data = zlib.compress(data, 1)
        parts.append(data)
        return (_COMPRESSED, code, array.shape, len(data))
    parts.append(data)
    return (_ARRAY, code, array.shape)


def decoded(parts: Sequence[Any], limits: Limits = LIMITS) -> Frame:
    """Returns the content of a message; arrays are read-only views of its parts where these are not compressed.

    Args:
        parts: objects with the buffer protocol, as they were received.
        limits: what to accept.

    Raises:
        FrameRejected: if the message is damaged or exceeds the limits. Nothing was allocated for it before the check.
    """
    _, name, version, producer, epoch, sequence, described, crc = _header(parts, limits)
    payload = [part if type(part) is bytes else memoryview(part).cast("B") for part in parts[1:]]
    if crc is not None and _checksum(payload) != crc:
        raise FrameRejected("a message is damaged: its arrays do not have the checksum that its header says")
    reader = _Reader(payload, limits)
    tree = reader.tree(described, 0)
    if reader.n_parts != len(payload):
        raise FrameRejected(f"a message has {len(payload)} arrays, and its header describes {reader.n_parts}")
    return Frame(tree, name, version, producer, epoch, sequence)


def _header(parts: Sequence[Any], limits: Limits) -> list[Any]:
    """Returns the entries of the header, each of which has its type."""
    first = memoryview(parts[0]).cast("B") if parts else memoryview(b"")
    packed = first[8:]
    if first[:4] != _MAGIC:
        raise FrameRejected("a message does not begin as messages of headrace do")
    if len(packed) > limits.header_bytes:
        raise FrameRejected(
            f"a message has a header of {len(packed)} bytes, at most {limits.header_bytes} are accepted"
        )
    if zlib.crc32(packed) != int.from_bytes(first[4:8], "little"):
        raise FrameRejected("a message is damaged: its header does not have its checksum")
    _, unpackb = packers()
    length = min(limits.header_bytes, 2 * limits.leaves + 8)
    try:
        entries = unpackb(
            packed,
            use_list=True,
            max_str_len=limits.text,
            max_bin_len=limits.text,
            max_array_len=length,
            max_map_len=0,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack has many: of its own, ValueError, UnicodeDecodeError, RecursionError
        raise FrameRejected(
            f"a message has a header that is not msgpack, or too large ({type(error).__name__})"
        ) from error
    if type(entries) is not list or not entries or type(entries[0]) is not int or entries[0] != _FORMAT:
        raise FrameRejected(f"a message has another format than {_FORMAT}; use the same headrace on both sides")
    if len(entries) != 8 or [*map(type, entries[1:6])] != _TYPES or type(entries[7]) not in (int, type(None)):
        raise FrameRejected("a message has a header without the entries that a header has")
    return entries


class _Reader:
    """Builds a tree, and checks its description against the limits and the sizes of the parts before each step.

    Args:
        payload: the bytes of the arrays.
        limits: what to accept.
    """

    def __init__(self, payload: Sequence[Part], limits: Limits) -> None:
        self.n_parts = 0
        self._payload = payload
        self._limits = limits
        self._n_leaves = 0
        self._nbytes = 0

    def tree(self, described: Any, depth: int) -> Tree:
        """Returns what is described; arrays are views of the payload, unless they were compressed.

        Raises:
            FrameRejected: if it cannot be built within the limits.
        """
        self._n_leaves += 1
        if depth > self._limits.depth or self._n_leaves > self._limits.leaves:
            raise FrameRejected(
                f"a message has a tree of more than {self._limits.leaves} leaves or {self._limits.depth} levels"
            )
        if described is None:
            return None
        kind = described[0] if type(described) is list and described else None
        if kind == _ARRAY and len(described) == 3:
            return self._array(described[1], described[2], None)
        if kind == _DICT and len(described) % 2:
            keys = described[1::2]
            for key in keys:
                if type(key) is not str:
                    raise FrameRejected("a message has a dict whose keys are not different strings")
            found = {key: self.tree(value, depth + 1) for key, value in zip(keys, described[2::2], strict=True)}
            if len(found) < len(keys):
                raise FrameRejected("a message has a dict whose keys are not different strings")
            return found
        if kind == _TUPLE:
            return tuple([self.tree(value, depth + 1) for value in described[1:]])
        if kind == _COMPRESSED and len(described) == 4:
            return self._array(*described[1:])
        if kind != _SCALAR or len(described) != 2 or type(described[1]) not in (bool, int, float, str):
            raise FrameRejected("a message describes its tree in a way that is not known")
        return described[1]

    def _array(self, code: Any, shape: Any, size: Any) -> np.ndarray:
        dtype = _DTYPES.get(code) if type(code) is str else None
        if dtype is None:
            raise FrameRejected(f"a message has an array of the dtype {str(code)[:20]!r}, which is not transported")
        if type(shape) is not list or len(shape) > 32:
            raise FrameRejected("a message has an array whose shape is not a list of sizes")
        nbytes = room = dtype.itemsize
        for n in shape:
            if type(n) is not int or n < 0:
                raise FrameRejected("a message has an array whose shape is not a list of sizes")
            nbytes *= n
            room *= n or 1  # a size of 0 must not hide others that NumPy refuses
        self._nbytes += room
        if self._nbytes > self._limits.payload_bytes:
            raise FrameRejected(f"a message has arrays of more than {self._limits.payload_bytes} bytes")
        data = self._payload[self.n_parts] if self.n_parts < len(self._payload) else None
        if data is None or len(data) != (nbytes if size is None else size):
            raise FrameRejected("a message has an array whose bytes are not as many as its header says")
        self.n_parts += 1
        return np.ndarray(shape, dtype, data if size is None else _decompressed(data, nbytes))


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
    the sums of 1,024 columns of 8-byte numbers.
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
