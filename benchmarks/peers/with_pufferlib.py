"""PufferLib's vector environments in the loop of `loop.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pufferlib.emulation
import pufferlib.vector
from loop import Collect, vector_loop
from worlds import WORKERS, WORLDS


def collector(mode: str, world: str, B: int) -> Collect:
    """mode: serial (this process), multiprocessing (worker processes, all of them waited for in each step)."""

    def make() -> Any:
        return pufferlib.emulation.GymnasiumPufferEnv(env_creator=WORLDS[world])

    if mode == "serial":
        envs = pufferlib.vector.make(make, num_envs=B, backend=pufferlib.vector.Serial)
    else:
        envs = pufferlib.vector.make(
            make, num_envs=B, num_workers=WORKERS, batch_size=B, backend=pufferlib.vector.Multiprocessing
        )

    def step(action: np.ndarray) -> Any:
        return envs.step(action)[:4]

    return vector_loop(lambda: envs.reset(seed=0)[0].reshape(B, 4), step, B, resets_take_a_step=True)
