"""PufferLib's vector environments in the loop of `loop.py`, and its pool in a loop for halves of the environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pufferlib.emulation
import pufferlib.vector
import torch
from loop import ActorCritic, Collect, vector_loop
from worlds import WORKERS, WORLDS, T


def collector(mode: str, world: str, B: int) -> Collect:
    """mode: serial (this process), multiprocessing (a worker per core, all of them waited for in each step), pool (the
    same workers, but whichever share of the environments is ready first gets its actions first).
    """

    def make() -> Any:
        return pufferlib.emulation.GymnasiumPufferEnv(env_creator=WORLDS[world])

    if mode == "serial":
        envs = pufferlib.vector.make(make, num_envs=B, backend=pufferlib.vector.Serial)
    else:
        share = B // WORKERS if mode == "pool" else B
        envs = pufferlib.vector.make(
            make, num_envs=B, num_workers=WORKERS, batch_size=share, backend=pufferlib.vector.Multiprocessing
        )
    if mode == "pool":
        return pool_loop(envs, B)

    def step(action: np.ndarray) -> Any:
        return envs.step(action)[:4]

    return vector_loop(lambda: envs.reset(seed=0)[0].reshape(B, 4), step, 2, resets_take_a_step=True)


def pool_loop(envs: Any, B: int) -> Collect:
    """Returns a loop that records each share of the columns in time steps of its own."""
    share = B // WORKERS
    network = ActorCritic(4, 2)
    seen = np.zeros((T, B, 4), np.float32)
    action = np.zeros((T, B), np.int64)
    reward, value, log_prob = (np.zeros((T, B), np.float32) for _ in range(3))
    terminated, truncated = np.zeros((T, B), np.bool_), np.zeros((T, B), np.bool_)
    times = [0] * WORKERS
    envs.async_reset(0)

    def collect(n_batches: int) -> int:
        steps = 0
        for _ in range(n_batches):
            gumbel = torch.empty(T * WORKERS, share, 2).exponential_().log_().neg_()
            with torch.inference_mode():
                for noise in gumbel:
                    observation, rewards, ends, cuts, _, env_ids, _ = envs.recv()
                    first = int(env_ids[0])
                    t, columns = times[first // share], slice(first, first + share)
                    reward[t - 1, columns], terminated[t - 1, columns], truncated[t - 1, columns] = rewards, ends, cuts
                    seen[t, columns] = observation.reshape(share, 4)
                    logits, values = network.forward(torch.from_numpy(seen[t, columns]))
                    log_probs = logits.log_softmax(-1)
                    chosen = (log_probs + noise).argmax(-1, keepdim=True)
                    action[t, columns], value[t, columns] = chosen.numpy()[:, 0], values.numpy()
                    log_prob[t, columns] = log_probs.gather(-1, chosen).numpy()[:, 0]
                    envs.send(action[t, columns])
                    times[first // share] = (t + 1) % T
                    steps += share - int((ends | cuts).sum())
        return steps

    return collect
