"""Schemas: what a tree is, without the contents of its leaves. Samples of one kind have one schema.

A sender splits a tree into the key of its schema and its leaves; a receiver builds the tree from a plan and the leaves.
Both sides remember the schemas that they have seen last, so that a schema is packed, or checked, once, and not for
every message. A schema is a list in msgpack::

    None                                    None
    [0, number]                             a bool, int, float or str, by this number: the next of the values
    [1, dtype, shape]                       an array: the bytes of the next part
    [2, dtype, shape]                       an array, compressed: the next part; its size is the next of the values
    [3, key, tree, key, tree, ...]          a dict, or a dataclass, which arrives as a dict of its fields
    [4, tree, tree, ...]                    a tuple
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from headrace.errors import FrameRejected
from headrace.extras import extra
from headrace.streams.limits import Limits
from headrace.types import Tree

__all__ = ["ARRAY", "COMPRESSED", "VALUE", "Plan", "Schema", "flattened", "packers", "plan_of", "schema_of"]

#: The kinds of leaves.
VALUE, ARRAY, COMPRESSED = range(3)
_DICT, _TUPLE = 3, 4
_REMEMBERED = 256  # schemas; samples of different lengths have different ones
_LONGEST_REMEMBERED = 4096  # bytes of a schema: hostile ones must not fill the memory
#: The dtypes that are transported, in both byte orders, by the names that schemas have.
_DTYPES = {
    order + code: np.dtype(order + code)
    for order in "<>|"
    for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
}
_CODES = {dtype: dtype.str for dtype in _DTYPES.values()}
_VALUES = (bool, int, float, str)
_EXPECTED = (
    "expected an array, a number, a string, None, or a dict, tuple or dataclass of them (of a tensor: tensor.numpy())"
)


@cache
def packers() -> tuple[Callable[[Any], bytes], Callable[..., Any]]:
    """Returns `packb` and `unpackb` of msgpack.

    Raises:
        ImportError: if msgpack is missing, with the extra that has it.
    """
    with extra("streams", "streams need msgpack"):
        import msgpack
    return msgpack.packb, msgpack.unpackb


# ---- senders ----


class Schema(NamedTuple):
    """A schema as headers have it.

    Args:
        packed: its bytes.
        kinds: of its leaves, in order.
    """

    packed: bytes
    kinds: tuple[int, ...]


def flattened(tree: Tree, key: list[Any], leaves: list[Any]) -> None:
    """Appends the key of a tree's schema to `key`, and its arrays and values to `leaves`.

    The key has, for each node in order: of an array its dtype and its shape, of a value its type, of a dict or a
    dataclass the tuple of its keys, of a tuple its length, None, and of anything else the name of its type.
    """
    if isinstance(tree, np.ndarray):
        key += (tree.dtype, tree.shape)
        leaves.append(tree)
        return
    if isinstance(tree, dict):
        key.append((*tree,))
        children: Any = tree.values()
    elif isinstance(tree, tuple):
        key.append(len(tree))
        children = tree
    elif tree is None:
        key.append(None)
        return
    else:
        names = getattr(type(tree), "__dataclass_fields__", None)
        if names is None:
            _flattened_value(tree, key, leaves)
            return
        key.append((*names,))
        children = [getattr(tree, name) for name in names]
    for child in children:
        if type(child) is np.ndarray:  # most are, and need no further call
            key += (child.dtype, child.shape)
            leaves.append(child)
        else:
            flattened(child, key, leaves)


def _flattened_value(value: Any, key: list[Any], leaves: list[Any]) -> None:
    kind = type(value)
    if isinstance(value, np.generic):
        flattened(np.asarray(value), key, leaves)
    elif kind in _VALUES and (kind is not int or -(2**63) <= value < 2**64):
        key.append(kind)
        leaves.append(value)
    else:
        key.append(kind.__name__)


@lru_cache(_REMEMBERED)
def schema_of(key: tuple[Any, ...], compressed: tuple[str, ...] = ()) -> Schema:
    """Returns a schema.

    Args:
        key: see `flattened`.
        compressed: paths of the fields to compress.

    Raises:
        TypeError: for a leaf that cannot be transported.
    """
    kinds: list[int] = []
    described = _described(iter(key), "", kinds, {*compressed}, False)
    return Schema(packers()[0](described), tuple(kinds))


def _described(key: Iterator[Any], path: str, kinds: list[int], compressed: set[str], compress: bool) -> Any:
    node = next(key)
    compress = compress or path in compressed
    if node is None:
        return None
    if isinstance(node, np.dtype):
        code = _CODES.get(node)
        if code is None:
            raise TypeError(f"{path or 'the tree'} is an array of {node}, expected numbers or booleans")
        kinds.append(COMPRESSED if compress else ARRAY)
        return (kinds[-1], code, next(key))
    if isinstance(node, type):
        kinds.append(VALUE)
        return (VALUE, _VALUES.index(node))
    if isinstance(node, str):
        raise TypeError(f"{path or 'the tree'} is a {node}, {_EXPECTED}")
    described: list[Any] = [_DICT if isinstance(node, tuple) else _TUPLE]
    for name in node if isinstance(node, tuple) else range(node):
        if isinstance(node, tuple):
            if type(name) is not str:
                raise TypeError(f"{path or 'the tree'} has the key {name!r}, expected strings as keys")
            described.append(name)
        described.append(_described(key, f"{path}.{name}" if path else str(name), kinds, compressed, compress))
    return described


# ---- receivers ----


class _Leaf(NamedTuple):
    """A leaf of a plan: of an array its dtype, shape and size, of a value its type."""

    kind: int
    type: Any
    shape: tuple[int, ...] = ()
    nbytes: int = 0


class Plan(NamedTuple):
    """How to build a tree.

    Args:
        leaves: what its leaves are, in order.
        n_parts: number of arrays.
        n_values: number of values, with those that are sizes of compressed arrays.
        build: returns the tree, from an iterator over its leaves.
    """

    leaves: tuple[_Leaf, ...]
    n_parts: int
    n_values: int
    build: Callable[[Iterator[Any]], Tree]


def plan_of(packed: bytes, limits: Limits) -> Plan:
    """Returns the plan of a schema.

    Args:
        packed: see `Schema`.
        limits: what to accept.

    Raises:
        FrameRejected: if it is no schema, or exceeds the limits.
    """
    return _remembered(packed, limits) if len(packed) <= _LONGEST_REMEMBERED else _planned(packed, limits)


def _planned(packed: bytes, limits: Limits) -> Plan:
    planner = _Planner(limits)
    build = planner.builder(unpacked_within(packed, limits), 0)
    kinds = [leaf.kind for leaf in planner.leaves]
    n_values = len(kinds) - kinds.count(ARRAY)
    return Plan(tuple(planner.leaves), len(kinds) - kinds.count(VALUE), n_values, build)


_remembered = lru_cache(_REMEMBERED)(_planned)


def unpacked_within(packed: Any, limits: Limits) -> Any:
    """Returns what was packed in msgpack; raises FrameRejected if it is not msgpack, or exceeds the limits."""
    _, unpackb = packers()
    try:
        return unpackb(
            packed,
            use_list=True,
            max_str_len=limits.text,
            max_bin_len=limits.header_bytes,
            max_array_len=min(limits.header_bytes, 2 * limits.leaves + 9),
            max_map_len=0,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack has many: of its own, ValueError, UnicodeDecodeError, RecursionError
        raise FrameRejected(
            f"a message has a header that is not msgpack, or too large ({type(error).__name__})"
        ) from error


class _Planner:
    """Checks a schema against the limits before each step.

    Args:
        limits: what to accept.
    """

    def __init__(self, limits: Limits) -> None:
        self.leaves: list[_Leaf] = []
        self._limits = limits
        self._n_nodes = 0
        self._nbytes = 0

    def builder(self, described: Any, depth: int) -> Callable[[Iterator[Any]], Tree]:
        """Returns what builds the tree that is described; raises FrameRejected if it cannot be built."""
        self._n_nodes += 1
        if depth > self._limits.depth or self._n_nodes > self._limits.leaves:
            raise FrameRejected(
                f"a message has a tree of more than {self._limits.leaves} leaves or {self._limits.depth} levels"
            )
        if described is None:
            return _nothing
        kind = described[0] if type(described) is list and described else None
        if kind == _DICT and len(described) % 2:
            keys = tuple(described[1::2])
            if any(type(key) is not str for key in keys) or len({*keys}) < len(keys):
                raise FrameRejected("a message has a dict whose keys are not different strings")
            return _dict_of(keys, [self.builder(child, depth + 1) for child in described[2::2]])
        if kind == _TUPLE:
            return _tuple_of([self.builder(child, depth + 1) for child in described[1:]])
        if kind in (ARRAY, COMPRESSED) and len(described) == 3:
            self.leaves.append(self._array(*described))
        elif kind == VALUE and len(described) == 2 and described[1] in (0, 1, 2, 3):
            self.leaves.append(_Leaf(VALUE, _VALUES[described[1]]))
        else:
            raise FrameRejected("a message describes its tree in a way that is not known")
        return next

    def _array(self, kind: int, code: Any, shape: Any) -> _Leaf:
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
        return _Leaf(kind, dtype, tuple(shape), nbytes)


def _nothing(leaves: Iterator[Any]) -> None:
    return None


def _dict_of(keys: tuple[str, ...], children: list[Any]) -> Callable[[Iterator[Any]], Tree]:
    if all(child is next for child in children):
        return lambda leaves: dict(zip(keys, leaves, strict=False))  # as many leaves as keys
    pairs = tuple(zip(keys, children, strict=True))
    return lambda leaves: {key: child(leaves) for key, child in pairs}


def _tuple_of(children: list[Any]) -> Callable[[Iterator[Any]], Tree]:
    return lambda leaves: tuple([child(leaves) for child in children])
