"""Writes log rows for TensorBoard."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from headrace.checkpoints.run_settings import flattened, plain
from headrace.extras import extra
from headrace.runners.logging.logger import Logger

__all__ = ["TensorBoardLogger"]

_STATISTIC = re.compile(r"(.+)(Average|Std|Median|Min|Max)")


class TensorBoardLogger(Logger):
    """Writes event files: one scalar per column, over `CumSteps`, and the settings of the run as hyperparameters.

    `ReturnMin` gets the tag `Return/Min`, so that the statistics of one quantity share a section of the page. NaN is
    left out. The hyperparameters are shown on the page HParams.

    Args:
        log_dir: folder of the event files.

    Raises:
        ImportError: if tensorboard is not installed; the message names the extra.
    """

    def __init__(self, log_dir: str | Path) -> None:
        with extra("tensorboard", "event files need tensorboard"):
            # Import now, so that an error is raised before environments and workers start.
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        self._log_dir = Path(log_dir).absolute()
        self._open, self._hparams = EventFileWriter, hparams_pb
        self._settings: dict[str, bool | int | float | str] = {}
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer: Any = None

    def settings(self, config: Mapping[str, Any]) -> None:
        """See `Logger`."""
        flat = flattened(plain(config))
        self._settings = {name: _hyperparameter(value) for name, value in flat.items()}

    def start(self, n_steps: int) -> None:
        """See `Logger`. The writer's thread is started here because a runner has forked its workers by now."""
        self._writer = self._open(str(self._log_dir))
        if self._settings:
            self._add(0, self._hparams(self._settings))

    def row(self, row: Mapping[str, float]) -> None:
        """See `Logger`. The event file is flushed."""
        values = [
            self._summary.Value(tag=_STATISTIC.sub(r"\1/\2", name), simple_value=value)
            for name, value in row.items()
            if not math.isnan(value)
        ]
        # One event for all values: one event each, as torch's writer does, takes ten times as long.
        summary = self._summary(value=values)
        self._add(int(row["CumSteps"]), summary)

    def close(self) -> None:
        """See `Logger`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, step: int, summary: Any) -> None:
        self._writer.add_event(self._event(wall_time=datetime.now().timestamp(), step=step, summary=summary))
        self._writer.flush()


def _hyperparameter(value: Any) -> bool | int | float | str:
    """Returns a value as TensorBoard accepts it: numbers and booleans unchanged, everything else as text."""
    return value if isinstance(value, bool | int | float) else str(value)
