"""Where the time of sampling goes: whole batches always, one row in 61 in detail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.types import Timing

__all__ = ["ServerTiming", "TimingReport"]


@dataclass
class ServerTiming:
    """Where an action server's time went, nanoseconds: waiting for rows, and acting."""

    waiting_ns: int = 0
    acting_ns: int = 0


@dataclass(frozen=True)
class TimingReport:
    """Where the time went since `initialize`.

    steps: environment steps; seconds: inside `obtain_samples`; steps_per_second; the shares (of the workers' time)
    add up to 1: env (inside `env.step`), reset, acting (the agent, or waiting for its actions), recording (checks,
    copies, bookkeeping); idle: the share of the sampler's time in which its workers were not collecting (start of a
    batch, waiting for the slowest worker, assembling the batch). server_acting, server_waiting: of an action server,
    the shares of `seconds` it acted and waited for rows; None without one. A server that hardly waits is what there is
    too little of; one that hardly acts could serve more workers.
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
        """Sums over the loops of a sampler; `seconds` is the sampler's own clock."""
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
        """The same, with what action servers counted: the mean of several."""
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
