"""Base class of algorithms that learn action values, and a policy that follows their gradient."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from headrace.agents.base import Agent
from headrace.agents.qpg.base import QpgAgent
from headrace.algos.base import OptInfo
from headrace.algos.checks import require
from headrace.algos.off_policy import OffPolicyAlgo, OffPolicyConfig
from headrace.algos.qpg.noise import LearnerNoise
from headrace.config import checked_names
from headrace.replays.base import Transitions
from headrace.types import BatchSpec

__all__ = ["QpgAlgo", "QpgConfig"]


@contextmanager
def frozen(module: torch.nn.Module) -> Iterator[None]:
    """Lets the parameters of a module need no gradients inside the context, so that none are computed for them."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@checked_names
@dataclass(frozen=True, kw_only=True)
class QpgConfig(OffPolicyConfig):
    """The settings that `DDPG`, `TD3` and `SAC` have."""

    learning_rate: float = 3e-4
    """Adam's step size for the critics, and for everything that has no step size of its own."""
    actor_learning_rate: float | None = None
    """Adam's step size for the policy; None: `learning_rate`."""
    linear_lr_schedule: bool = False
    """Let the learning rates fall linearly to 0 at the end of training."""
    adam_eps: float = 1e-8
    """Adam's ε."""
    batch_size: int = 256
    """Transitions in one update."""
    replay_ratio: float = 256.0
    """How many times a step is learned from, on average: updates · batch_size / environment steps. If it equals
    `batch_size`, there is one update per environment step."""
    replay_size: int = 1_000_000
    """Capacity of the replay, in environment steps."""
    min_steps_learn: int = 10_000
    """Environment steps in the replay before the first update; see also `random_itr_max` of the agents."""
    n_step: int = 1
    """Number of rewards in a target before it bootstraps."""
    target_update_interval: int = 1
    """Updates between two updates of the target networks."""
    target_update_tau: float = 0.005
    """Fraction by which such an update moves the targets towards the learning networks."""
    clip_grad_norm: float | None = None
    """The gradients of critics and policy are each scaled down to this norm; None: they are not scaled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actor_learning_rate is not None:
            require("actor_learning_rate", self.actor_learning_rate, 0.0, math.inf)


class QpgAlgo(OffPolicyAlgo):
    """Learns critics from a replay, and a policy by the gradient of the critics' values.

    The target of a transition bootstraps from the final observation where its episode was truncated, and does not
    bootstrap where it terminated. Critics and policy have an optimizer each. All actions in updates are scaled to
    [−1, 1].

    Args:
        config: the settings.
    """

    config: QpgConfig
    _agent: QpgAgent
    _target: QpgAgent

    def initialize(self, agent: Agent, n_itr: int, batch_spec: BatchSpec, seed: int = 0) -> None:
        """See `OffPolicyAlgo`."""
        super().initialize(agent, n_itr, batch_spec, seed)
        # Dropout is applied in targets, too: Hiraoka et al., 2022, algorithm 2.
        self._target.model.critics.train()
        self._noise = LearnerNoise(seed)

    def trained(self, agent: Agent) -> Mapping[str, tuple[Iterable[torch.nn.Parameter], float]]:
        """See `OffPolicyAlgo`."""
        assert isinstance(agent, QpgAgent)
        config, model = self.config, agent.model
        actor_rate = config.learning_rate if config.actor_learning_rate is None else config.actor_learning_rate
        return {
            "critic": (model.critics.parameters(), config.learning_rate),
            "actor": (model.actor.parameters(), actor_rate),
        }

    def update(self, itr: int, transitions: Transitions) -> tuple[OptInfo, torch.Tensor]:
        """See `OffPolicyAlgo`. The priority of a transition is the mean of its critics' errors, `|target − Q|`."""
        with torch.no_grad():
            target = transitions.return_ + transitions.discount * self.next_values(transitions)
        q = self._agent.q(transitions.inputs, self._agent.scaled(transitions.action))
        error = q - target
        loss = 0.5 * (transitions.weights * error.square()).mean(dim=-1).sum()
        critic = self.optimizers["critic"]
        scalars = {"qLoss": loss, "qGradNorm": critic.backward(loss, self.config.clip_grad_norm)}
        info = self.finite(itr, transitions, scalars, {"q": q.detach().mean()})
        critic.step()
        with frozen(self._agent.model.critics):
            info |= self.update_policy(itr, transitions)
        return info, error.detach().abs().mean(dim=0)

    @abstractmethod
    def next_values(self, transitions: Transitions) -> torch.Tensor:
        """Returns the target networks' values of what follows each transition, float `[N]`."""

    @abstractmethod
    def update_policy(self, itr: int, transitions: Transitions) -> OptInfo:
        """Updates the policy after the critics, whose parameters need no gradients then; returns diagnostics."""

    def step_policy(
        self, itr: int, transitions: Transitions, loss: torch.Tensor, info: Mapping[str, torch.Tensor]
    ) -> OptInfo:
        """Takes a step of the policy's optimizer.

        Args:
            itr: number of the batch.
            transitions: the sampled transitions, for errors.
            loss: the policy's loss, a scalar.
            info: further scalars for the log.
        """
        actor = self.optimizers["actor"]
        scalars = {"actorLoss": loss, "actorGradNorm": actor.backward(loss, self.config.clip_grad_norm)}
        numbers = self.finite(itr, transitions, scalars, info)
        actor.step()
        return numbers

    def normal(self, shape: torch.Size, purpose: int = 0) -> torch.Tensor:
        """Returns standard normal numbers of this update, float32, on the agent's device.

        Args:
            shape: number of transitions, and of numbers for each.
            purpose: 0 or 1, to distinguish draws of the same update.
        """
        n, d = shape
        return self._noise.normal(self._n_updates, n, d, purpose).to(self._device)
