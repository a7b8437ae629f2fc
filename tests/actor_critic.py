"""A small agent with a critic that only the learner uses, and an algorithm with one optimizer for each of the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headrace.agents.base import Agent
from headrace.algos.base import OptInfo
from headrace.algos.off_policy import OffPolicyAlgo, OffPolicyConfig
from headrace.replays.base import Transitions
from headrace.types import AgentStep, EnvSpaces, StepInputs, Tree

CRITIC_WIDTH = 1000


@dataclass
class Held:
    """The `agent_info` of the agent. parameters: number of parameters of the model that acted, float `[n]`."""

    parameters: torch.Tensor


class Critic(torch.nn.Module):
    """Computes action values. It is wide, so that a copy of it in memory is easy to find."""

    def __init__(self, encoder: torch.nn.Module, n_out: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.hidden = torch.nn.Linear(8 + n_out, CRITIC_WIDTH)
        self.head = torch.nn.Linear(CRITIC_WIDTH, 1)

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(torch.cat([self.encoder(observation).tanh(), action], dim=-1))
        value: torch.Tensor = self.head(hidden.tanh())[..., 0]
        return value


class Model(torch.nn.Module):
    """An actor and a critic with a shared encoder; the critic is registered first."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        encoder = torch.nn.Linear(n_in, 8)
        self.critic = Critic(encoder, n_out)
        self.actor = torch.nn.Sequential(encoder, torch.nn.Tanh(), torch.nn.Linear(8, n_out))
        self.register_buffer("scale", torch.ones(()))


class DeterministicAgent(Agent):
    """Deterministic policy for Box actions `[d]` from Box observations `[n]`, plus uniform noise; values come from the
    critic.
    """

    noise_size = 1
    learner_only: Sequence[str] = ("critic",)
    model: Model

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        return Model(spaces.observation.shape[0], spaces.action.shape[0])  # type: ignore[index]

    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        action = self(inputs) + self.model.scale * (inputs.noise - 0.5)
        held = float(sum(parameter.numel() for parameter in self.model.parameters()))
        return AgentStep(action, Held(torch.full((len(action),), held)))

    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        return self.q(inputs, self(inputs))

    def __call__(self, inputs: StepInputs, state: Tree = None) -> torch.Tensor:
        action: torch.Tensor = self.model.actor(inputs.observation)
        return action

    def q(self, inputs: StepInputs, action: torch.Tensor) -> torch.Tensor:
        """Returns the values of actions, `[n]`."""
        value: torch.Tensor = self.model.critic(inputs.observation, action)
        return value


class DeterministicPolicyGradient(OffPolicyAlgo):
    """A short version of Lillicrap et al., "Continuous control with deep reinforcement learning", 2016."""

    AgentCls = DeterministicAgent
    _agent: DeterministicAgent
    _target: DeterministicAgent

    def __init__(self, **options: Any) -> None:
        quick = {"batch_size": 16, "replay_ratio": 4.0, "replay_size": 1000, "min_steps_learn": 32, "n_step": 1}
        super().__init__(OffPolicyConfig(**{**quick, "target_update_interval": 1, "target_update_tau": 0.1, **options}))

    def trained(self, agent: Agent) -> Mapping[str, tuple[Iterable[torch.nn.Parameter], float]]:
        """Returns the optimizers' parameters; the critic's optimizer also trains the encoder."""
        assert isinstance(agent, DeterministicAgent)
        critic, head = agent.model.critic, agent.model.actor[2]
        return {"critic": (critic.parameters(), 1e-2), "actor": (head.parameters(), 1e-3)}

    def update(self, itr: int, transitions: Transitions) -> tuple[OptInfo, torch.Tensor]:
        critic, actor = self.optimizers["critic"], self.optimizers["actor"]
        with torch.no_grad():
            bootstrap = self._target.q(transitions.next_inputs, self._target(transitions.next_inputs))
            target = transitions.return_ + transitions.discount * bootstrap
        error = self._agent.q(transitions.inputs, transitions.action) - target
        loss = error.square().mean()
        info = self.finite(itr, transitions, {"loss": loss, "gradNorm": critic.backward(loss, 1.0)}, {})
        critic.step()
        policy = -self._agent.q(transitions.inputs, self._agent(transitions.inputs)).mean()
        scalars = {"policyLoss": policy, "policyGradNorm": actor.backward(policy, 1.0)}
        info |= self.finite(itr, transitions, scalars, {})
        actor.step()
        return info, error.detach().abs()
