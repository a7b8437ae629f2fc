"""Masks of forbidden actions: a part of the observation that models do not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces as gym_spaces

from headrace.types import ACTION_MASK, EnvSpaces

__all__ = ["has_mask", "masked", "seen_spaces", "without_mask"]


def has_mask(spaces: EnvSpaces, size: int | None) -> bool:
    """Whether observations hold a mask; raises TypeError if it is not of `size` entries (None: actions take none)."""
    observation = spaces.observation
    if not isinstance(observation, gym_spaces.Dict) or ACTION_MASK not in observation.spaces:
        return False
    shape = observation[ACTION_MASK].shape
    if size is None or shape != (size,):
        raise TypeError(
            f"the observation's {ACTION_MASK!r} has shape {shape}, actions {spaces.action} take "
            + (f"({size},)" if size is not None else "no mask; rename that key")
        )
    return True


def seen_spaces(spaces: EnvSpaces) -> EnvSpaces:
    """The spaces a model sees, of observations that hold a mask."""
    assert isinstance(spaces.observation, gym_spaces.Dict)
    return EnvSpaces(gym_spaces.Dict(without_mask(spaces.observation.spaces)), spaces.action)


def without_mask(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The other parts of a Dict observation, or of its space."""
    return {key: part for key, part in parts.items() if key != ACTION_MASK}


def masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores of actions, −∞ where the mask is 0; rows that allow nothing (padding) stay as they are."""
    allowed = mask != 0
    return scores.masked_fill(~allowed & allowed.any(dim=-1, keepdim=True), -torch.inf)
