"""Stable-Baselines3: PPO, which collects with its own loop into its RolloutBuffer, and does not learn here."""

from __future__ import annotations

from typing import Any

import torch
from loop import Collect
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from worlds import WORLDS, T


class Body(BaseFeaturesExtractor):  # type: ignore[misc]
    """The hidden layers, which policy and value share; its own networks share none."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, features_dim=64)
        tanh, linear = torch.nn.Tanh, torch.nn.Linear
        self.layers = torch.nn.Sequential(linear(4, 64), tanh(), linear(64, 64), tanh())

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.layers(observation)


class Collecting(PPO):  # type: ignore[misc]
    """A PPO that drops its batches."""

    def train(self) -> None:
        pass


def collector(mode: str, world: str, B: int) -> Collect:
    """mode: dummy (this process), subproc (a process per environment)."""
    makers = [WORLDS[world]] * B
    envs: VecEnv = SubprocVecEnv(makers, start_method="fork") if mode == "subproc" else DummyVecEnv(makers)
    network: dict[str, Any] = {"net_arch": []}
    if world != "pong":  # its policy for images has headrace's network
        network["features_extractor_class"] = Body
    policy = "CnnPolicy" if world == "pong" else "MlpPolicy"
    learner = Collecting(policy, envs, n_steps=T, batch_size=T * B, policy_kwargs=network, device="cpu", seed=0)

    def collect(n_batches: int) -> int:
        learner.learn(n_batches * T * B, log_interval=None, reset_num_timesteps=False)
        return n_batches * T * B

    return collect
