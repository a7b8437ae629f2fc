"""Callbacks: what a runner tells while it trains, and those that end training early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.algos.base import OptInfo
from headrace.buffers.samples import Samples
from headrace.samplers.traj_info import TrajInfo

if TYPE_CHECKING:
    from headrace.runners.base import Runner

__all__ = ["Callback", "EarlyStop", "StopAtReturn"]


class Callback:
    """Hears what a runner does; this one does nothing, subclasses override what they care for.

    Called between batches, never in one, so it costs a call or two a batch. It may call `runner.stop()`: training then
    ends, in good order, after the batch at hand. One that raises ends training with its error; the checkpoint is
    written as after every error. Callbacks of one runner are called in their order.

    A callback's own memory is not in checkpoints; `runner.counters` is: steps, rows, the best return.
    """

    def on_batch(self, runner: Runner, itr: int, samples: Samples, traj_infos: Sequence[TrajInfo]) -> None:
        """Batch `itr` was collected, and is to be learned from. The next batch writes the memory of `samples` again."""

    def on_optimize(self, runner: Runner, itr: int, opt_info: OptInfo) -> None:
        """The algorithm learned from batch `itr`; `opt_info` is what it says of it."""

    def on_eval(self, runner: Runner, episodes: Sequence[TrajInfo], row: Mapping[str, float]) -> None:
        """A row of the log was written. `episodes` are those it is about: of the evaluation in a runner that evaluates,
        else the last training episodes.
        """

    def on_checkpoint(self, runner: Runner, path: Path) -> None:
        """A checkpoint was written to `path`."""

    def on_end(self, runner: Runner, error: BaseException | None) -> None:
        """Training ended: by itself (None), or by `error`. The sampler is closed."""


@dataclass(frozen=True)
class EarlyStop(Callback):
    """Stops once the mean return has not been better than the best before for `patience` rows of the log."""

    patience: int = 10

    def __post_init__(self) -> None:
        if not self.patience >= 1:
            raise ValueError(f"patience must be at least 1, got {self.patience!r}")

    def on_eval(self, runner: Runner, episodes: Sequence[TrajInfo], row: Mapping[str, float]) -> None:
        """See `Callback`."""
        if runner.counters.rows_since_best >= self.patience:
            runner.stop()


@dataclass(frozen=True)
class StopAtReturn(Callback):
    """Stops once the mean return of a row of the log is at least `mean_return`."""

    mean_return: float

    def __post_init__(self) -> None:
        if math.isnan(self.mean_return):
            raise ValueError("mean_return must be a number, got nan")

    def on_eval(self, runner: Runner, episodes: Sequence[TrajInfo], row: Mapping[str, float]) -> None:
        """See `Callback`."""
        if row.get("ReturnAverage", math.nan) >= self.mean_return:
            runner.stop()
