"""Callbacks: what a runner calls while it trains, and two callbacks that stop training early."""

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
    """Is called while a runner trains; does nothing by default, and subclasses override the methods they need.

    Methods are called between batches, never within one, so a callback costs one or two calls per batch. It may call
    `runner.stop()`: training then ends in good order after the current batch. If a callback raises, training ends with
    its error, and a checkpoint is written as after every error. Several callbacks of a runner are called in order.

    Checkpoints do not contain the state of callbacks, but do contain `runner.counters`: steps, log rows, best return.
    """

    def on_batch(self, runner: Runner, itr: int, samples: Samples, traj_infos: Sequence[TrajInfo]) -> None:
        """Called after batch `itr` was collected, before it is learned from; the next batch overwrites `samples`."""

    def on_optimize(self, runner: Runner, itr: int, opt_info: OptInfo) -> None:
        """Called after the algorithm learned from batch `itr`; `opt_info` is what `optimize_agent` returned."""

    def on_eval(self, runner: Runner, episodes: Sequence[TrajInfo], row: Mapping[str, float]) -> None:
        """Called after a log row was written.

        Args:
            runner: the runner.
            episodes: the episodes of the row: those of the evaluation if the runner evaluates, else the last training
                episodes.
            row: the numbers by column name.
        """

    def on_checkpoint(self, runner: Runner, path: Path) -> None:
        """Called after a checkpoint was written to `path`."""

    def on_end(self, runner: Runner, error: BaseException | None) -> None:
        """Called when training ended: regularly (`error` is None) or by `error`. The sampler is closed."""


@dataclass(frozen=True)
class EarlyStop(Callback):
    """Stops when the mean return has not exceeded its best value for `patience` log rows.

    Args:
        patience: number of log rows, at least 1.
    """

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
    """Stops when the mean return of a log row reaches `mean_return`.

    Args:
        mean_return: return per episode, not NaN.
    """

    mean_return: float

    def __post_init__(self) -> None:
        if math.isnan(self.mean_return):
            raise ValueError("mean_return must be a number, got nan")

    def on_eval(self, runner: Runner, episodes: Sequence[TrajInfo], row: Mapping[str, float]) -> None:
        """See `Callback`."""
        if row.get("ReturnAverage", math.nan) >= self.mean_return:
            runner.stop()
