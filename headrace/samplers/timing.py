"""Timing of sampling: whole batches are always timed, and one row in 61 is timed in detail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.types import Timing

__all__ = ["ServerTiming", "TimingReport"]


@dataclass
class ServerTiming:
    """How an action server spent its time.

    Args:
        waiting_ns: nanoseconds spent waiting for rows.
        acting_ns: nanoseconds spent acting.
    """

    waiting_ns: int = 0
    acting_ns: int = 0


@dataclass(frozen=True)
class TimingReport:
    """How the time since `initialize` was spent.

    The four shares of the workers' time (env, reset, acting, recording) add up to 1. If the server hardly waits, it is
    the bottleneck; if it hardly acts, it could serve more workers.

    Args:
        steps: number of environment steps.
        seconds: seconds spent in `obtain_samples`; for asynchronous samplers, since the first batch was commanded.
        steps_per_second: steps / seconds.
        env: share of the workers' time spent in `env.step`.
        reset: share spent in resets.
        acting: share spent in the agent, or waiting for its actions.
        recording: share spent in checks, copies and bookkeeping.
        idle: share of the sampler's time in which its workers were not collecting: start of a batch, waiting for the
            slowest worker, assembling the batch.
        server_acting: share of `seconds` that an action server spent acting; None without a server.
        server_waiting: share of `seconds` that an action server spent waiting for rows; None without a server.
    """

    steps: int
    seconds: float
    steps_per_second: float
    env: float
    reset: float
    acting: float
    recording: float
    idle: float
    server_acting: float | None = None
    server_waiting: float | None = None

    @staticmethod
    def of(timings: Sequence[Timing], seconds: float) -> TimingReport:
        """Returns the report of a sampler.

        Args:
            timings: counters of the sampler's collection loops.
            seconds: elapsed time by the sampler's own clock.
        """
        steps = sum(timing.steps for timing in timings)
        row = max(sum(timing.row_ns for timing in timings), 1)
        env = sum(timing.env_ns for timing in timings) / row
        reset = sum(timing.reset_ns for timing in timings) / row
        acting = sum(timing.acting_ns for timing in timings) / row
        busy = sum(timing.batch_ns for timing in timings) / max(len(timings), 1) * 1e-9
        return TimingReport(
            steps=steps,
            seconds=seconds,
            steps_per_second=steps / seconds if seconds else 0.0,
            env=env,
            reset=reset,
            acting=acting,
            recording=max(0.0, 1.0 - env - reset - acting) if steps else 0.0,
            idle=max(0.0, 1.0 - busy / seconds) if seconds else 0.0,
        )

    def with_servers(self, timings: Sequence[ServerTiming]) -> TimingReport:
        """Returns this report with the shares of action servers, averaged over several servers."""
        if not timings or not self.seconds:
            return self
        whole = self.seconds * len(timings) * 1e9
        acting, waiting = sum(one.acting_ns for one in timings), sum(one.waiting_ns for one in timings)
        return replace(self, server_acting=acting / whole, server_waiting=waiting / whole)

    def __str__(self) -> str:
        server = ""
        if self.server_acting is not None and self.server_waiting is not None:
            server = f"; server: acting {self.server_acting:.0%}, waiting {self.server_waiting:.0%}"
        return (
            f"{self.steps:,} steps in {self.seconds:.2f} s, {self.steps_per_second:,.0f} steps/s: "
            f"env {self.env:.0%}, reset {self.reset:.0%}, acting {self.acting:.0%}, recording {self.recording:.0%}; "
            f"idle {self.idle:.0%}{server}"
        )
