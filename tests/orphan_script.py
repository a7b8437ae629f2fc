"""Run by test_orphans.py: a program whose environments start programs, or hold the interpreter, until it is killed."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from typing import Any

import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.samplers import AsyncCpuSampler, AsyncSerialSampler, BaseSampler, CpuSampler, GpuSampler
from tests.walk import Walk

KINDS: dict[str, type[BaseSampler]] = {
    "cpu": CpuSampler,
    "gpu": GpuSampler,
    "async": AsyncCpuSampler,
    "async-serial": AsyncSerialSampler,
}


def say(word: str) -> None:
    """Prints a line in one write, because two workers may print at once."""
    os.write(1, f"{word}\n".encode())


def hold_the_interpreter() -> None:
    """Holds the interpreter lock, like a loop in C: no Python code runs, no thread and no signal handler."""
    while True:
        ctypes.PyDLL(None).sleep(1000)


class Holds(Walk):
    """Holds the interpreter in its constructor, or in its third step."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where, self._n_steps = where, 0
        if where == "constructor":
            say("holding")
            hold_the_interpreter()

    def step(self, action: Any) -> Any:
        self._n_steps += 1
        if self._n_steps == 3:
            say("holding")
            hold_the_interpreter()
        return super().step(action)


def start_programs() -> list[int]:
    """Starts one program in this session, and one that moves into the background, with its own session."""
    beside = subprocess.Popen(["sleep", "1000"])
    shell = ["setsid", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]
    behind = subprocess.run(shell, check=True, capture_output=True, text=True).stdout
    return [beside.pid, int(behind)]


class Starts(Walk):
    """Starts a program and prints its process id."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._program = subprocess.Popen(["sleep", "1000"])
        say(str(self._program.pid))


class Leaves(Walk):
    """Starts programs without keeping them, and prints their process ids."""

    def __init__(self, where: str) -> None:
        super().__init__()
        for program in start_programs():
            say(str(program))


def main() -> None:
    kind, what, where, start_method = sys.argv[1:]
    torch.set_num_threads(1)
    env_cls = {"holds": Holds, "starts": Starts, "leaves": Leaves}[what]
    sampler = KINDS[kind](
        env_cls,
        {"where": where},
        batch_T=4,
        batch_B=2,
        n_workers=2,
        max_decorrelation_steps=0,
        start_method=start_method,
    )

    def begin() -> None:
        sampler.initialize(CategoricalPgAgent(), seed=0)

    if where == "thread":
        thread = threading.Thread(target=begin)
        thread.start()
        thread.join(60)
    else:
        begin()
    sampler.obtain_samples(0)
    say("sampled")
    if where == "shutdown":
        sampler.shutdown()
        say("shut down")
    time.sleep(100)


if __name__ == "__main__":
    main()
