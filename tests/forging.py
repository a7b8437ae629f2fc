"""Changes that a forger could make to the files of a run, drawn from the given generator, so that failures repeat."""

import copy
import io
import json
import math
import os
import pickle
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from headrace.checkpoints.file import FORMAT
from headrace.runners import load_checkpoint, save_checkpoint

Place = tuple[Any, ...]


class Does:
    """Makes a directory when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


def sealed(payload: bytes, number: int = FORMAT) -> bytes:
    """Returns a checkpoint file with any payload and a valid checksum, which needs no key."""
    header = b"headrace checkpoint %d\n" % number
    return header + sha256(header + payload).digest() + payload


def checkpoint_of(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return sealed(buffer.getvalue())


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Returns the paths of all entries of a state, including containers."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in items:
        yield (*place, name), item
        yield from places(item, (*place, name))


def container(state: Any, place: Place) -> Any:
    for name in place[:-1]:
        state = state[name]
    return state


def replaced(state: Any, place: Place, value: Any) -> Any:
    """Returns a copy of the state with another value at one path."""
    changed = copy.deepcopy(state)
    within = container(changed, place)
    if isinstance(within, tuple):
        return replaced(state, place[:-1], [*within[: place[-1]], value, *within[place[-1] + 1 :]])
    within[place[-1]] = value
    return changed


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def doubled(times: int) -> list[Any]:
    """Returns a few bytes that are read as 2 ** times values."""
    value: list[Any] = [0]
    for _ in range(times):
        value = [value, value]
    return value


def in_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def odd_values(old: Any, mark: Path) -> list[Any]:
    """Returns values that may replace an entry."""
    odd: list[Any] = [
        None,
        True,
        "x" * 5000,
        "two\nlines",
        b"bytes",
        -1,
        2**63,
        10**400,
        1.5,
        -1e308,
        math.nan,
        math.inf,
        [],
        {},
        {"x": 1},
        {0: {1: 2}},
        [[]],
        ("a", 1),
        {1, 2},
        2j,
        nested(20),
        nested(200),
        doubled(64),
        in_itself(),
        torch.zeros(2),
        torch.zeros(()),
        torch.zeros(3, device="meta"),
        torch.zeros(3).to_sparse(),
        torch.zeros(1).expand(10**15),
        torch.zeros(3, 1, dtype=torch.complex64),
        Does(mark),
        [Does(mark)],
        zlib.compress(pickle.dumps(Does(mark))),
    ]
    if isinstance(old, torch.Tensor):
        odd += [
            old.double() if old.dtype != torch.float64 else old.float(),
            torch.full_like(old, math.nan) if old.is_floating_point() else old - 1,
            old.flatten()[:-1].clone(),
            old[None].clone(),
            torch.empty_like(old, device="meta"),
            old.tolist(),
        ]
    if isinstance(old, dict):
        odd += [
            {**old, "more": 1},
            dict(list(old.items())[1:]),
            list(old.items()),
            {str(k) + "x": v for k, v in old.items()},
        ]
    if isinstance(old, list):
        odd += [[*old, None], [*old, *old], old[1:], tuple(old)]
    return odd


def forged_states(state: Any, mark: Path, rng: random.Random) -> Iterator[tuple[str, Any]]:
    """Yields states in which one entry is odd, missing or superfluous, each with a description, without end."""
    everywhere = list(places(state))
    while True:
        place, old = rng.choice(everywhere)
        where = ".".join(map(str, place))
        match rng.randrange(10):
            case 0 if isinstance(container(state, place), dict):
                changed = copy.deepcopy(state)
                del container(changed, place)[place[-1]]
                yield f"without {where}", changed
            case 1 if isinstance(old, dict):
                yield (
                    f"more in {where}",
                    replaced(state, place, {**old, rng.choice(["train", "x", 7]): rng.choice([1, {}])}),
                )
            case _:
                odd = odd_values(old, mark)
                number = rng.randrange(len(odd))
                if isinstance(old, dict) and not old and odd[number] == {}:
                    continue  # as it was
                yield f"{where} is {type(odd[number]).__name__} {number}", replaced(state, place, odd[number])


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damages content (a flipped bit, another byte, a missing part, zeros) without correcting its checksum."""
    at = rng.choice([rng.randrange(min(60, len(content))), rng.randrange(len(content))])
    match rng.randrange(4):
        case 0:
            return f"cut at {at}", content[:at]
        case 1:
            return f"zeros from {at}", content[:at] + bytes(len(content) - at + 1)
        case 2:
            return f"a byte more at {at}", content[:at] + b"\x07" + content[at:]
    bit = rng.randrange(8)
    return f"bit {bit} of byte {at}", content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


