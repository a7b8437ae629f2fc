"""Messages of trees: what arrives is what was sent, or it is rejected before memory is allocated for it."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import pytest

from headrace.buffers.tree import tree_leaves
from headrace.errors import FrameRejected
from headrace.streams import Frame, Limits, decoded, encoded
from headrace.streams.codec import like, packers

TREE = {
    "observation": {"image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "speed": np.array([1.5, -2], np.float32)},
    "pair": (np.array([[7]], np.int64), "text", None, True, 3, -2.5),
    "empty": np.zeros((0, 3), np.float64),
    "half": np.array([0.5], np.float16),
    "complex": np.array([1 + 2j], np.complex64),
    "big endian": np.array([1, 2], ">i4"),
    "scalar": np.array(5, np.int16),
}


def wire(frame: Frame, **settings: Any) -> list[bytes]:
    return [bytes(part) for part in encoded(frame, **settings)]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        alike = isinstance(other, np.ndarray) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and bool((one == other).all())
    if isinstance(one, dict):
        return isinstance(other, dict) and [*one] == [*other] and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("compressed", [(), ("observation", "half"), ("observation.image", "empty", "pair.0")])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_tree_arrives_as_it_was_sent(compressed: tuple[str, ...], checksum: bool) -> None:
    frame = decoded(wire(Frame(TREE, "name", 7, b"id", 2, 3), compressed=compressed, checksum=checksum))
    assert equal(TREE, frame.tree)
    assert (frame.name, frame.version, frame.producer, frame.epoch, frame.sequence) == ("name", 7, b"id", 2, 3)


def test_arrays_are_not_copied_on_either_side() -> None:
    array = np.zeros(1000)
    parts = encoded(Frame({"array": array}))
    assert np.shares_memory(np.frombuffer(parts[1], np.float64), array)
    received = [bytes(part) for part in parts]
    tree = decoded(received).tree
    assert np.shares_memory(tree["array"], np.frombuffer(received[1], np.float64))
    assert not tree["array"].flags.writeable


def test_arrays_that_are_not_contiguous_and_numbers_of_numpy_arrive() -> None:
    tree = {"strided": np.arange(12).reshape(3, 4)[:, ::2], "number": np.float32(1.5)}
    frame = decoded(wire(Frame(tree)))
    np.testing.assert_array_equal(frame.tree["strided"], tree["strided"])
    assert frame.tree["number"] == np.float32(1.5)


def test_compression_shrinks_what_it_is_asked_for() -> None:
    tree = {"image": np.zeros((100, 100), np.uint8), "other": np.zeros((100, 100), np.uint8)}
    parts = encoded(Frame(tree), compressed=["image"])
    assert len(parts[1]) < 200
    assert len(parts[2]) == 10_000


@dataclass
class Point:
    x: np.ndarray
    name: str


def test_dataclasses_arrive_as_dicts_and_become_dataclasses_like_an_example() -> None:
    tree = {"points": (Point(np.array([1, 2], np.float32), "a"),)}
    arrived = decoded(wire(Frame(tree))).tree
    assert arrived["points"][0].keys() == {"x", "name"}
    again = like({"points": (Point(np.zeros(9, np.float32), ""),)}, arrived)
    assert isinstance(again["points"][0], Point)
    assert again["points"][0].x.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"other": np.zeros(2)}, "the keys"),
        ({"x": np.zeros(2, np.float32)}, "x of a message is an array float64"),
        ({"x": np.zeros((2, 2))}, "x of a message is an array float64"),
        ({"x": 3}, "x of a message is an array"),
        ((np.zeros(2),), "not a tuple of 1"),
        ({"x": {"y": np.zeros(2)}}, "x of a message has"),
    ],
)
def test_trees_that_are_not_like_the_example_are_rejected(example: Any, message: str) -> None:
    with pytest.raises(FrameRejected, match=message):
        like(example, {"x": np.zeros(2)})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": object()}}, "a.b is a object"),
        ({"a": [1, 2]}, "a is a list"),
        ({"a": np.array(["x"])}, "a is an array of <U1"),
        ({"a": np.array([object()])}, "a is an array of object"),
        ({"a": np.zeros(2, "M8[s]")}, "a is an array of datetime64"),
        ({3: 1}, "has the key 3"),
        (2**70, "the tree is a int"),
    ],
)
def test_what_cannot_be_transported_is_refused_with_its_place(tree: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        encoded(Frame(tree))


# ---- hostile messages ----


def forged(entries: Any, payload: list[bytes] | None = None, *, magic: bytes = b"HRF1") -> list[bytes]:
    """Returns a message whose header has the right checksum, whatever it says."""
    header = entries if isinstance(entries, bytes) else msgpack.packb(entries)
    return [magic + zlib.crc32(header).to_bytes(4, "little") + header, *(payload or [])]


def with_tree(
    tree: Any, payload: list[bytes] | None = None, crc: Any = None, values: Sequence[Any] = ()
) -> list[bytes]:
    schema = tree if isinstance(tree, bytes) else msgpack.packb(tree)
    return forged([2, "", 0, b"", 0, 0, schema, values, crc], payload)


BOMB = zlib.compress(bytes(2**26))  # 64 KiB that become 64 MiB


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "does not begin"),
        ([b""], "does not begin"),
        ([b"\x80\x04\x95"], "does not begin"),  # a pickle
        (forged([2, "", 0, b"", 0, 0, b"", [], None], magic=b"HRF2"), "does not begin"),
        ([b"HRF1\0\0\0\0" + msgpack.packb([1])], "checksum"),
        (forged(b"\xc1"), "not msgpack"),
        (forged(b""), "not msgpack"),
        (forged(b"\xdd\xff\xff\xff\xff"), "not msgpack"),  # a list of 4 billion entries
        (forged(b"\xc6\xff\xff\xff\xff"), "not msgpack"),  # 4 GB of bytes
        (forged(b"\xdf\xff\xff\xff\xff"), "not msgpack"),  # a map
        (forged(b"\x91" * 5000), "not msgpack"),  # nested
        (forged(b"\x93\x01\x02\x03\x04"), "not msgpack"),  # more behind it
        (forged(msgpack.packb(msgpack.ExtType(5, b"x"))), "not msgpack"),
        (forged({"a": 1}), "not msgpack"),
        (forged(7), "another format"),
        (forged([]), "another format"),
        (forged([1, "", 0, b"", 0, 0, None, None]), "another format"),
        (forged([True, "", 0, b"", 0, 0, b"\xc0", [], None]), "another format"),
        (forged([2, "", 0, b"", 0, 0, b"\xc0", []]), "entries"),
        (forged([2, b"", 0, b"", 0, 0, b"\xc0", [], None]), "entries"),
        (forged([2, "", 0.5, b"", 0, 0, b"\xc0", [], None]), "entries"),
        (forged([2, "", 0, b"", 0, 0, b"\xc0", [], "crc"]), "entries"),
        (forged([2, "", 0, b"", 0, 0, b"\xc0", None, None]), "entries"),
        (forged([2, "", 0, b"x" * 1025, 0, 0, b"\xc0", [], None]), "entries"),
        (forged([2, "", 0, b"", 0, 0, b"\xc0", [], None], [b"more"]), "has 1 arrays and 0 values"),
        (with_tree(None, values=[5]), "has 0 arrays and 1 values"),
        (with_tree([0, 1]), "has 0 arrays and 0 values"),
        (with_tree([0, 1], values=["text"]), "has a str where it says int"),
        (with_tree([0, 3], values=[[1]]), "has a list where it says str"),
        (with_tree([0, 4], values=[1]), "not known"),
        (with_tree([0, "x"], values=[1]), "not known"),
        (with_tree(b""), "not msgpack"),
        (with_tree(b"\xc1"), "not msgpack"),
        (with_tree(b"\x91" * 5000), "not msgpack"),
        (with_tree([]), "not known"),
        (with_tree([9, 1]), "not known"),
        (with_tree("text"), "not known"),
        (with_tree([0, [1]]), "not known"),
        (with_tree([0]), "not known"),
        (with_tree([3, "a"]), "not known"),
        (with_tree([3, 5, None]), "different strings"),
        (with_tree([3, "a", None, "a", None]), "different strings"),
        (with_tree([3, [1], None]), "different strings"),
        (with_tree([1, "<f4"]), "not known"),
        (with_tree([1, "O", [1]], [bytes(8)]), "dtype"),
        (with_tree([1, "<U9", [1]], [bytes(36)]), "dtype"),
        (with_tree([1, ["<f4"], [1]], [bytes(4)]), "dtype"),
        (with_tree([1, "<f4", 1], [bytes(4)]), "shape"),
        (with_tree([1, "<f4", [-1]], [bytes(4)]), "shape"),
        (with_tree([1, "<f4", [1.0]], [bytes(4)]), "shape"),
        (with_tree([1, "<f4", [1] * 33], [bytes(4)]), "shape"),
        (with_tree([1, "<f4", [2]], [bytes(4)]), "not as many"),
        (with_tree([1, "<f4", [1]]), "has 0 arrays"),
        (with_tree([1, "<f4", [2**63]], [bytes(4)]), "more than"),
        (with_tree([1, "<f4", [2**40, 0, 2**40]], [b""]), "more than"),
        (with_tree([1, "<f4", [2**31]] * 1, [bytes(4)]), "more than"),
        (with_tree([4, *[[1, "|u1", [2**19]]] * 4], [bytes(2**19)] * 4), "more than"),
        (with_tree([2, "|u1", [2**26]], [BOMB], values=[len(BOMB)]), "more than"),
        (with_tree([2, "|u1", [1000]], [BOMB], values=[len(BOMB)]), "another size"),
        (with_tree([2, "|u1", [10]], [b"abc"], values=[3]), "decompressed"),
        (with_tree([2, "|u1", [10]], [b"abc"], values=["3"]), "not as many"),
        (with_tree([2, "|u1", [10]], [b"abc"]), "has 1 arrays and 0 values"),
        (with_tree([2, "|u1", [4]], [zlib.compress(bytes(4)) + b"xx"], values=[14]), "another size|not as many"),
        (with_tree([1, "|u1", [4]], [bytes(4)], crc=1), "damaged"),
        (with_tree([0, 3], values=["x" * 2000]), "not msgpack"),
        (with_tree([3, "x" * 2000, None]), "not msgpack"),
        (with_tree([4, *[None] * 1030]), "leaves"),
        (with_tree([4, [4, [4, [4, [4, [4]]]]]]), "levels"),
    ],
)
def test_hostile_messages_are_rejected(parts: list[bytes], message: str) -> None:
    limits = Limits(payload_bytes=2**20, depth=4)
    tracemalloc.start()
    try:
        with pytest.raises(FrameRejected, match=message):
            decoded(parts, limits)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_a_header_above_its_limit_is_rejected_before_it_is_read() -> None:
    parts = wire(Frame({f"key{index}": index for index in range(300)}))
    decoded(parts)
    with pytest.raises(FrameRejected, match="header of"):
        decoded(parts, Limits(header_bytes=100))


def test_every_changed_byte_of_a_message_is_noticed() -> None:
    parts = wire(Frame({"a": np.arange(10), "b": np.zeros(3, np.float32)}, "name"), compressed=["b"])
    for number, part in enumerate(parts):
        for place in range(len(part)):
            changed = bytearray(part)
            changed[place] ^= 0x10
            with pytest.raises(FrameRejected):
                decoded([*parts[:number], bytes(changed), *parts[number + 1 :]])


@pytest.mark.parametrize("block", [512, 4096, 8192, 2**16])
def test_blocks_that_were_exchanged_are_noticed(block: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, 2**18, np.uint8)
    parts = wire(Frame(array))
    changed = bytearray(parts[1])
    changed[:block], changed[block : 2 * block] = changed[block : 2 * block], changed[:block]
    with pytest.raises(FrameRejected, match="damaged"):
        decoded([parts[0], bytes(changed)])


def test_what_is_remembered_of_a_schema_accepts_no_other_message() -> None:
    """A message of a known schema is checked as the first one was: sizes, checksums, limits."""
    tree = {"a": np.arange(6).reshape(2, 3), "n": 5, "b": np.zeros(4, np.float32)}
    parts = wire(Frame(tree))
    for number in range(3):
        again = wire(Frame({**tree, "n": number}, sequence=number))
        assert decoded(again).tree["n"] == number
    for damaged in ([parts[0], parts[1][:-1], parts[2]], [parts[0], parts[2], parts[1]], parts[:-1], [*parts, b""]):
        with pytest.raises(FrameRejected):
            decoded(damaged)
    with pytest.raises(FrameRejected, match="more than 40 bytes"):
        decoded(parts, Limits(payload_bytes=40))
    with pytest.raises(FrameRejected, match="leaves"):
        decoded(parts, Limits(leaves=3))
    decoded(parts)


def test_trees_that_differ_in_one_leaf_have_schemas_of_their_own() -> None:
    trees = [
        {"a": np.zeros(2), "b": 1},
        {"a": np.zeros(2), "b": True},
        {"a": np.zeros(2), "b": 1.0},
        {"a": np.zeros(2), "b": "1"},
        {"a": np.zeros(2), "b": None},
        {"a": np.zeros(2), "b": ()},
        {"a": np.zeros(2), "b": {}},
        {"a": np.zeros(2, np.float32), "b": 1},
        {"a": np.zeros((2, 1)), "b": 1},
        {"a": np.zeros((1, 2)), "b": 1},
        {"a": (np.zeros(2),), "b": 1},
        {"b": 1, "a": np.zeros(2)},
        ({"a": np.zeros(2)}, 1),
    ]
    for tree in [*trees, *trees]:
        assert equal(tree, decoded(wire(Frame(tree))).tree)


def _mutated(generator: np.random.Generator, parts: list[bytes]) -> list[bytes]:
    """Returns a message with a few random changes; most have a right checksum of the header, so that it is read."""
    found = [bytearray(part) for part in parts]
    for _ in range(generator.integers(1, 5)):
        number = int(generator.integers(len(found))) if generator.random() < 0.3 else 0
        part, kind = found[number], generator.integers(6)
        place = int(generator.integers(8 if number == 0 and len(part) > 8 else 0, len(part) + 1))
        if kind == 0 and place < len(part):
            part[place] = int(generator.integers(256))
        elif kind == 1 and place < len(part):
            part[place] ^= 1 << int(generator.integers(8))
        elif kind == 2:
            part[place:place] = generator.bytes(int(generator.integers(1, 9)))
        elif kind == 3:
            del part[place : place + int(generator.integers(1, 9))]
        elif kind == 4:  # a length, or a number, that is huge
            part[place : place + 5] = struct.pack(
                ">BI", int(generator.choice([0xC6, 0xDB, 0xDD, 0xDF, 0xCE])), 2**32 - 1
            )
        elif len(found) > 1:
            found.pop() if generator.random() < 0.5 else found.append(bytearray(generator.bytes(8)))
    if generator.random() < 0.9:
        found[0][4:8] = zlib.crc32(bytes(found[0][8:])).to_bytes(4, "little")
    return [bytes(part) for part in found]


def test_ten_thousand_mutated_messages_are_rejected_or_within_the_limits() -> None:
    limits = Limits(payload_bytes=2**16, leaves=64)
    generator = np.random.default_rng(20261130)
    messages = [
        wire(Frame(TREE, "name", 7, b"identity", 0, 3), compressed=("observation",), checksum=False),
        wire(Frame(TREE, "name", 7, b"identity", 0, 3)),
        wire(Frame({"a": np.zeros(100), "b": (1, "two", None)}), checksum=False),
    ]
    rejected = accepted = 0
    for number in range(10_000):
        parts = _mutated(generator, messages[number % len(messages)])
        traced = number % 8 == 0  # it takes most of the time
        if traced:
            tracemalloc.start()
        try:
            frame = decoded(parts, limits)
            accepted += 1
            assert len(frame.name) <= limits.text
            assert sum(leaf.nbytes for leaf in tree_leaves(frame.tree) if isinstance(leaf, np.ndarray)) <= 2**16
        except FrameRejected:
            rejected += 1
        finally:
            if traced:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < 2**20, parts
    assert rejected + accepted == 10_000
    assert rejected > 5_000
    assert accepted > 100  # such as other numbers in arrays without a checksum


def test_a_missing_package_is_one_sentence_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    packers.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "headrace\[streams\]"'):
        encoded(Frame(None))


def test_streams_work_where_torch_cannot_be_imported() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; import numpy as np; from headrace.streams import *\n"
        "with SharedMemorySampleConsumer('no-torch') as c, SharedMemorySampleProducer('no-torch') as p:\n"
        "    p.post({'a': np.ones(3)}); p.flush(60); print(c.consume(60).tree['a'].sum())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=120, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3.0\n", "")
