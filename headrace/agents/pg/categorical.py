"""Policy-gradient agents for Discrete actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces as gym_spaces

from headrace.agents.base import Agent
from headrace.distributions.categorical import Categorical
from headrace.models.mlp import ActorCriticMlp
from headrace.types import AgentStep, EnvSpaces, StepInputs, Tree

__all__ = ["CategoricalPgAgent", "PgInfo"]


@dataclass
class PgInfo:
    """What a policy-gradient agent records (and what its training forward returns): distribution and value `[...]`."""

    dist: Categorical
    value: torch.Tensor


class CategoricalPgAgent(Agent):
    """Samples Discrete actions from a softmax policy; feed-forward.

    ModelCls: called as `ModelCls(spaces, n_outputs=number of actions, **model_kwargs)`; its module takes
    `(observation, prev_action, prev_reward)` over any leading dims and returns `(logits [..., n], value [...])`.
    The default is an MLP of two layers of 64.
    """

    noise_size = 1

    def __init__(
        self,
        ModelCls: Any = ActorCriticMlp,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._model_cls = ModelCls
        self._model_kwargs = dict(model_kwargs or {})
        self._greedy = False

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        """The policy and value network."""
        if not isinstance(spaces.action, gym_spaces.Discrete):
            raise TypeError(f"CategoricalPgAgent acts in Discrete action spaces, this environment has {spaces.action}")
        model: torch.nn.Module = self._model_cls(spaces, n_outputs=int(spaces.action.n), **self._model_kwargs)
        return model

    def sample_mode(self, itr: int) -> None:
        """Actions are drawn from the policy."""
        super().sample_mode(itr)
        self._greedy = False

    def eval_mode(self, itr: int) -> None:
        """Actions are the most probable ones."""
        super().eval_mode(itr)
        self._greedy = True

    def __call__(self, inputs: StepInputs, state: Tree = None) -> PgInfo:
        """Distribution and value with gradients."""
        logits, value = self.model(inputs.observation, inputs.prev_action, inputs.prev_reward)
        return PgInfo(Categorical(logits), value)

    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        """Actions int64 `[n]` with a `PgInfo`."""
        info = self(inputs)
        action = info.dist.mode() if self._greedy else info.dist.sample(inputs.noise)
        return AgentStep(action, info)

    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        """V of `n` rows."""
        return self(inputs).value
