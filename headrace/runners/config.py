"""The settings of a runner."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headrace.config import checked_names

__all__ = ["RunnerConfig"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class RunnerConfig:
    """How long a runner trains, and how often it logs and saves. Steps are environment steps."""

    n_steps: float = 1e6
    """Environment steps to train for, rounded up to whole batches."""
    seed: int | None = None
    """Seed of all randomness; None: drawn at random."""
    log_interval_steps: float = 1e5
    """Environment steps between log rows; at least one batch."""
    checkpoint_interval_steps: float | None = None
    """Environment steps between checkpoints; at least one batch. None: a checkpoint at every log row."""
    log_traj_window: int = 100
    """Number of training episodes that a log row summarizes; runners that evaluate log the evaluation instead."""

    def __post_init__(self) -> None:
        for name in ("n_steps", "log_interval_steps", "checkpoint_interval_steps", "log_traj_window"):
            value = getattr(self, name)
            if value is None and name == "checkpoint_interval_steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
            if not (math.isfinite(value) and value >= 1):
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        for name, value in (("log_traj_window", self.log_traj_window), ("seed", self.seed)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name} must be a whole number, got {type(value).__name__} {value!r}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed!r}")
