"""`DdpgAgent` and `Td3Agent`, whose policies are deterministic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from headrace.agents.qpg.base import QpgAgent
from headrace.config import checked_names
from headrace.distributions.gaussian import standard_normal
from headrace.models.actor import Actor
from headrace.models.critics import Critics
from headrace.types import StepInputs, Tree

__all__ = ["DdpgAgent", "DdpgInfo", "DeterministicAgent", "Td3Agent"]


@dataclass
class DdpgInfo:
    """The `agent_info` that `DdpgAgent` and `Td3Agent` record, and the output of their policy's forward pass.

    Args:
        mean: scaled actions without noise, float `[..., d]`.
    """

    mean: torch.Tensor


class DeterministicAgent(QpgAgent):
    """Takes the scaled action `tanh(output)` and, to explore, adds Gaussian noise. Users construct a subclass.

    Args:
        ModelCls: see `QpgAgent`.
        model_kwargs: see `QpgAgent`.
        QModelCls: see `QpgAgent`.
        q_model_kwargs: see `QpgAgent`.
        n_critics: see `QpgAgent`.
        exploration_std: standard deviation of the noise, in scaled units: 1 is half the range of an action.
        random_itr_max: see `QpgAgent`.
    """

    outputs_per_action = 1

    def __init__(
        self,
        ModelCls: Any,
        model_kwargs: Mapping[str, Any] | None,
        QModelCls: Any,
        q_model_kwargs: Mapping[str, Any] | None,
        n_critics: int,
        exploration_std: float,
        random_itr_max: int,
    ) -> None:
        super().__init__(ModelCls, model_kwargs, QModelCls, q_model_kwargs, n_critics, random_itr_max)
        if not 0.0 <= exploration_std < float("inf"):
            raise ValueError(f"exploration_std must be at least 0, got {exploration_std!r}")
        self.exploration_std = float(exploration_std)

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "exploration_std": self.exploration_std}

    @override
    def __call__(self, inputs: StepInputs, state: Tree = None) -> DdpgInfo:
        """Returns the actions without noise, with gradients."""
        return DdpgInfo(self._outputs(inputs).tanh())

    @override
    def chosen(self, info: DdpgInfo, noise: torch.Tensor | None) -> torch.Tensor:
        if noise is None:
            return info.mean
        return info.mean + self.exploration_std * standard_normal(noise, info.mean.shape[-1])


@checked_names
class DdpgAgent(DeterministicAgent):
    """Acts by a deterministic policy with Gaussian noise; has one critic.

    Lillicrap et al., "Continuous control with deep reinforcement learning", 2016, with the uncorrelated noise of
    Fujimoto et al., "Addressing function approximation error in actor-critic methods", 2018. Actions are the tanh of
    the policy network's outputs, scaled to the bounds.

    Args:
        ModelCls: see `QpgAgent`.
        model_kwargs: see `QpgAgent`.
        QModelCls: see `QpgAgent`.
        q_model_kwargs: see `QpgAgent`.
        exploration_std: see `DeterministicAgent`.
        random_itr_max: see `QpgAgent`.
    """

    def __init__(
        self,
        ModelCls: Any = Actor,
        model_kwargs: Mapping[str, Any] | None = None,
        QModelCls: Any = Critics,
        q_model_kwargs: Mapping[str, Any] | None = None,
        *,
        exploration_std: float = 0.1,
        random_itr_max: int = 0,
    ) -> None:
        super().__init__(ModelCls, model_kwargs, QModelCls, q_model_kwargs, 1, exploration_std, random_itr_max)


@checked_names
class Td3Agent(DeterministicAgent):
    """Acts like `DdpgAgent`, but has two critics (or more), whose minimum TD3 learns from.

    Fujimoto et al., "Addressing function approximation error in actor-critic methods", 2018.

    Args:
        ModelCls: see `QpgAgent`.
        model_kwargs: see `QpgAgent`.
        QModelCls: see `QpgAgent`.
        q_model_kwargs: see `QpgAgent`.
        n_critics: see `QpgAgent`.
        exploration_std: see `DeterministicAgent`.
        random_itr_max: see `QpgAgent`.
    """

    def __init__(
        self,
        ModelCls: Any = Actor,
        model_kwargs: Mapping[str, Any] | None = None,
        QModelCls: Any = Critics,
        q_model_kwargs: Mapping[str, Any] | None = None,
        *,
        n_critics: int = 2,
        exploration_std: float = 0.1,
        random_itr_max: int = 0,
    ) -> None:
        super().__init__(ModelCls, model_kwargs, QModelCls, q_model_kwargs, n_critics, exploration_std, random_itr_max)

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "n_critics": self.n_critics}
