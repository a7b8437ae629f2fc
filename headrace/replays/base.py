"""What every replay buffer gives: transitions, or the error that there are none yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace.types import StepInputs, Tree

__all__ = ["ReplayNotReady", "Transitions"]


class ReplayNotReady(ValueError):
    """There is no transition to sample yet."""


@dataclass
class Transitions:
    """`N` sampled transitions of up to n steps, in memory of their own.

    inputs: what the agent saw at t; action: tree of `[N, ...]`; `return_`: float32 `[N]`, Σ_{k<m} γ^k r_{t+k}, where m
    is n, or less where the episode ended earlier; next_inputs: what it saw at t + m, or, where the episode was
    truncated, its final observation; discount: float32 `[N]`, γ^m, 0 where the episode terminated (next_inputs are then
    those of its last step); weights: float32 `[N]`, importance weights, at most 1; indices: for `update_priorities`.

    The target is `return_ + discount · value(next_inputs)`.
    """

    inputs: StepInputs
    action: Tree
    return_: torch.Tensor
    next_inputs: StepInputs
    discount: torch.Tensor
    weights: torch.Tensor
    indices: Any
