"""TorchRL: its collectors, over environments in series, in this process or in worker processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from loop import ActorCritic, Collect
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import GymWrapper, SerialEnv
from torchrl.modules import ProbabilisticActor
from worlds import WORKERS, WORLDS, T


def make_env(world: str) -> GymWrapper:
    return GymWrapper(WORLDS[world](), categorical_action_encoding=True)


def make_envs(world: str, B: int) -> SerialEnv:
    return SerialEnv(B, partial(make_env, world))


class Network(ActorCritic):
    """The same network for observations of any number of leading dimensions."""

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, value = super().forward(observation.reshape(-1, 4))
        return logits.reshape(*observation.shape[:-1], -1), value.reshape(*observation.shape[:-1], 1)


def collector(mode: str, world: str, B: int) -> Collect:
    """mode: serial (this process), multi-sync and multi-async (a worker per core, each with its share)."""
    network = TensorDictModule(Network(4, 2), in_keys=["observation"], out_keys=["logits", "state_value"])
    policy = ProbabilisticActor(
        TensorDictSequential(network),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    options: dict[str, Any] = {"policy": policy, "total_frames": -1, "device": "cpu"}
    if mode == "serial":
        rows: Any = Collector(partial(make_envs, world, B), frames_per_batch=T * B, **options)
    else:
        makers: list[Callable[[], SerialEnv]] = [partial(make_envs, world, B // WORKERS)] * WORKERS
        kind = MultiSyncCollector if mode == "multi-sync" else MultiAsyncCollector
        # A batch of the asynchronous one is that of one worker.
        frames = T * B if mode == "multi-sync" else T * B // WORKERS
        rows = kind(makers, frames_per_batch=frames, num_threads=1, **options)
    batches = iter(rows)

    def collect(n_batches: int) -> int:
        return sum(next(batches).numel() for _ in range(n_batches))

    return collect
