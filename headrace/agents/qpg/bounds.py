"""Conversion of Box actions between the environment's units and [−1, 1]."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

__all__ = ["ActionBounds"]

#: Bounds this large mean that a component has none.
_NO_BOUND = 1e6


class _Numbers(NamedTuple):
    """Bounds on one device, float `[d]`: the middle between them, half the distance, the lower and the upper."""

    middle: torch.Tensor
    half: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


class ActionBounds:
    """The bounds of a Box action space `[d]`. Scaled actions are −1 at the lower and 1 at the upper bound.

    A component whose two bounds are equal always has that value; its scaled value is only shifted.

    Args:
        space: the action space of one environment.
        agent: class name of the agent, for the error.

    Raises:
        TypeError: if the space is not a Box `[d]` of floats, or has components without bounds.
    """

    def __init__(self, space: spaces.Space[Any], agent: str) -> None:
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
            raise TypeError(
                f"{agent} acts in Box action spaces [d] of floats, but the environment has {space}; use a "
                "CategoricalPgAgent for Discrete, MultiDiscrete and MultiBinary actions (for Discrete, also a "
                "DqnAgent), or flatten others with an ActionWrapper"
            )
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        unbounded = np.flatnonzero((low <= -_NO_BOUND) | (high >= _NO_BOUND))
        if len(unbounded):
            raise TypeError(
                f"{agent} needs bounds of all actions, but those of component {unbounded[0]} are {low[unbounded[0]]:g} "
                f"and {high[unbounded[0]]:g}; declare the range that the task needs with "
                "gymnasium.wrappers.TransformAction(env, lambda action: action, Box(low, high)), or use a "
                "GaussianPgAgent"
            )
        self.d = space.shape[0]
        half = np.where(low < high, 0.5 * (high - low), 1.0)
        arrays = (0.5 * (low + high), half, low, high)
        self._numbers = _Numbers(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))
        self._scaled_already = bool((low == -1).all() and (high == 1).all())

    def scaled(self, action: torch.Tensor) -> torch.Tensor:
        """Returns actions `[..., d]` in the environment's units as float32 in [−1, 1]."""
        action = action.float()
        if self._scaled_already:
            return action
        numbers = self._on(action.device)
        return (action - numbers.middle) / numbers.half

    def in_units(self, scaled: torch.Tensor) -> torch.Tensor:
        """Returns scaled actions, float32 `[..., d]`, in the environment's units; they never exceed the bounds."""
        if self._scaled_already:
            return scaled.clamp(-1.0, 1.0)
        numbers = self._on(scaled.device)
        return (numbers.middle + numbers.half * scaled).clamp(numbers.low, numbers.high)

    def uniform(self, noise: torch.Tensor) -> torch.Tensor:
        """Returns actions `[..., d]` that are uniform between the bounds, from uniforms `[..., d]` in (0, 1)."""
        return self.in_units(2.0 * noise - 1.0)

    def _on(self, device: torch.device) -> _Numbers:
        """Returns the bounds on a device, and remembers them there."""
        if self._numbers.low.device != device:
            self._numbers = _Numbers(*(tensor.to(device) for tensor in self._numbers))
        return self._numbers
