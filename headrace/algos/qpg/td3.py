"""TD3, which learns a deterministic policy and keeps its critics from overestimating."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headrace.agents.qpg.deterministic import Td3Agent
from headrace.algos.base import OptInfo
from headrace.algos.checks import require
from headrace.algos.qpg.base import QpgAlgo, QpgConfig
from headrace.config import checked_names, settings_in
from headrace.replays.base import Transitions

__all__ = ["TD3", "TD3Config"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class TD3Config(QpgConfig):
    """The settings of `TD3`."""

    learning_rate: float = 1e-3
    """Adam's step size for the critics."""
    policy_update_interval: int = 2
    """Updates of the critics per update of the policy."""
    target_update_interval: int = 2
    """Updates between two updates of the target networks."""
    target_noise_std: float = 0.2
    """Standard deviation of the noise on the target policy's scaled actions."""
    target_noise_clip: float = 0.5
    """Largest absolute value of this noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("policy_update_interval", self.policy_update_interval, 1, math.inf)
        for name in ("target_noise_std", "target_noise_clip"):
            require(name, getattr(self, name), 0.0, math.inf)


@settings_in(TD3Config)
class TD3(QpgAlgo):
    """Learns a deterministic policy by the gradient of the first of two critics::

        ã = clip(μ_target(s') + clip(ε, −c, c), −1, 1),  ε ~ N(0, σ)
        critics:  minimize (return + discount · min_i Q_target,i(s', ã) − Q_i(s, a))²
        policy, less often:  maximize Q_1(s, μ(s))

    Fujimoto, van Hoof and Meger, "Addressing function approximation error in actor-critic methods", 2018, algorithm 1.
    The agent is a `Td3Agent`.

    Args:
        config: the settings; None: the defaults.
    """

    AgentCls = Td3Agent
    config: TD3Config
    _agent: Td3Agent
    _target: Td3Agent

    def __init__(self, config: TD3Config | None = None) -> None:
        super().__init__(TD3Config() if config is None else config)

    def next_values(self, transitions: Transitions) -> torch.Tensor:
        """See `QpgAlgo`."""
        config, target, following = self.config, self._target, transitions.next_inputs
        action = target(following).mean
        noise = config.target_noise_std * self.normal(action.shape)
        action = (action + noise.clamp(-config.target_noise_clip, config.target_noise_clip)).clamp(-1.0, 1.0)
        return target.q(following, action).amin(dim=0)

    def update_policy(self, itr: int, transitions: Transitions) -> OptInfo:
        """See `QpgAlgo`."""
        if (self._n_updates + 1) % self.config.policy_update_interval:
            return {}
        agent, inputs = self._agent, transitions.inputs
        return self.step_policy(itr, transitions, -agent.first_q(inputs, agent(inputs).mean).mean(), {})
