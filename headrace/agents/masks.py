"""Action masks: an entry of the observation that is not passed to the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces as gym_spaces

from headrace.types import ACTION_MASK, EnvSpaces

__all__ = ["has_mask", "masked", "seen_spaces", "without_mask"]


def has_mask(spaces: EnvSpaces, size: int | None) -> bool:
    """Returns whether observations contain an action mask.

    Args:
        spaces: spaces of one environment.
        size: number of entries that the mask must have; None: actions cannot be masked.

    Raises:
        TypeError: if the mask has another shape, or actions cannot be masked.
    """
    observation = spaces.observation
    if not isinstance(observation, gym_spaces.Dict) or ACTION_MASK not in observation.spaces:
        return False
    shape = observation[ACTION_MASK].shape
    if size is None or shape != (size,):
        raise TypeError(
            f"the observation's {ACTION_MASK!r} has shape {shape}, but {spaces.action} takes "
            + (f"({size},)" if size is not None else "no mask; rename that key")
        )
    return True


def seen_spaces(spaces: EnvSpaces) -> EnvSpaces:
    """Returns the spaces without the action mask, which the model does not get."""
    assert isinstance(spaces.observation, gym_spaces.Dict)
    return EnvSpaces(gym_spaces.Dict(without_mask(spaces.observation.spaces)), spaces.action)


def without_mask(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a Dict observation, or the parts of its space, without the action mask."""
    return {key: part for key, part in parts.items() if key != ACTION_MASK}


def masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns scores with −∞ where the mask is 0. Masks that allow no action (padding) change nothing.

    Args:
        scores: logits or action values, float `[..., n_actions]`.
        mask: `[..., n_actions]`, nonzero where the action is allowed.
    """
    allowed = mask != 0
    return scores.masked_fill(~allowed & allowed.any(dim=-1, keepdim=True), -torch.inf)
