"""Compares samplers on one environment and says which one to use."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headrace.insight.turns import Interval, Turn, ratio_of, take_turns, timed_turn
from headrace.samplers.base import BaseSampler
from headrace.samplers.timing import TimingReport

__all__ = ["BenchReport", "SamplerFigures", "bench", "bottleneck", "collecting", "simplest_of_the_fastest"]

#: More rounds would hardly narrow the intervals, and fewer than three have none worth the name.
_MOST_ROUNDS, _LEAST_ROUNDS = 12, 3
#: A sampler with this share of the fastest one's steps per second is as good, if it is simpler.
_AS_FAST = 0.95
#: A part of the workers' time that takes this share of it is the bottleneck.
_MOST_OF_THE_TIME = 0.5


@dataclass(frozen=True)
class SamplerFigures:
    """What was measured of one sampler.

    Args:
        sampler: its name.
        steps_per_second: environment steps per second, median of the turns.
        of_first: ratio of its steps per second to those of the first sampler, in the same rounds.
        cpu_us: CPU microseconds per step, of all processes, median of the turns.
        timing: where its time went.
    """

    sampler: str
    steps_per_second: float
    of_first: Interval
    cpu_us: float
    timing: TimingReport


@dataclass(frozen=True)
class BenchReport:
    """A comparison of samplers.

    Args:
        figures: one entry for each sampler, in the order in which they were given.
        n_rounds: rounds that were measured.
        recommended: the name of the sampler to use.
    """

    figures: tuple[SamplerFigures, ...]
    n_rounds: int
    recommended: str

    def table(self) -> list[str]:
        """Returns the lines of a table: one line for each sampler, below a heading."""
        first = self.figures[0].sampler
        heading = ("sampler", "steps/s", f"ratio to {first}", "CPU µs", "env", "agent", "record", "idle", "server")
        rows: list[tuple[str, ...]] = [heading]
        for one in self.figures:
            timing = one.timing
            shares = (timing.env + timing.reset, timing.acting, timing.recording, timing.idle)
            server = "" if timing.server_acting is None else f"{timing.server_acting:.0%}"
            of_first = "1" if one.sampler == first else str(one.of_first)
            figures = (f"{one.steps_per_second:,.0f}", of_first, f"{one.cpu_us:.1f}")
            rows.append((one.sampler, *figures, *(f"{share:.0%}" for share in shares), server))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return [
            "  ".join(
                text.ljust(width) if column == 0 else text.rjust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]

    def plain(self) -> dict[str, Any]:
        """Returns the report as plain data, for JSON."""
        return asdict(self)


def collecting(sampler: BaseSampler) -> Callable[[], int]:
    """Returns a function that collects one batch and returns the number of environment steps in it."""
    itr = 0

    def collect() -> int:
        nonlocal itr
        samples, _ = sampler.obtain_samples(itr)
        itr += 1
        return int(samples.env.valid.sum())

    return collect


def bench(samplers: Mapping[str, BaseSampler], seconds: float) -> BenchReport:
    """Lets samplers collect in turn, and compares them.

    Args:
        samplers: initialized samplers by name, with the same environments and batches, the simplest first.
        seconds: how long to measure, in seconds. Three rounds are always measured.

    Raises:
        SamplerError: an environment, the agent or a worker fails.
        ValueError: there is no sampler.
    """
    if not samplers:
        raise ValueError("give at least one sampler to measure")
    deadline = time.monotonic() + seconds
    collect = {name: collecting(sampler) for name, sampler in samplers.items()}
    for name in samplers:
        for _ in range(2):  # memory that is touched for the first time is slow
            collect[name]()
    length = max(0.0, deadline - time.monotonic()) / (_MOST_ROUNDS * len(samplers))

    def turn_of(name: str) -> Callable[[], Turn]:
        return lambda: timed_turn(collect[name], length)

    contenders = {name: turn_of(name) for name in samplers}
    turns = take_turns(contenders, _LEAST_ROUNDS)
    for name, more in take_turns(contenders, _MOST_ROUNDS - _LEAST_ROUNDS, deadline).items():
        turns[name] += more
    rates = {name: [turn.steps_per_second for turn in own] for name, own in turns.items()}
    first = next(iter(rates.values()))
    figures = tuple(
        SamplerFigures(
            sampler=name,
            steps_per_second=statistics.median(rates[name]),
            of_first=ratio_of(rates[name], first),
            cpu_us=statistics.median(turn.cpu_us for turn in turns[name]),
            timing=sampler.timing(),
        )
        for name, sampler in samplers.items()
    )
    return BenchReport(figures, len(first), simplest_of_the_fastest(rates))


def simplest_of_the_fastest(rates: Mapping[str, Sequence[float]]) -> str:
    """Returns the first sampler that is as fast as the fastest: at least 95 % of it, or not shown to be slower.

    Args:
        rates: steps per second in each round, by sampler, the simplest first.
    """
    fastest = max(rates, key=lambda name: statistics.median(rates[name]))
    for name, own in rates.items():
        ratio = ratio_of(own, rates[fastest])
        if ratio.middle >= _AS_FAST or ratio.high >= 1:
            return name
    return fastest


def bottleneck(timing: TimingReport) -> str:
    """Returns a sentence that says what limits a sampler, and what helps."""
    if timing.idle > _MOST_OF_THE_TIME:
        return (
            "Workers mostly wait for the slowest of them and for the next batch: more time steps per batch (batch_T), "
            "or fewer workers, help."
        )
    if timing.env + timing.reset > _MOST_OF_THE_TIME:
        return (
            "Most of the time is spent in the environment: more cores, or a vector environment in compiled code, help; "
            "another network does not."
        )
    if timing.acting > _MOST_OF_THE_TIME:
        return (
            "Most of the time is spent in the agent, or waiting for its actions: more environments per batch "
            "(batch_B), a smaller network or a GPU help."
        )
    return "No part takes most of the time; more environments per batch (batch_B) reduce what each time step costs."
