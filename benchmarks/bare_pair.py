"""The least that processes which step, and one that acts, can do: what samplers with an action server are held against.

Observations and actions lie in shared memory; counters that both sides look at say whose turn it is. Nothing is
recorded, checked or named. Used by `benchmarks/serving.py`.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.types import StepInputs


def shared_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, buffer=mmap.mmap(-1, max(n, 1)))


class BarePair:
    """Some groups of rows, each spread over W processes, acted for in turn; runs while `steps_per_second` does."""

    def __init__(self, env_cls: Any, B: int, W: int, n_groups: int, agent: CategoricalPgAgent) -> None:
        assert agent.spaces is not None
        space = agent.spaces.observation
        assert space.shape is not None
        self._agent = agent
        self._observation = shared_array((B, *space.shape), np.float32)
        self._action = shared_array((B,), np.int64)
        # A counter in every 16th cell: cache lines of its own.
        self._ready = shared_array((n_groups * W * 16,), np.int64).data[::16]
        self._acted = shared_array((n_groups * 16,), np.int64).data[::16]
        self._groups = [group.tolist() for group in np.array_split(np.arange(B), n_groups)]
        self._W = W
        self._round = 0
        zeros = [torch.zeros(len(group)) for group in self._groups]
        self._inputs = [
            StepInputs(
                torch.from_numpy(self._observation[group[0] : group[-1] + 1]),
                zero.long(),
                zero,
                zero.bool(),
                torch.full((len(group), 1), 0.5),
            )
            for group, zero in zip(self._groups, zeros, strict=True)
        ]
        context = multiprocessing.get_context("fork")
        self._processes = [context.Process(target=self._step, args=(env_cls, w), daemon=True) for w in range(W)]
        for process in self._processes:
            process.start()

    def _step(self, env_cls: Any, worker: int) -> None:
        own: Sequence[list[int]] = [np.array_split(group, self._W)[worker].tolist() for group in self._groups]
        envs = {row: env_cls() if callable(env_cls) else gym.make(env_cls) for rows in own for row in rows}
        observation, action, acted = self._observation, self._action, self._acted
        for row, env in envs.items():
            observation[row] = env.reset(seed=row)[0]
        rounds = 0
        while True:
            for group, rows in enumerate(own):
                self._ready[group * self._W + worker] = rounds + 1
                while acted[group] <= rounds:
                    os.sched_yield()
                for row, chosen in zip(rows, action[rows[0] : rows[-1] + 1].tolist(), strict=True):
                    now, _, terminated, truncated, _ = envs[row].step(chosen)
                    if terminated or truncated:
                        now, _ = envs[row].reset()
                    observation[row] = now
            rounds += 1

    def steps_per_second(self, rows: int) -> float:
        """Of all environments, over this many rows."""
        ready, W = self._ready, self._W
        begin = time.perf_counter()
        for _ in range(rows):
            for group, inputs in enumerate(self._inputs):
                for worker in range(group * W, group * W + W):
                    while ready[worker] <= self._round:
                        os.sched_yield()
                with torch.inference_mode():
                    chosen = self._agent.step(inputs, None).action.numpy()
                first = self._groups[group][0]
                self._action[first : first + len(chosen)] = chosen
                self._acted[group] = self._round + 1
            self._round += 1
        return rows * len(self._action) / (time.perf_counter() - begin)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join(5)
