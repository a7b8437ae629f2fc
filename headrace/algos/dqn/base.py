"""Base class of DQN algorithms, which learn action values."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headrace.agents.base import Agent
from headrace.agents.dqn.dqn import DqnAgent
from headrace.algos.base import OptInfo
from headrace.algos.off_policy import OffPolicyAlgo, OffPolicyConfig
from headrace.config import checked_names
from headrace.replays.base import Transitions
from headrace.types import BatchSpec

__all__ = ["QLearningAlgo", "QLearningConfig", "TransitionLosses"]


@dataclass
class TransitionLosses:
    """The losses of `N` transitions.

    Args:
        loss: float `[N]`, with gradient.
        priority: size of the error of each transition, float `[N]`, without gradient.
        info: scalars without gradient, by name, for the log.
    """

    loss: torch.Tensor
    priority: torch.Tensor
    info: dict[str, torch.Tensor]


@checked_names
@dataclass(frozen=True, kw_only=True)
class QLearningConfig(OffPolicyConfig):
    """The settings that all DQN algorithms have."""

    double_dqn: bool = True
    """Double DQN: the learning network chooses the next action, the target network gives its value (van Hasselt et al.,
    2016)."""


class QLearningAlgo(OffPolicyAlgo):
    """Learns action values from a replay, with a target network and Adam.

    The target of a transition bootstraps from the final observation where its episode was truncated, and does not
    bootstrap where it terminated.

    Args:
        config: the settings.
    """

    AgentCls: ClassVar[type[Agent]] = DqnAgent
    config: QLearningConfig
    _agent: DqnAgent
    _target: DqnAgent

    @abstractmethod
    def losses(self, transitions: Any) -> TransitionLosses:
        """Returns the losses of what was sampled from the replay, `Transitions` on the agent's device."""

    def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
        """See `OffPolicyAlgo`."""
        super().initialize(agent, n_itr, batch_spec, seed)
        self._losses = self.compiled(self.losses)

    def update(self, itr: int, transitions: Any) -> tuple[OptInfo, torch.Tensor]:
        """See `OffPolicyAlgo`. The loss is the mean of `losses`, weighted by the importance weights."""
        losses = self._losses(transitions)
        loss = (transitions.weights * losses.loss).mean()
        optimizer = self.optimizers["agent"]
        grad_norm = optimizer.backward(loss, self.config.clip_grad_norm)
        info = self.finite(itr, transitions, {"loss": loss, "gradNorm": grad_norm}, losses.info)
        optimizer.step()
        return info, losses.priority

    def best_next(self, values: torch.Tensor, transitions: Transitions) -> torch.Tensor:
        """Returns the greedy next action of each transition, int64 `[N]`.

        Args:
            values: values of the target network, float `[N, n_actions]`; double DQN uses the agent's instead.
            transitions: the transitions, on the agent's device.
        """
        if self.config.double_dqn:
            values = self._agent(transitions.next_inputs).q
        return values.argmax(dim=-1)
