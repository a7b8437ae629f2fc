"""EnvPool in the loop of `loop.py`: its own environments, in C++, stepped by its threads."""

from __future__ import annotations

from typing import Any

import envpool
import numpy as np
from loop import Collect, vector_loop
from worlds import ENV_IDS, torch_threads


def collector(mode: str, world: str, B: int) -> Collect:
    """mode: vector, which waits for all environments of each step."""
    envs = envpool.make(ENV_IDS[world], env_type="gymnasium", num_envs=B, seed=0, num_threads=torch_threads(world))

    def step(action: np.ndarray) -> Any:
        return envs.step(action.astype(np.int32))[:4]

    return vector_loop(lambda: envs.reset()[0], step, int(envs.action_space.n), resets_take_a_step=True)
