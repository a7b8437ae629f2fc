"""What replay buffers return: `Transitions` or `Sequences`, or the error `ReplayNotReady` while there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from headrace.types import StepInputs, Tree

__all__ = ["Drawn", "ReplayNotReady", "Sequences", "Transitions"]


class ReplayNotReady(ValueError):
    """Raised when the replay holds nothing that can be sampled yet."""


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


@dataclass
class Sequences:
    """`N` sampled sequences of successive time steps, in their own memory.

    A sequence has W + T + n time steps: the W = `warmup_T` first ones only bring the recurrent state up to date, the
    T = `batch_T` next ones are learned from, and the n = `n_step` last ones complete their targets. Sequences may
    contain ends of episodes. After the last step of a truncated episode there is a row more, with the episode's final
    observation, so that the agent's outputs for all L rows have the value of everything that a target bootstraps from::

        value = agent(inputs, state)                        # [L, N]
        target = return_ + discount · value[next_row]       # [T, N], to compare with value[row]

    Args:
        inputs: what the agent saw, trees of `[L, N, ...]`; L = W + T + n, and more if episodes were truncated. What
            is in no sequence, at the end of a column, repeats its last time step.
        state: recurrent state before row 0, tree of `[N, ...]`; None if none are stored.
        action: tree of `[T, N, ...]`, of the learned time steps.
        row: int64 `[T, N]`, their rows among the inputs; the first one is always row W.
        return_: float32 `[T, N]`, Σ_{k<m} γ^k r_{t+k}, where m is n, or less if the episode ended earlier.
        next_row: int64 `[T, N]`, row of what follows the m-th reward: the final observation if the episode was
            truncated; if it terminated, the row itself, which `discount` cancels.
        discount: float32 `[T, N]`, γ^m, or 0 where the episode terminated.
        valid: bool `[T, N]`, False for padding, where all of the above has no meaning.
        weights: float32 `[N]`, importance weights, at most 1.
        indices: which sequences these are, for `update_priorities`.
    """

    inputs: StepInputs
    state: Tree
    action: Tree
    row: torch.Tensor
    return_: torch.Tensor
    next_row: torch.Tensor
    discount: torch.Tensor
    valid: torch.Tensor
    weights: torch.Tensor
    indices: Any


#: What a replay samples.
Drawn = TypeVar("Drawn", bound=Transitions | Sequences)
