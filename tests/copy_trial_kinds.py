"""Environments of many kinds, each sampled with and without `resumable`; prints the results, one line of JSON each.

If this file is run as a script, its classes belong to the program and are pickled by value; if it is imported, they are
pickled by name. KINDS has the reason for not saving the environment in both cases, "" if it is saved.
"""

import contextlib
import ctypes
import dataclasses
import enum
import functools
import json
import os
import shutil
import socketserver
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

TICK = {"n": 0}
RNG = np.random.default_rng(0)
SIMS: dict[int, int] = {}
BUFFERS: list[Any] = []
PROGRAMS: dict[int, Any] = {}
NUMBERS = iter(range(10**6))
CONNECTIONS: list[sqlite3.Connection] = []
PORT = 0


class Plain(gym.Env[Any, Any]):
    """An environment whose whole state is in its instance."""

    observation_space = gym.spaces.Box(-1e6, 1e6, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    n = 0

    def look(self) -> float:
        return self.n + float(self.np_random.random())

    def begin(self) -> None:
        self.n = 0

    def move(self, action: int) -> None:
        self.n += 1 + action

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.begin()
        return np.array([self.look()], np.float32), {}

    def step(self, action: Any) -> Any:
        self.move(int(action))
        seen = self.look()
        return np.array([seen], np.float32), seen / 2, self.np_random.random() < 0.1, False, {}


class ModuleGlobal(Plain):
    def begin(self) -> None:
        TICK["n"] = 0

    def move(self, action: int) -> None:
        TICK["n"] += 1

    def look(self) -> float:
        return TICK["n"]


class ClassAttribute(Plain):
    count = 0

    def move(self, action: int) -> None:
        type(self).count += 1

    def begin(self) -> None:
        type(self).count = 0

    def look(self) -> float:
        return self.count


class GlobalGenerator(Plain):
    def look(self) -> float:
        return float(RNG.random())


class NumpyGlobal(Plain):
    def look(self) -> float:
        return float(np.random.rand())


def shares(gone: list[int]) -> Callable[[], gym.Env[Any, Any]]:
    class Closure(Plain):
        def move(self, action: int) -> None:
            gone.append(1)

        def begin(self) -> None:
            gone.clear()

        def look(self) -> float:
            return len(gone)

    return Closure


class Simulator(Plain):
    """An environment whose simulator is an entry of a table in a module."""

    def __init__(self) -> None:
        self.handle = next(NUMBERS)
        SIMS[self.handle] = 0

    def begin(self) -> None:
        SIMS[self.handle] = 0

    def move(self, action: int) -> None:
        SIMS[self.handle] += 1 + action

    def look(self) -> float:
        return SIMS[self.handle]


class Closing(Simulator):
    def close(self) -> None:
        SIMS.pop(self.handle, None)


class Deleting(Simulator):
    def __del__(self) -> None:
        SIMS.pop(self.handle, None)


class Pointer(Plain):
    def __init__(self) -> None:
        self.memory = ctypes.pointer(ctypes.c_double())


class Address(Plain):
    """An environment that refers to its simulator by an address, as a handle of a C library does."""

    def __init__(self) -> None:
        BUFFERS.append((ctypes.c_double * (1 << 17))())
        self.address = ctypes.addressof(BUFFERS[-1])

    def move(self, action: int) -> None:
        ctypes.c_double.from_address(self.address).value += 1

    def begin(self) -> None:
        ctypes.c_double.from_address(self.address).value = 0

    def look(self) -> float:
        return ctypes.c_double.from_address(self.address).value


class Database(Plain):
    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:")


class Connected(Plain):
    """An environment that shares one connection with all others of the program, as with a physics server."""

    def __init__(self) -> None:
        if not CONNECTIONS:
            CONNECTIONS.append(sqlite3.connect(":memory:", check_same_thread=False))
            CONNECTIONS[0].execute("CREATE TABLE bodies (x)")
        self.body = CONNECTIONS[0].execute("INSERT INTO bodies VALUES (0)").lastrowid

    def move(self, action: int) -> None:
        CONNECTIONS[0].execute("UPDATE bodies SET x = x + 1 WHERE rowid = ?", (self.body,))

    def begin(self) -> None:
        CONNECTIONS[0].execute("UPDATE bodies SET x = 0 WHERE rowid = ?", (self.body,))

    def look(self) -> float:
        return float(CONNECTIONS[0].execute("SELECT x FROM bodies WHERE rowid = ?", (self.body,)).fetchone()[0])


class Threaded(Plain):
    def __init__(self) -> None:
        self.thread = threading.Thread(target=lambda: None)


class Reads(Plain):
    def __init__(self) -> None:
        self.file = Path("levels.txt").open()  # noqa: SIM115

    def look(self) -> float:
        return float(self.file.readline() or self.file.seek(0))

    def close(self) -> None:
        self.file.close()


class Writes(Plain):
    def __init__(self) -> None:
        self.file = Path(os.devnull).open("w")  # noqa: SIM115

    def close(self) -> None:
        self.file.close()


class Logs(Plain):
    """An environment that opens its log file at each step."""

    def move(self, action: int) -> None:
        with Path("log.txt").open("a") as file:
            file.write("x")


class Remote(Plain):
    """An environment with a session of a simulator behind a port."""

    def __init__(self) -> None:
        self.port, self.session = PORT, next(NUMBERS)

    def ask(self, word: str) -> float:
        import socket

        with socket.create_connection(("127.0.0.1", self.port), 10) as peer:
            peer.sendall(f"{self.session} {word}\n".encode())
            return float(peer.makefile().readline())

    def begin(self) -> None:
        self.ask("reset")

    def move(self, action: int) -> None:
        self.ask("step")

    def look(self) -> float:
        return self.ask("look")


class Sessions(socketserver.StreamRequestHandler):
    worlds: ClassVar[dict[bytes, int]] = {}

    def handle(self) -> None:
        session, word = self.rfile.readline().split()
        world = self.worlds.get(session, 0)
        self.worlds[session] = {b"reset": 0, b"step": world + 1, b"look": world}[word]
        self.wfile.write(b"%d\n" % self.worlds[session])


class Program(Plain):
    """An environment whose simulator is a program, known by its process id."""

    def __init__(self) -> None:
        program = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid, PROGRAMS[program.pid] = program.pid, program

    def move(self, action: int) -> None:
        program = PROGRAMS[self.pid]
        program.stdin.write(b"1\n")
        program.stdin.flush()
        self.n += int(program.stdout.readline())

    def close(self) -> None:
        with PROGRAMS.pop(self.pid) as program:
            program.kill()


class Temporary(Plain):
    """An environment with a folder that is removed with it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())

    def move(self, action: int) -> None:
        (self.folder / "state").write_text(str(self.n + 1))
        self.n = int((self.folder / "state").read_text())

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def __del__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class SharedMemory(Plain):
    """An environment whose simulator is in named shared memory."""

    def __init__(self) -> None:
        self.memory = shared_memory.SharedMemory(create=True, size=8)

    def move(self, action: int) -> None:
        self._bytes()[0] = (self._bytes()[0] + 1) % 256

    def begin(self) -> None:
        self._bytes()[0] = 0

    def look(self) -> float:
        return float(self._bytes()[0])

    def _bytes(self) -> memoryview:
        assert self.memory.buf is not None
        return self.memory.buf

    def close(self) -> None:
        self.memory.close()
        self.memory.unlink()


class LosesGenerator(Plain):
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_np_random": np.random.default_rng(0)}


class Anew(Plain):
    def __reduce__(self) -> Any:
        return Anew, ()


class Singleton(Plain):
    one: ClassVar[Any]

    def __new__(cls) -> Any:
        if "one" not in vars(cls):
            cls.one = super().__new__(cls)
        return cls.one


class Segfault(Plain):
    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __setstate__(self, state: Any) -> None:
        ctypes.string_at(0)


class Leaves(Segfault):
    def __setstate__(self, state: Any) -> None:
        os._exit(3)


class Exits(Segfault):
    def __setstate__(self, state: Any) -> None:
        sys.exit("no display")


class Hangs(Segfault):
    def __setstate__(self, state: Any) -> None:
        time.sleep(1000)


class Large(Plain):
    def __init__(self) -> None:
        self.data = bytes(65 << 20)


@dataclasses.dataclass(eq=False)
class Data(Plain):
    scale: float = 2.0

    def look(self) -> float:
        return self.scale * self.n


class Slots(Plain):
    __slots__ = ("slot",)

    def __init__(self) -> None:
        self.slot = 0

    def move(self, action: int) -> None:
        self.slot += 1

    def look(self) -> float:
        return self.slot


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class HasEnum(Plain):
    colour = Colour.RED

    def move(self, action: int) -> None:
        self.colour = Colour.GREEN if self.colour is Colour.RED else Colour.RED

    def look(self) -> float:
        return self.colour.value


class Net(Plain):
    """An environment that computes with torch."""

    def __init__(self) -> None:
        import torch

        self.net = torch.nn.Linear(1, 1)
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.fill_(0.5)

    def look(self) -> float:
        import torch

        with torch.no_grad():
            return float(self.net(torch.tensor([float(self.n)])))


class Easy(Plain, gym.utils.EzPickle):
    def __init__(self, k: int = 3) -> None:
        gym.utils.EzPickle.__init__(self, k)
        self.k = k


class Doubles(gym.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        return 2 * observation, 2 * float(reward), *rest


with contextlib.suppress(ImportError):
    from headrace.envs.legacy_gym import import_gym

    old_gym = import_gym()

    class Legacy(old_gym.Env):  # type: ignore[misc, name-defined]
        """Of old gym, registered by the program; its table is the program's too."""

        observation_space = old_gym.spaces.Box(-1e6, 1e6, (1,), np.float32)
        action_space = old_gym.spaces.Discrete(2)

        def __init__(self) -> None:
            self.handle = next(NUMBERS)
            SIMS[self.handle] = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            SIMS[self.handle] = 0
            return np.zeros(1, np.float32), {}

        def step(self, action: int) -> Any:
            SIMS[self.handle] += 1
            return np.array([SIMS[self.handle]], np.float32), 1.0, False, False, {}

    old_gym.register("OnlyHere-v0", entry_point=Legacy)

PLAIN_LAMBDA = lambda: Plain()  # noqa: E731
gym.register("tests/OnlyHere-v0", entry_point=Plain, max_episode_steps=7)  # type: ignore[arg-type]
DIFFERS = "gave a different"
FAILED = "failed where the original did not"
REFUSED = "must not affect other processes or files"
SEGFAULT = "was killed by SIGSEGV; a crash in compiled code"
NO = "cannot be pickled"
#: Name: (EnvCls, reason in a script, reason in a module).
KINDS: dict[str, tuple[Any, str, str]] = {
    "plain": (Plain, "", ""),
    "lambda": (PLAIN_LAMBDA, "", ""),
    "partial": (functools.partial(Data, scale=3.0), "", ""),
    "registered": ("tests/OnlyHere-v0", "", ""),
    "legacy": ("gym:OnlyHere-v0", "", FAILED),
    "wrapped": (lambda: Doubles(gym.wrappers.TimeLimit(Plain(), 5)), "", ""),
    "ezpickle": (Easy, "", ""),
    "dataclass": (Data, "", ""),
    "slots": (Slots, "", ""),
    "enum": (HasEnum, "", ""),
    "torch": (Net, "", ""),
    "reads a file": (Reads, "", ""),
    "cartpole": ("CartPole-v1", "", ""),
    "pendulum": ("Pendulum-v1", "", ""),
    "module global": (ModuleGlobal, DIFFERS, DIFFERS),
    "class attribute": (ClassAttribute, DIFFERS, DIFFERS),
    "global generator": (GlobalGenerator, DIFFERS, DIFFERS),
    "closure": (shares([]), DIFFERS, DIFFERS),
    # The class of a script travels with each copy and becomes two; that of a module stays one, in the copies too.
    "singleton": (Singleton, DIFFERS, ""),
    "loses its generator": (LosesGenerator, DIFFERS, DIFFERS),
    # A script's table travels with each of them; that of a module stays where it is.
    "table": (Simulator, "", FAILED),
    "close removes": (Closing, "", FAILED),
    "del removes": (Deleting, "", FAILED),
    "anew": (Anew, DIFFERS, DIFFERS),
    "exits": (Exits, "SystemExit: no display", "SystemExit: no display"),
    "address": (Address, FAILED, SEGFAULT),  # the script's memory travels, and cannot
    "segfault": (Segfault, SEGFAULT, SEGFAULT),
    "leaves": (Leaves, "ended with exit code 3", "ended with exit code 3"),
    "a port": (Remote, REFUSED, REFUSED),
    "logs": (Logs, REFUSED, REFUSED),
    "temporary": (Temporary, REFUSED, REFUSED),
    "shared memory": (SharedMemory, REFUSED, REFUSED),
    "pointer": (Pointer, NO, NO),
    "database": (Database, NO, NO),
    "connection": (Connected, NO, FAILED),
    "program": (Program, NO, FAILED),
    "thread": (Threaded, NO, NO),
    "writes a file": (Writes, NO, NO),
    "hangs": (Hangs, "are still being tested", "are still being tested"),
    "numpy's generator": (NumpyGlobal, DIFFERS, DIFFERS),
    "large": (Large, "larger than 64 MiB", "larger than 64 MiB"),
}


def batches(sampler: Any) -> Iterator[list[Any]]:
    for itr in range(3):
        samples, _ = sampler.obtain_samples(itr)
        env = samples.env
        yield [leaf.tolist() for leaf in (env.observation, env.reward, env.done, samples.agent.action)]


def one(sampler_name: str, name: str) -> dict[str, Any]:
    """Returns the results of a kind of environment in a sampler: whether batches are the same without `resumable`, why
    it is not saved, and whether its class is still the program's own.
    """
    import headrace.samplers
    from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent

    kind = KINDS[name][0]
    Cls = Legacy if name == "legacy" else kind
    Agent = GaussianPgAgent if name == "pendulum" else CategoricalPgAgent
    workers: dict[str, Any] = {} if "Serial" in sampler_name else {"n_workers": 1}
    found, why_not = [], ""
    for resumable in (False, True):
        RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state
        np.random.seed(0)
        sampler = getattr(headrace.samplers, sampler_name)(
            kind, batch_T=6, batch_B=2, max_decorrelation_steps=5, **workers
        )
        with sampler.initialize(Agent(), seed=0, resumable=resumable):
            found.append(list(batches(sampler)))
            if resumable:
                why_not = sampler.state().why_not
            found.append(list(batches(sampler)))
    step = getattr(Cls, "step", None)
    return {
        "same": found[:2] == found[2:],
        "why": why_not,
        "own": step is None or step.__globals__ is globals(),
    }


def main() -> None:
    """Runs the (sampler, kind) pairs of its argument in turn."""
    global PORT
    import headrace.envs.copy_trial as trial

    Path("levels.txt").write_text("".join(f"{k}\n" for k in range(50)))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Sessions) as server:
        PORT = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for sampler_name, name in json.loads(sys.argv[1]):
            trial._WAIT_SECONDS = 1.0 if name == "hangs" else 100.0  # this machine may have other work
            print(json.dumps(one(sampler_name, name)), flush=True)
        server.shutdown()


if __name__ == "__main__":
    main()
