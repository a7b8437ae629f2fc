"""How many rows workers take before a call that may not wait long looks at the clock again."""

from __future__ import annotations

import math
import time

__all__ = ["Pace"]


class Pace:
    """Limits the rows between two looks at the clock, for calls that may not wait long.

    Args:
        max_wait: seconds; None: without limit.
    """

    def __init__(self, max_wait: float | None) -> None:
        self._began = time.monotonic()
        self._deadline = math.inf if max_wait is None else self._began + max_wait
        self._n_rows = 0

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._deadline

    def most(self, n_rows: int) -> int:
        """Returns `n_rows`, or as many as the time that is left allows, at least 1."""
        if self._deadline == math.inf:
            return n_rows
        now = time.monotonic()
        per_row = (now - self._began) / self._n_rows if self._n_rows else math.inf
        return max(1, min(n_rows, int((self._deadline - now) / per_row)))

    def note(self, n_rows: int) -> None:
        """Counts rows that were taken."""
        self._n_rows += n_rows
