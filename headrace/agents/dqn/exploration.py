"""Schedules of ε as a function of the batch number, shared by all environments or one per environment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["EpsilonSchedule"]


@dataclass(frozen=True, kw_only=True)
class EpsilonSchedule:
    """ε falls linearly from `eps_init` to `eps_final` between the batches `eps_itr_min` and `eps_itr_max`.

    With `eps_final_min`, each environment has its own final value, from `eps_final` in environment 0 to `eps_final_min`
    in the last one, evenly spaced in logarithms: Horgan et al., "Distributed prioritized experience replay", 2018,
    section 4.1.

    Raises ValueError if a value is not a probability, or if the batches or final values are in the wrong order.
    """

    eps_init: float = 1.0
    eps_final: float = 0.01
    eps_final_min: float | None = None
    eps_itr_min: int = 0
    eps_itr_max: int = 1000

    def __post_init__(self) -> None:
        for name in ("eps_init", "eps_final"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {value!r}")
        if self.eps_final_min is not None and not 0.0 < self.eps_final_min <= self.eps_final:
            raise ValueError(
                f"eps_final_min must be above 0 and at most eps_final, {self.eps_final}, got {self.eps_final_min!r}"
            )
        if not 0 <= self.eps_itr_min <= self.eps_itr_max:
            raise ValueError(
                f"eps_itr_min must be at least 0 and at most eps_itr_max, {self.eps_itr_max}, got {self.eps_itr_min!r}"
            )

    def final(self, n_envs: int) -> np.ndarray:
        """Returns the final ε: float32 `[n_envs]`, or `[]` if all environments share it."""
        if self.eps_final_min is None:
            return np.asarray(self.eps_final, np.float32)
        return np.geomspace(self.eps_final, self.eps_final_min, n_envs, dtype=np.float32)

    def at(self, itr: int, n_envs: int) -> np.ndarray:
        """Returns ε in batch `itr`: float32 `[n_envs]`, or `[]` if all environments share it."""
        length = self.eps_itr_max - self.eps_itr_min
        done = min(max((itr - self.eps_itr_min) / length, 0.0), 1.0) if length else float(itr >= self.eps_itr_min)
        # Written in this form because it reaches the final value exactly.
        return np.float32(1 - done) * np.float32(self.eps_init) + np.float32(done) * self.final(n_envs)
