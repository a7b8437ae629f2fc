"""headrace beside other libraries: the same environment, network, T and B, the same data recorded, in turn.

    python benchmarks/peers/install.py --venvs ~/peers
    python benchmarks/peers/compare.py --venvs ~/peers --rounds 5 --out peers.json
    python benchmarks/peers/compare.py --table peers.json

Every library runs in a process of its own (`contender.py`), with workers of its own if it has some. They collect in
turn, in the order A B C, C B A, and are stopped while it is another's turn, since some of them poll. Elapsed time and
CPU time, children included, are measured; the ratios are those of headrace's sampler of the same kind to the library in
the same round.

Environments: `plain` is a CartPole of about 2 µs without wrappers, `make` is `gymnasium.make("CartPole-v1")`, `pong` is
ALE's Pong with a convolutional network. Only environment steps count: a step that only resets an environment
(Gymnasium's NEXT_STEP) does not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from install import VERSIONS, python_of
from table import figures_of, markdown
from worlds import T

from headrace.insight.turns import Turn, take_turns
from headrace.plotting import plot_bars

HERE = Path(__file__).resolve().parent
#: Seconds after which a library that does not start, or does not answer, is left out.
DEADLINE = 100.0
CORES = len(os.sched_getaffinity(0))
#: TorchRL's workers fail now and then where they start slowly: a semaphore is gone before they open it.
ATTEMPTS = 3


@dataclass(frozen=True)
class Contender:
    """One way to collect. group: virtual environment, None: this interpreter; beside: the sampler it is compared with;
    worlds: the environments that it can step.
    """

    name: str
    module: str
    mode: str
    group: str | None
    beside: str
    worlds: tuple[str, ...] = ("plain", "make")


#: Numbers of environments that are measured by default.
WIDTHS = {"plain": (8, 64), "make": (8, 64), "pong": (16,)}
#: EnvPool steps environments of its own, in C++; they stand in the table of the same game.
EACH = ("make", "pong")
#: These have a loop, or a policy of their own, for images, too.
ALL = ("plain", "make", "pong")
CONTENDERS = (
    Contender("headrace serial", "with_headrace", "serial", None, "headrace serial", ALL),
    Contender("Gymnasium Sync", "with_gymnasium", "sync", "current", "headrace serial", ALL),
    Contender("PufferLib Serial", "with_pufferlib", "serial", "current", "headrace serial"),
    Contender("SB3 Dummy", "with_stable_baselines3", "dummy", "current", "headrace serial", ALL),
    Contender("Tianshou Dummy", "with_tianshou", "dummy", "current", "headrace serial"),
    Contender("TorchRL Collector", "with_torchrl", "serial", "current", "headrace serial"),
    Contender("headrace cpu", "with_headrace", "cpu", None, "headrace cpu", ALL),
    Contender("headrace gpu", "with_headrace", "gpu", None, "headrace cpu", ALL),
    Contender("headrace alternating", "with_headrace", "alternating", None, "headrace cpu", ALL),
    Contender("Gymnasium Async", "with_gymnasium", "async", "current", "headrace cpu", ALL),
    Contender("PufferLib Multiprocessing", "with_pufferlib", "multiprocessing", "current", "headrace cpu"),
    Contender("PufferLib pool", "with_pufferlib", "pool", "current", "headrace cpu"),
    Contender("SB3 Subproc", "with_stable_baselines3", "subproc", "current", "headrace cpu", ALL),
    Contender("Tianshou Subproc", "with_tianshou", "subproc", "current", "headrace cpu"),
    Contender("TorchRL MultiSync", "with_torchrl", "multi-sync", "current", "headrace cpu"),
    Contender("TorchRL MultiAsync", "with_torchrl", "multi-async", "current", "headrace cpu"),
    Contender("Sample Factory", "with_sample_factory", "parallel", "sample-factory", "headrace cpu"),
    Contender("headrace vector", "with_headrace", "vector", None, "headrace vector", ("make",)),
    Contender("Gymnasium vector", "with_gymnasium", "vector", "current", "headrace vector", ("make",)),
    Contender("headrace EnvPool", "with_headrace", "envpool", "current", "headrace EnvPool", EACH),
    Contender("headrace EnvPool cpu", "with_headrace", "envpool-cpu", "current", "headrace EnvPool", EACH),
    Contender("EnvPool", "with_envpool", "vector", "current", "headrace EnvPool", EACH),
)


class Process:
    """A contender in a session of its own, stopped unless it is its turn."""

    def __init__(self, contender: Contender, venvs: Path, world: str, B: int) -> None:
        python = sys.executable if contender.group is None else python_of(venvs, contender.group)
        paths = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._name = contender.name
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # `close` closes it
        self._process = subprocess.Popen(
            [python, str(HERE / "contender.py"), contender.module, contender.mode, world, str(B)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )

    def answer(self) -> dict[str, Any]:
        """Returns its next line; raises RuntimeError if there is none."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], DEADLINE)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._log.seek(0)
            said = [line for line in self._log.read().splitlines() if line.strip()]
            why = said[-1] if said and ready else f"no answer within {DEADLINE:.0f} s"
            raise RuntimeError(f"{self._name}: {why}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self, seconds: float) -> Turn:
        """Lets it collect for so long."""
        assert self._process.stdin is not None
        self.signal(signal.SIGCONT)
        self._process.stdin.write(f"{seconds}\n")
        try:
            return Turn(**self.answer())
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        """Signals its whole session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """Ends it with all of its processes."""
        self.signal(signal.SIGKILL)
        self._process.wait(30)
        self._log.close()


def started_one(contender: Contender, venvs: Path, world: str, B: int) -> Process | str:
    """Returns a process that is ready, and stopped; why there is none if it fails each time."""
    why = ""
    for _ in range(ATTEMPTS):
        process = Process(contender, venvs, world, B)
        try:
            process.answer()
        except (RuntimeError, ValueError) as error:
            why = str(error)
            process.close()
        else:
            process.signal(signal.SIGSTOP)
            return process
    return why


@contextmanager
def started(
    contenders: Sequence[Contender], venvs: Path, world: str, B: int, failed: dict[str, str]
) -> Iterator[dict[str, Process]]:
    """Starts them, as many at a time as there are cores; adds to `failed` why one does not start."""
    processes: dict[str, Process] = {}
    pool = ThreadPoolExecutor(CORES)
    starting = [(one.name, pool.submit(started_one, one, venvs, world, B)) for one in contenders]
    try:
        for name, start in starting:
            process = start.result()
            if isinstance(process, str):
                failed[f"{name}, {world}, B={B}"] = process
            else:
                processes[name] = process
        yield processes
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt may come while some still start
        for _, start in starting:
            if not start.cancelled() and isinstance(process := start.result(), Process):
                process.close()


def compare(args: argparse.Namespace, venvs: Path, versions: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that was measured, as plain data."""
    groups = [name for name, found in versions.items() if found["versions"] and python_of(venvs, name).exists()]
    there: set[str | None] = {None, *groups}
    cells: list[dict[str, Any]] = []
    failed = {f"{group} ({what})": why for group, found in versions.items() for what, why in found["errors"].items()}
    places = [(world, B) for world in args.worlds for B in args.B or WIDTHS[world]]
    start = time.monotonic()
    for place, (world, B) in enumerate(places):
        chosen = [
            one
            for one in CONTENDERS
            if world in one.worlds and one.group in there and (not args.only or one.name in args.only)
        ]
        begin = time.perf_counter()
        with started(chosen, venvs, world, B, failed) as processes:
            print(f"{world}, B={B}: {len(processes)} started, {time.perf_counter() - begin:.0f} s", flush=True)
            contenders = {name: partial(process.turn, args.seconds) for name, process in processes.items()}
            try:
                turns = take_turns(contenders, args.rounds, start + args.limit * (place + 1) / len(places))
            except RuntimeError as error:  # the other places may go well
                failed[f"{world}, B={B}"] = str(error)
                continue
        for one in chosen:
            if one.name in turns:
                own = [asdict(turn) for turn in turns[one.name]]
                cells.append(
                    {"contender": one.name, "beside": one.beside, "world": world, "B": B, "T": T, "turns": own}
                )
        print(markdown(figures_of(cells, world, B)), flush=True)
    machine = {"cores": CORES, "processor": platform.processor() or platform.machine()}
    return {"machine": machine, "versions": versions, "cells": cells, "failed": failed}


def tables(found: dict[str, Any]) -> str:
    """Returns all tables, and what is missing from them."""
    places = {(cell["world"], cell["B"]): len(cell["turns"]) for cell in found["cells"]}
    cores = found["machine"]["cores"]
    parts = [
        f"`{world}`, T = {T}, B = {B}, {cores} cores, {rounds} round{'s' * (rounds > 1)}\n\n"
        f"{markdown(figures_of(found['cells'], world, B))}"
        for (world, B), rounds in places.items()
    ]
    missing = [f"- not measured: {what}: {why}" for what, why in found["failed"].items()]
    versions = {name: version for group in found["versions"].values() for name, version in group["versions"].items()}
    return "\n\n".join([*parts, *missing, ", ".join(f"{name} {version}" for name, version in versions.items())]) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws how many times as fast headrace is as each library, in every place."""
    bars = {}
    for world, B in dict.fromkeys((cell["world"], cell["B"]) for cell in found["cells"]):
        for figure in figures_of(found["cells"], world, B):
            if figure.ratio is not None and not figure.contender.startswith("headrace"):
                interval = figure.ratio
                bars[f"{figure.contender}, {world}, B={B}"] = (interval.middle, interval.low, interval.high)
    plot_bars(
        bars,
        path,
        x_label="steps per second of headrace's sampler of the same kind / of the library",
        mark=1.0,
        note="intervals: bootstrap, 95 %",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, help="folder that install.py filled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="of a turn")
    parser.add_argument("--limit", type=float, default=840.0, help="seconds after which no further round begins")
    parser.add_argument("--worlds", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--B", type=int, nargs="+", help="default: 8 and 64, pong 16")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in CONTENDERS], help="some of the contenders")
    parser.add_argument("--out", type=Path, help="JSON file; the table and the picture lie beside it")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of a JSON file")
    args = parser.parse_args()
    if args.table is not None:
        print(tables(json.loads(args.table.read_text())))
        return
    if args.venvs is None or args.out is None:
        parser.error("give --venvs and --out, or --table")
    venvs = args.venvs.expanduser().resolve()
    record = venvs / VERSIONS
    if not record.exists():
        parser.error(f"{record} does not exist; run: python benchmarks/peers/install.py --venvs {args.venvs}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which ends the libraries, too
    found = compare(args, venvs, json.loads(record.read_text()))
    args.out.write_text(json.dumps(found, indent=1))
    args.out.with_suffix(".md").write_text(tables(found))
    draw(found, args.out.with_suffix(".png"))
    for what, why in found["failed"].items():
        print(f"not measured: {what}: {why}")


if __name__ == "__main__":
    main()