_HEAD = struct.Struct("<4sQQII")
Forge = Callable[[Path, random.Random], str]


def _resealed(content: bytes, change: Callable[[bytearray, bytearray], None]) -> bytes:
    """Returns a segment whose first record has another head and payload, with a valid checksum."""
    lines = re.match(rb"[^\n]*\n[^\n]*\n", content)
    assert lines is not None
    start = lines.end() + 32
    head, payload = bytearray(content[start : start + _HEAD.size]), bytearray(content[start + _HEAD.size + 32 :])
    change(head, payload)
    return content[:start] + bytes(head) + sha256(head + payload).digest() + bytes(payload)


def forged_replay(folder: Path, other: Path, rng: random.Random) -> str:
    """Changes a folder of segments with one record each; other: the folder of another run. Returns a description."""
    paths = sorted(folder.iterdir())
    path, second = rng.sample(paths, 2)
    content = path.read_bytes()
    match rng.randrange(11):
        case 0:
            path.unlink()
            return f"{path.name} is gone"
        case 1:
            path.write_bytes(second.read_bytes())
            second.write_bytes(content)
            return f"{path.name} and {second.name} are swapped"
        case 2:
            path.rename(folder / f"rows-{rng.randrange(10**18):019d}.bin")
            return f"{path.name} is renamed"
        case 3:
            path.write_bytes(rng.choice(sorted(other.iterdir())).read_bytes())
            return f"{path.name} is of another run"
        case 4:
            field, value = rng.randrange(1, 5), rng.choice([0, 1, 2, 2**31, 2**62, 5])

            def head_lies(head: bytearray, _: bytearray) -> None:
                numbers = list(_HEAD.unpack(head))
                numbers[field] = value % 2 ** (64 if field < 3 else 32)
                head[:] = _HEAD.pack(*numbers)

            path.write_bytes(_resealed(content, head_lies))
            return f"number {field} in the head of {path.name} is {value}"
        case 5 | 6:
            places = [rng.random() for _ in range(rng.choice([1, 10, 1000]))]

            def payload_lies(_: bytearray, payload: bytearray) -> None:
                for at in places:
                    payload[int(at * len(payload))] = rng.randrange(256)

            path.write_bytes(_resealed(content, payload_lies))
            return f"{len(places)} bytes in {path.name} are others, under a right checksum"
        case 7:
            path.unlink()
            os.mkfifo(path)
            return f"{path.name} is a pipe"
        case 8:
            path.unlink()
            path.symlink_to(rng.choice(["/dev/zero", "/nowhere", second.name]))
            return f"{path.name} is a link"
        case 9:
            (folder / f"rows-{rng.randrange(10**6):019d}.bin").write_bytes(rng.randbytes(rng.randrange(3000)))
            return "a file of somebody else"
    what, changed = damaged(content, rng)
    path.write_bytes(changed)
    return f"{path.name}: {what}"


