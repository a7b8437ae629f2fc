"""Base class of agents with a policy and critics over Box actions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import override

from headrace.agents.base import Agent
from headrace.agents.masks import has_mask
from headrace.agents.modelling import made_model, returned_text
from headrace.agents.qpg.bounds import ActionBounds
from headrace.distributions.gaussian import Gaussian
from headrace.models.critics import Critics
from headrace.models.features import Features
from headrace.types import AgentStep, EnvSpaces, StepInputs, Tree

__all__ = ["ActorWithCritics", "QpgAgent"]


class ActorWithCritics(torch.nn.Module):
    """The model of such an agent: its policy network and its critics, which only the learner has.

    Args:
        actor: the policy network.
        critics: the networks of the action values.
    """

    def __init__(self, actor: torch.nn.Module, critics: torch.nn.Module) -> None:
        super().__init__()
        self.actor = actor
        self.critics = critics


class QpgAgent(Agent):
    """Acts in Box spaces `[d]` by a policy network; critics give the values of actions. Users construct a subclass.

    Actions are recorded in the environment's units and lie within its bounds. Policy and critics deal with scaled
    actions, which are −1 at the lower and 1 at the upper bounds (`scaled`). The critics exist in the learner only.

    Args:
        ModelCls: the policy network, called as `ModelCls(spaces, n_outputs=..., **model_kwargs)`; a module that takes
            `(observation, prev_action, prev_reward)` over any leading dims and returns outputs `[..., n_outputs]`.
        model_kwargs: further arguments of the policy network.
        QModelCls: the critics, called as `QModelCls(spaces, n_critics=..., **q_model_kwargs)`; a module that takes
            `(observation, prev_action, prev_reward, action)` over any leading dims, with scaled actions, and returns
            values `[n_critics, ...]`.
        q_model_kwargs: further arguments of the critics.
        n_critics: number of critics.
        random_itr_max: up to this batch, actions are uniform between the bounds.
    """

    learner_only = ("critics",)
    model: ActorWithCritics

    def __init__(
        self,
        ModelCls: Any,
        model_kwargs: Mapping[str, Any] | None,
        QModelCls: Any,
        q_model_kwargs: Mapping[str, Any] | None,
        n_critics: int,
        random_itr_max: int,
    ) -> None:
        if n_critics < 1:
            raise ValueError(f"n_critics must be at least 1, got {n_critics!r}")
        if random_itr_max < 0:
            raise ValueError(f"random_itr_max must be at least 0, got {random_itr_max!r}")
        self.n_critics = n_critics
        self.random_itr_max = random_itr_max
        self._model_cls, self._q_model_cls = ModelCls, QModelCls
        self._model_kwargs, self._q_model_kwargs = dict(model_kwargs or {}), dict(q_model_kwargs or {})
        self._greedy = self._random = False
        self._fits = False  # whether the shapes of the networks' outputs have been checked
        self._q_fits = False

    @property
    @abstractmethod
    def outputs_per_action(self) -> int:
        """Number of outputs of the policy network for each component of an action."""

    @override
    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        self._bounds = ActionBounds(spaces.action, type(self).__name__)
        has_mask(spaces, None)  # raises TypeError: actions between bounds cannot be masked
        self.noise_size = Gaussian.noise_size(self._bounds.d)
        seen = ["observation", "prev_action", "prev_reward"]
        sizes = {"n_outputs": self.outputs_per_action * self._bounds.d}
        actor = made_model(self._model_cls, spaces, sizes, self._model_kwargs, seen, "outputs [..., n_outputs]")
        critics = made_model(
            self._q_model_cls,
            spaces,
            {"n_critics": self.n_critics},
            self._q_model_kwargs,
            [*seen, "action"],
            "values [n_critics, ...]",
        )
        return ActorWithCritics(actor, critics)

    @override
    def settings(self) -> dict[str, Any]:
        return {
            "ModelCls": self._model_cls,
            "model_kwargs": self._model_kwargs,
            "QModelCls": self._q_model_cls,
            "q_model_kwargs": self._q_model_kwargs,
            "random_itr_max": self.random_itr_max,
        }

    @override
    def sample_mode(self, itr: int) -> None:
        """Sets the agent to explore: by uniform actions before batch `random_itr_max`, then as its policy does."""
        super().sample_mode(itr)
        self._greedy, self._random = False, itr < self.random_itr_max

    @override
    def eval_mode(self, itr: int) -> None:
        """Sets the agent to act without noise."""
        super().eval_mode(itr)
        self._greedy, self._random = True, False

    @override
    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        """Returns actions `[n, d]` with what the policy's forward pass returned."""
        info = self(inputs)
        if self._random:
            return AgentStep(self._bounds.uniform(inputs.noise[..., : self._bounds.d]), info)
        return AgentStep(self._bounds.in_units(self.chosen(info, None if self._greedy else inputs.noise)), info)

    @abstractmethod
    def chosen(self, info: Any, noise: torch.Tensor | None) -> torch.Tensor:
        """Returns scaled actions, float `[..., d]`.

        Args:
            info: what the policy's forward pass returned.
            noise: uniforms `[..., noise_size]` in (0, 1); None: without noise.
        """

    @override
    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        """Returns the lowest critic's values of the actions without noise, float `[n]`; in the learner only."""
        return self.q(inputs, self.chosen(self(inputs), None)).amin(dim=0)

    def q(self, inputs: StepInputs, action: torch.Tensor) -> torch.Tensor:
        """Returns the values of actions by every critic, with gradients.

        Args:
            inputs: tree of `[..., ...]`.
            action: scaled actions, float `[..., d]`.

        Returns:
            float `[n_critics, ...]`.
        """
        values: torch.Tensor = self.model.critics(inputs.observation, inputs.prev_action, inputs.prev_reward, action)
        if not self._q_fits:
            self._require_values(values, action)
        return values

    def first_q(self, inputs: StepInputs, action: torch.Tensor) -> torch.Tensor:
        """Returns the values of actions by the first critic, with gradients, float `[...]`; see `q`."""
        critics = self.model.critics
        if type(critics) is not Critics:
            return self.q(inputs, action)[0]
        return critics.forward(inputs.observation, inputs.prev_action, inputs.prev_reward, action, n=1)[0]

    def scaled(self, action: torch.Tensor) -> torch.Tensor:
        """Returns recorded actions `[..., d]` as scaled ones, float32 `[..., d]`."""
        return self._bounds.scaled(action)

    @override
    def update_statistics(self, observation: Tree) -> None:
        """Updates every `Features(..., normalize=True)` of the model with observations `[N, ...]`."""
        for module in self.model.modules():
            if isinstance(module, Features) and module.normalizes:
                module.update(observation)

    def _outputs(self, inputs: StepInputs) -> torch.Tensor:
        """Returns the outputs of the policy network, float `[..., n_outputs]`."""
        outputs: torch.Tensor = self.model.actor(inputs.observation, inputs.prev_action, inputs.prev_reward)
        if not self._fits:
            self._require_outputs(outputs)
        return outputs

    def _require_outputs(self, outputs: Any) -> None:
        """Checks the policy network's first outputs: wrong shapes would be broadcast without an error."""
        name, expected = type(self.model.actor).__name__, self.outputs_per_action * self._bounds.d
        if not isinstance(outputs, torch.Tensor):
            raise TypeError(f"{name} returned {returned_text(outputs)}, expected one tensor [..., {expected}]")
        if outputs.shape[-1:] != (expected,):
            raise ValueError(f"{name} returned {list(outputs.shape)}; expected [..., {expected}]")
        self._fits = True

    def _require_values(self, values: Any, action: torch.Tensor) -> None:
        """Checks the critics' first values: wrong shapes would be broadcast without an error."""
        name, expected = type(self.model.critics).__name__, [self.n_critics, *action.shape[:-1]]
        if not isinstance(values, torch.Tensor):
            raise TypeError(f"{name} returned {returned_text(values)}, expected one tensor {expected}")
        if list(values.shape) != expected:
            raise ValueError(f"{name} returned {list(values.shape)}; expected [n_critics, ...], here {expected}")
        self._q_fits = True
