"""What logs, progress, callbacks and checkpoints take of a training.

    python benchmarks/logging_cost.py --env CartPole-v1 --n-steps 200000

Trains as `headrace train` does, with CSV, console table, progress bar and two callbacks, and counts the time inside of
them; statistics of a row of the log included. Checkpoints, which wait for the disk, are a line of their own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from headrace.checkpoints.store import CheckpointStore
from headrace.cli.build import agent_for, algo_for, defaults_for, training_sampler
from headrace.cli.environments import factory_of, spaces_of
from headrace.processes.affinity import Affinity
from headrace.runners.base import Runner
from headrace.runners.callbacks import Callback
from headrace.runners.logging.console import ConsoleLogger
from headrace.runners.logging.logger import Loggers
from headrace.runners.minibatch import MinibatchRl

spent: dict[str, float] = defaultdict(float)
_inside: list[str] = []


def timed(cls: type, name: str, what: str) -> None:
    """Counts the time in a method as `what`, without the time of what is counted inside of it."""
    original: Callable[..., Any] = getattr(cls, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begin, before = time.perf_counter(), sum(spent.values())
        _inside.append(what)
        try:
            return original(*args, **kwargs)
        finally:
            _inside.pop()
            if what not in _inside:
                spent[what] += time.perf_counter() - begin - (sum(spent.values()) - before)

    setattr(cls, name, wrapper)


class Counting(Callback):
    """Hears of everything."""

    def on_batch(self, *args: Any) -> None:
        self.batches = getattr(self, "batches", 0) + 1

    def on_optimize(self, *args: Any) -> None:
        self.updates = getattr(self, "updates", 0) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--n-steps", type=float, default=200_000)
    args = parser.parse_args()
    spaces = spaces_of(factory_of(args.env, {}))
    options = replace(defaults_for("ppo", args.env, spaces, None), env=args.env)
    options = replace(options, runner=replace(options.runner, n_steps=args.n_steps))
    for name in ("start", "row", "progress", "message"):
        timed(Loggers, name, "logs")
    timed(Runner, "_log", "logs")
    for name in ("on_batch", "on_optimize"):
        timed(Counting, name, "callbacks")
    for name in ("save", "save_best"):
        timed(CheckpointStore, name, "checkpoints")
    timed(Runner, "_save", "checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        runner = MinibatchRl(
            algo_for(options),
            agent_for(spaces, options),
            training_sampler(options),
            options.runner,
            affinity=Affinity(master_torch_threads=1),
            log_dir=folder,
            logger=ConsoleLogger(),
            callbacks=[Counting(), Counting()],
        )
        begin = time.perf_counter()
        runner.train()
        seconds = time.perf_counter() - begin
    for what in ("logs", "callbacks", "checkpoints"):
        print(f"{what:12} {spent[what]:.3f} s of {seconds:.1f}, {spent[what] / seconds:.2%}")


if __name__ == "__main__":
    main()
