"""How far a run has come."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass
class Counters:
    """Since the start of training: batches, environment steps, ended episodes, seconds collecting and optimizing; rows
    of the log, the best mean return of a row (−inf before the first), and how many rows with a return came since.
    """

    itr: int = 0
    steps: int = 0
    trajs: int = 0
    sample_seconds: float = 0.0
    optimize_seconds: float = 0.0
    rows: int = 0
    best_return: float = -math.inf
    rows_since_best: int = 0
