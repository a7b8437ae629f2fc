"""What a look at a name costs on every store, beside bare redis-py, in one run.

    python benchmarks/streams_names.py                                  # starts redis-server on loopback
    python benchmarks/streams_names.py --redis redis://127.0.0.1:6379

Each takes a turn per round, in turning order. Printed, medians over the rounds: calls per second and CPU µs of this
process per call; for Redis also the ratio to bare redis-py with its interval of 95 %. `get` reads one name of 100,
`add + delete` adds a name with a time to live and deletes it, `subtree` reads all 100.
"""

from __future__ import annotations

import argparse
import importlib
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from headrace.insight.turns import ratio_of, take_turns, timed_turn
from headrace.services import NameRecordRepository, make_repository

N_NAMES = 100
VALUE = "tcp://127.0.0.1:5555"


@contextmanager
def redis_server(folder: str) -> Iterator[str]:
    """Starts a server that stores nothing on disk; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"redis-server --port {port} --bind 127.0.0.1 --appendonly no --dir {folder} --save".split()
    process = subprocess.Popen([*command, ""], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            break
        time.sleep(0.05)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def often(call: Callable[[], object], n: int) -> int:
    for _ in range(n):
        call()
    return n


def add_and_delete(names: NameRecordRepository) -> None:
    names.delete(names.add_subentry("own", VALUE, keepalive_ttl=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--redis", help="URL of a running server; default: one of its own")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        url = options.redis or stack.enter_context(redis_server(folder))
        calls: dict[str, Callable[[], object]] = {}
        for kind, spec in (("memory", "memory"), ("folder", folder), ("redis", url)):
            names = stack.enter_context(make_repository(spec))
            for number in range(N_NAMES):
                names.add(f"bench/{number}", VALUE)
            calls[f"{kind} get"] = partial(names.get, "bench/7")
            calls[f"{kind} subtree"] = partial(names.get_subtree, "bench")
            calls[f"{kind} add + delete"] = partial(add_and_delete, names)
        bare = importlib.import_module("redis").Redis.from_url(url, decode_responses=True)
        bare.set("bare", VALUE)
        calls["bare redis-py get"] = partial(bare.get, "bare")
        contenders = {
            name: partial(timed_turn, partial(often, call, 20), options.seconds) for name, call in calls.items()
        }
        turns = take_turns(contenders, options.rounds)
        bare.close()
    for name, taken in turns.items():
        rate = statistics.median(turn.steps_per_second for turn in taken)
        cpu = statistics.median(turn.cpu_us for turn in taken)
        print(f"{name:22}{rate:12,.0f} /s {cpu:10.1f} CPU µs")
    rates = {name: [turn.steps_per_second for turn in taken] for name, taken in turns.items()}
    print(f"redis get / bare redis-py get: {ratio_of(rates['redis get'], rates['bare redis-py get'])}")


if __name__ == "__main__":
    main()
