"""The settings that all algorithms with a replay have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headrace.algos.adam import AdamConfig
from headrace.algos.checks import require
from headrace.config import checked_names
from headrace.replays.hindsight import HindsightConfig

__all__ = ["OffPolicyConfig"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(AdamConfig):
    """The settings that all algorithms with a replay have."""

    discount: float = 0.99
    """γ, the weight of the next step's reward."""
    batch_size: int = 128
    """Transitions in one update."""
    replay_ratio: float = 32.0
    """How many times a step is learned from, on average: updates · batch_size / environment steps."""
    replay_size: int = 100_000
    """Capacity of the replay, in environment steps."""
    min_steps_learn: int = 1_000
    """Environment steps in the replay before the first update."""
    n_step: int = 5
    """Number of rewards in a target before it bootstraps."""
    target_update_interval: int = 100
    """Updates between two updates of the target network."""
    target_update_tau: float = 1.0
    """Fraction by which such an update moves the target towards the learning network; 1 copies it."""
    clip_grad_norm: float | None = 10.0
    """The gradient is scaled down to this norm; None: it is not scaled."""
    prioritized_replay: bool = False
    """Sample transitions with large errors more often, with importance weights (Schaul et al., 2016)."""
    pri_alpha: float = 0.6
    """α, the exponent of priorities; 0 samples uniformly."""
    pri_beta_init: float = 0.4
    """β at the start, the exponent of importance weights."""
    pri_beta_final: float = 1.0
    """β at the end of training; in between it changes linearly."""
    frames: int = 0
    """Number of frames that observations stack along their first axis, to store each frame once; 0: store observations
    as they come."""
    hindsight: HindsightConfig | None = None
    """Learn from transitions whose goals are replaced by goals that were reached later (see `HindsightGather`); None:
    from the goals of the environment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "target_update_tau"):
            require(name, getattr(self, name), 0.0, 1.0)
        for name in ("replay_ratio", "pri_alpha", "pri_beta_init", "pri_beta_final", "frames"):
            require(name, getattr(self, name), 0.0, math.inf)
        if self.clip_grad_norm is not None:
            require("clip_grad_norm", self.clip_grad_norm, 0.0, math.inf)
        for name in ("batch_size", "min_steps_learn", "n_step", "target_update_interval"):
            require(name, getattr(self, name), 1, math.inf)
        require("replay_size", self.replay_size, self.min_steps_learn, math.inf)
