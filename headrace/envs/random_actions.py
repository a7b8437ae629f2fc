"""Random actions, as decorrelation and the checks of environments take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from headrace.buffers.tree import tree_map, tree_rows
from headrace.envs.spaces import encoded_action
from headrace.types import ACTION_MASK, Tree

__all__ = ["random_action", "random_actions"]


def random_action(space: spaces.Space[Any], observation: Tree) -> Any:
    """Samples an action, by the observation's action mask if it has one; see `ACTION_MASK`."""
    if not isinstance(observation, dict) or ACTION_MASK not in observation:
        return space.sample()
    mask = observation[ACTION_MASK].astype(np.int8)
    match space:
        case spaces.Discrete():
            return space.sample(mask)
        case spaces.MultiDiscrete():
            return space.sample(tuple(np.split(mask, np.cumsum(space.nvec)[:-1])))
    return space.sample()


def random_actions(action_spaces: Sequence[spaces.Space[Any]], observation: Tree, skipped: np.ndarray) -> Tree:
    """Samples an action from the space of each column, by the observation's action mask if it has one.

    Args:
        action_spaces: the action spaces of the `n` columns, which have generators of their own.
        observation: tree of `[n, ...]`, the current observations.
        skipped: bool `[n]`, columns that get no action: their spaces are not sampled, their actions are zero.

    Returns:
        The actions as they are recorded, a tree of `[n, ...]`.
    """
    drawn = {
        column: encoded_action(space, random_action(space, tree_rows(observation, column)))
        for column, space in enumerate(action_spaces)
        if not skipped[column]
    }
    null = tree_map(np.zeros_like, next(iter(drawn.values())))
    return tree_map(lambda *leaves: np.stack(leaves), *(drawn.get(column, null) for column in range(len(skipped))))