def forged_config(config: dict[str, Any], mark: Path, rng: random.Random) -> tuple[str, bytes]:
    """Returns another `config.json`."""
    everywhere = list(places(config))
    match rng.randrange(6):
        case 0:
            code = {
                "env": rng.choice(["os:mkdir", "os:makedirs"]),
                "env_kwargs": {rng.choice(["path", "name"]): str(mark)},
            }
            return "it names code to run", json.dumps({**config, **code}).encode()
        case 1:
            return "it is nested", b"[" * 10**5
        case 2:
            return "it is no JSON", rng.randbytes(300)
    place, _ = rng.choice(everywhere)
    odd = [None, True, "x", "two\nlines", "", -1, 0, 1.5, math.nan, [], {}, [[1]], {"x": 1}, nested(20)]
    number = rng.randrange(len(odd))
    what = f"{'.'.join(map(str, place))} is {odd[number]!r}"[:100]
    return what, json.dumps(replaced(config, place, odd[number])).encode()


def forged_run(folder: Path, other: Path, mark: Path, rng: random.Random) -> str:
    """Changes the folder of a run of the command line; other: the folder of another run. Returns a description."""
    state = load_checkpoint(folder / "checkpoint.pt")
    environments = rng.choice(sorted(other.glob("environments-*.pkl")))
    evil = pickle.dumps(({0: zlib.compress(pickle.dumps(Does(mark)))}, {}, {}))
    match rng.randrange(12):
        case 0 | 1 | 2:
            config = json.loads((folder / "config.json").read_text())
            what, content = forged_config(config, mark, rng)
            (folder / "config.json").write_bytes(content)
            return f"config.json: {what}"
        case 3:
            (folder / "run.json").write_bytes(rng.choice([b"{}", b"7", b"[" * 10**5, rng.randbytes(100), b"[[]"]))
            return "run.json is another"
        case 4:
            content = (folder / "progress.csv").read_bytes()
            foreign = (other / "progress.csv").read_bytes()
            content = rng.choice([b"", b"a,a\n1,2\n", rng.randbytes(5000), foreign, damaged(content, rng)[1]])
            (folder / "progress.csv").write_bytes(content)
            return "progress.csv is another"
        case 5:
            for path in folder.glob("environments-*.pkl"):
                payload = rng.choice([evil, pickle.dumps(Does(mark))])
                path.write_bytes(b"headrace environments 2\n" + rng.randbytes(32) + payload)
                state["environments"]["sha256"] = sha256(payload).hexdigest()
            save_checkpoint(folder / "checkpoint.pt", state)
            return "environments that nobody signed"
        case 6:
            content = environments.read_bytes()
            (folder / environments.name).write_bytes(content)
            state["environments"] = {"file": environments.name, "sha256": sha256(content[24 + 32 :]).hexdigest()}
            save_checkpoint(folder / "checkpoint.pt", state)
            return "environments of another run, signed by this user"
        case 7:
            state["sampler"][rng.choice(["train", "evaluation"])] = {0: zlib.compress(pickle.dumps(Does(mark)))}
            save_checkpoint(folder / "checkpoint.pt", state)
            return "environments in the checkpoint itself"
        case 8:
            what, changed = next(forged_states(state, mark, rng))
            (folder / "checkpoint.pt").write_bytes(checkpoint_of(changed))
            return f"checkpoint.pt: {what}"
        case 9:
            name = rng.choice(["checkpoint.pt", "checkpoint-previous.pt", "config.json", "run.json", "progress.csv"])
            name = rng.choice([name, *(path.name for path in folder.glob("environments-*.pkl"))])
            (folder / name).unlink()
            to = rng.choice([str(other / name), "/dev/zero", "/nowhere", name, str(folder)])
            (folder / name).symlink_to(to)
            return f"{name} leads to {to}"
        case 10:
            name = rng.choice(["checkpoint.pt", "progress.csv", "run.json", "lock"])
            (folder / name).unlink(missing_ok=True)
            rng.choice([os.mkfifo, os.mkdir])(folder / name)
            return f"{name} is a pipe or a folder"
    name = rng.choice([path.name for path in folder.iterdir() if path.is_file()])
    (folder / name).write_bytes((other / name).read_bytes() if (other / name).exists() else b"")
    return f"{name} is of another run"
