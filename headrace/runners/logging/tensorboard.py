"""Rows of numbers for TensorBoard."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.runners.logging.logger import Logger

__all__ = ["TensorBoardLogger"]

_STATISTIC = re.compile(r"(.+)(Average|Std|Median|Min|Max)")


class TensorBoardLogger(Logger):
    """Writes event files into `log_dir`: a scalar per column, over `CumSteps`; `ReturnMin` is the tag `Return/Min`, so
    that the statistics of one quantity share a section of the page. NaN is left out.

    Raises ImportError, naming the extra, where tensorboard is not installed.
    """

    def __init__(self, log_dir: str | Path) -> None:
        try:
            # Imported for the error now, before environments and workers start.
            import torch.utils.tensorboard as tensorboard
        except ImportError as error:
            raise ImportError('event files need tensorboard; pip install "headrace[tensorboard]"') from error
        self._log_dir = Path(log_dir)
        self._open = tensorboard.SummaryWriter
        self._writer: Any = None

    def start(self, n_steps: int) -> None:
        """See `Logger`. The writer's thread starts here: a runner forks its workers before."""
        self._writer = self._open(str(self._log_dir))

    def row(self, row: Mapping[str, float]) -> None:
        """See `Logger`; flushed."""
        for name, value in row.items():
            if not math.isnan(value):
                self._writer.add_scalar(_STATISTIC.sub(r"\1/\2", name), value, int(row["CumSteps"]))
        self._writer.flush()

    def close(self) -> None:
        """See `Logger`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
