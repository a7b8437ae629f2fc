"""A model of your own: separate networks for policy and value."""

from __future__ import annotations

import torch

from headrace import Affinity
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import PPO, PPOConfig
from headrace.models import Features
from headrace.runners import MinibatchRl, RunnerConfig
from headrace.samplers import CpuSampler
from headrace.types import EnvSpaces, Tree


class SeparateNetworks(torch.nn.Module):
    """Called as `ModelCls(spaces, n_outputs=number of actions, **model_kwargs)`."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int, width: int = 64) -> None:
        super().__init__()
        self.features = Features(spaces.observation)  # any observation as one flat vector
        self.policy = self._network(n_outputs, width)
        self.value = self._network(1, width)

    def _network(self, n_outputs: int, width: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(self.features.size, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, n_outputs),
        )

    def forward(
        self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[..., n_outputs]` and value `[...]`, for any leading dims."""
        features = self.features(observation)
        return self.policy(features), self.value(features).squeeze(-1)


if __name__ == "__main__":  # workers may start by importing this file
    agent = CategoricalPgAgent(ModelCls=SeparateNetworks, model_kwargs={"width": 32})
    sampler = CpuSampler("CartPole-v1", batch_T=32, batch_B=32)
    # The value has a network of its own here, so its loss need not be kept small.
    algo = PPO(PPOConfig(value_loss_coeff=0.5, clip_grad_norm=10.0))
    one_thread = Affinity(master_torch_threads=1)  # with a model this small, more threads only wait for each other
    config = RunnerConfig(n_steps=25_000, seed=0, log_interval_steps=5_000)
    MinibatchRl(algo, agent, sampler, config, affinity=one_thread).train()
