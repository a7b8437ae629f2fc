"""Comparisons within one run: contenders take turns, and ratios of their turns have intervals.

The speed of a machine changes from minute to minute, so only turns that lie close to each other can be compared. The
order of a round is reversed in the next one (A B, B A), so that none always runs after the same other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

__all__ = ["Interval", "Turn", "cpu_seconds", "in_turn", "ratio_of", "take_turns", "timed_turn"]

#: How often the rounds of a comparison are drawn again for an interval.
_N_RESAMPLES = 2000


@dataclass(frozen=True)
class Turn:
    """What one contender did in one turn.

    Args:
        steps: environment steps.
        seconds: elapsed time in seconds.
        cpu_seconds: CPU time of the contender's processes in seconds.
    """

    steps: float
    seconds: float
    cpu_seconds: float

    @property
    def steps_per_second(self) -> float:
        """Steps per second of elapsed time."""
        return self.steps / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per step."""
        return self.cpu_seconds / self.steps * 1e6


@dataclass(frozen=True)
class Interval:
    """A median and the interval that contains it with a probability of 95 %.

    Args:
        middle: the median.
        low: lower limit.
        high: upper limit.
    """

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def cpu_seconds(process: psutil.Process) -> float:
    """Returns the CPU time of a process and its descendants in seconds, with those that have ended."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:  # it ended meanwhile, and its time is now in that of its parent
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def timed_turn(collect: Callable[[], int], seconds: float, process: psutil.Process | None = None) -> Turn:
    """Calls `collect` for a given time, and does not count the first tenth of it: after a pause, caches are cold.

    Args:
        collect: returns the number of environment steps that it took.
        seconds: length of the turn in seconds; it ends with the call of `collect` in which they have passed.
        process: process whose CPU time is measured, with its descendants. Default: this process.
    """
    process = process or psutil.Process()
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds / 10:
        collect()
    steps, begin, cpu = 0, time.perf_counter(), cpu_seconds(process)
    while (elapsed := time.perf_counter() - begin) < 0.9 * seconds or not steps:
        steps += collect()
    return Turn(steps, elapsed, cpu_seconds(process) - cpu)


def in_turn(names: Sequence[str], round_: int) -> list[str]:
    """Returns the order of a round: as given in rounds 0, 2, …, reversed in rounds 1, 3, …"""
    return list(names) if round_ % 2 == 0 else list(reversed(names))


def take_turns(
    contenders: Mapping[str, Callable[[], Turn]], n_rounds: int, deadline: float | None = None
) -> dict[str, list[Turn]]:
    """Gives every contender one turn per round.

    Args:
        contenders: functions that take a turn, by name.
        n_rounds: maximum number of rounds.
        deadline: value of `time.monotonic()` after which no further round begins; the first always does.

    Returns:
        The turns of each contender, one per round.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for round_ in range(n_rounds):
        if round_ and deadline is not None and time.monotonic() > deadline:
            break
        for name in in_turn(list(contenders), round_):
            turns[name].append(contenders[name]())
    return turns


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Returns the median ratio of two contenders and its bootstrap interval of 95 %.

    The rounds are drawn again, with replacement, and the median of their ratios is computed each time.

    Args:
        numerators: one value per round, greater than 0.
        denominators: one value for each of the same rounds, greater than 0.

    Raises:
        ValueError: the two have different lengths, or there is no round.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError(
            f"a ratio needs the values of the same rounds, at least one; got {len(numerators)} and {len(denominators)}"
        )
    ratios = np.asarray(numerators, np.float64) / np.asarray(denominators, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(ratios), (_N_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    return Interval(float(np.median(ratios)), float(low), float(high))
