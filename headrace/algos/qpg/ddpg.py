"""DDPG, which learns a deterministic policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.agents.qpg.deterministic import DdpgAgent
from headrace.algos.base import OptInfo
from headrace.algos.qpg.base import QpgAlgo, QpgConfig
from headrace.config import checked_names, settings_in
from headrace.replays.base import Transitions

__all__ = ["DDPG", "DDPGConfig"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class DDPGConfig(QpgConfig):
    """The settings of `DDPG`."""

    learning_rate: float = 1e-3
    """Adam's step size for the critic."""


@settings_in(DDPGConfig)
class DDPG(QpgAlgo):
    """Learns a deterministic policy by the gradient of one critic::

        critic:  minimize (return + discount · Q_target(s', μ_target(s')) − Q(s, a))²
        policy:  maximize Q(s, μ(s))

    Lillicrap et al., "Continuous control with deep reinforcement learning", 2016, algorithm 1. The agent is a
    `DdpgAgent`.

    Args:
        config: the settings; None: the defaults.
    """

    AgentCls = DdpgAgent
    config: DDPGConfig
    _agent: DdpgAgent
    _target: DdpgAgent

    def __init__(self, config: DDPGConfig | None = None) -> None:
        super().__init__(DDPGConfig() if config is None else config)

    def next_values(self, transitions: Transitions) -> torch.Tensor:
        """See `QpgAlgo`."""
        target, following = self._target, transitions.next_inputs
        return target.q(following, target(following).mean)[0]

    def update_policy(self, itr: int, transitions: Transitions) -> OptInfo:
        """See `QpgAlgo`."""
        agent, inputs = self._agent, transitions.inputs
        return self.step_policy(itr, transitions, -agent.first_q(inputs, agent(inputs).mean).mean(), {})
