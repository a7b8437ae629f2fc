"""Gymnasium's vector environments in the loop of `loop.py`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from loop import Collect, vector_loop
from worlds import ENV_IDS, WORLDS


def collector(mode: str, world: str, B: int) -> Collect:
    """mode: sync (this process), async (a process per environment), vector (CartPole written for arrays)."""
    envs: VectorEnv[Any, Any, Any]
    if mode == "vector":
        envs = gym.make_vec(ENV_IDS[world], num_envs=B, vectorization_mode="vector_entry_point")
    elif mode == "async":
        envs = AsyncVectorEnv([WORLDS[world]] * B, shared_memory=True, copy=False)
    else:
        envs = SyncVectorEnv([WORLDS[world]] * B, copy=False)

    def step(action: np.ndarray) -> Any:
        return envs.step(action)[:4]

    n_actions = int(envs.single_action_space.n)  # type: ignore[attr-defined]
    return vector_loop(lambda: envs.reset(seed=0)[0], step, n_actions, resets_take_a_step=True)
