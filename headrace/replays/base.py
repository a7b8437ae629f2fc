"""What every replay buffer returns: `Transitions`, or the error `ReplayNotReady` while there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace.types import StepInputs, Tree

__all__ = ["ReplayNotReady", "Transitions"]


class ReplayNotReady(ValueError):
    """Raised when the replay holds no transition that can be sampled yet."""


@dataclass
class Transitions:
    """`N` sampled transitions of up to n steps, in their own memory.

    The target is `return_ + discount · value(next_inputs)`.

    Args:
        inputs: what the agent saw at time step t.
        action: tree of `[N, ...]`.
        return_: float32 `[N]`, Σ_{k<m} γ^k r_{t+k}, where m is n, or less if the episode ended earlier.
        next_inputs: what the agent saw at t + m. If the episode was truncated, its final observation; if it terminated,
            the observation of its last step, which `discount` cancels.
        discount: float32 `[N]`, γ^m, or 0 where the episode terminated.
        weights: float32 `[N]`, importance weights, at most 1.
        indices: which transitions these are, for `update_priorities`.
    """

    inputs: StepInputs
    action: Tree
    return_: torch.Tensor
    next_inputs: StepInputs
    discount: torch.Tensor
    weights: torch.Tensor
    indices: Any
