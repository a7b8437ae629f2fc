"""Base class of policy-gradient agents: a model, and a policy that turns its outputs into a distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from headrace.agents.base import Agent
from headrace.agents.masks import has_mask, seen_spaces, without_mask
from headrace.agents.modelling import made_model, returned_text
from headrace.agents.pg.heads import Distribution, PolicyHead
from headrace.agents.plan import plan_for
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_rows
from headrace.models.features import Features
from headrace.types import ACTION_MASK, ActingPlan, ActingRows, AgentStep, EnvSpaces, StepInputs, Tree

__all__ = ["PgAgent", "PgInfo"]


@dataclass
class PgInfo:
    """The `agent_info` that a policy-gradient agent records, and the output of its training forward pass.

    Args:
        dist: distribution over actions, with leading dims `[...]`.
        value: value estimates V, float `[...]`.
    """

    dist: Distribution
    value: torch.Tensor


class PgAgent(Agent):
    """Samples actions from a distribution given by the outputs of a model. Users construct one of its subclasses.

    A Dict observation space with the key "action_mask" (one entry per Discrete action, or the entries of all
    MultiDiscrete parts concatenated) masks actions: those with 0 are never sampled. The model does not see the mask.

    Args:
        head: turns outputs into a distribution.
        ModelCls: called as `ModelCls(spaces, n_outputs=..., **model_kwargs)`. A feed-forward module takes
            `(observation, prev_action, prev_reward)` over any leading dims and returns `(outputs [..., n_outputs],
            value [...])`; a recurrent one also takes `is_first` and `state`, has `initial_state(n)`, and also returns
            the new state (see `RecurrentActorCritic`).
        model_kwargs: further arguments of the model.
        recurrent: whether the model is recurrent.
    """

    def __init__(
        self, head: PolicyHead, ModelCls: Any, model_kwargs: Mapping[str, Any] | None, recurrent: bool = False
    ) -> None:
        self._head = head
        self._model_cls = ModelCls
        self._model_kwargs = dict(model_kwargs or {})
        self._recurrent = recurrent
        self._masks = False
        self._greedy = False
        self._fits = False  # whether the shapes of the model's outputs have been checked

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        """Returns a new policy and value network. Raises TypeError for unsupported action spaces and masks."""
        head = self._head
        head.build(spaces.action, type(self).__name__)
        self.noise_size = head.noise_size
        self._masks = has_mask(spaces, head.mask_size)
        seen = seen_spaces(spaces) if self._masks else spaces
        sizes = {"n_outputs": head.n_outputs}
        inputs, returns = ["observation", "prev_action", "prev_reward"], "(outputs [..., n_outputs], value [...])"
        if self._recurrent:
            inputs, returns = [*inputs, "is_first", "state"], "(outputs [..., n_outputs], value [...], new state)"
        model = made_model(self._model_cls, seen, sizes, self._model_kwargs, inputs, returns)
        if self._recurrent and not callable(getattr(model, "initial_state", None)):
            raise TypeError(
                f"{type(model).__name__} has no initial_state(n), which returns the state at the start of an episode, "
                f"zeros [n, ...]; for a model without a memory use {type(self).__name__.removeprefix('Recurrent')}"
            )
        head.prepare(model)
        return model

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        return {"ModelCls": self._model_cls, "model_kwargs": self._model_kwargs, **self._head.settings()}

    def initial_state(self, n: int) -> Tree:
        """See `Agent`."""
        return self.model.initial_state(n) if self._recurrent else None  # type: ignore[operator]

    def sample_mode(self, itr: int) -> None:
        """Sets the agent to sample actions from the policy."""
        super().sample_mode(itr)
        self._greedy = False

    def eval_mode(self, itr: int) -> None:
        """Sets the agent to take the most probable actions."""
        super().eval_mode(itr)
        self._greedy = True

    def __call__(self, inputs: StepInputs, state: Tree = None) -> PgInfo:
        """Returns the distribution and the value, with gradients; `state` None means zeros."""
        return self._forward(inputs, state)[0]

    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        """Returns actions `[n]` or `[n, d]` with a `PgInfo`."""
        info, state = self._forward(inputs, state)
        action = info.dist.mode() if self._greedy else info.dist.sample(inputs.noise)
        return AgentStep(action, info, state)

    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        """Returns the values V of `n` environments, float `[n]`."""
        return self._forward(inputs, state)[0].value

    def exploration(self, itr: int, samples: Samples) -> dict[str, float]:
        """Returns `actionStd`, the mean standard deviation of Box actions over the batch, in the action's units."""
        return self._head.exploration(samples.agent.agent_info.dist, samples.env.valid)

    def update_statistics(self, observation: Tree) -> None:
        """Updates every `Features(..., normalize=True)` of the model with observations `[N, ...]`."""
        if self._masks:
            observation = without_mask(observation)
        for module in self.model.modules():
            if isinstance(module, Features) and module.normalizes:
                module.update(observation)

    def _plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        """Returns an acting plan for an agent whose `step` is this class's, if head and model have one."""
        if self._masks:
            return None
        head, model = self._head, self.model
        return plan_for(model, rows, deterministic, head.acting_rows, lambda: head.acting_settings(model, self._greedy))

    def _forward(self, inputs: StepInputs, state: Tree) -> tuple[PgInfo, Tree]:
        observation, mask = inputs.observation, None
        if self._masks:
            observation, mask = without_mask(observation), observation[ACTION_MASK]
        if self._recurrent:
            if state is None:
                dims = inputs.is_first.shape
                state = self.initial_state(dims[-1]) if dims else tree_rows(self.initial_state(1), 0)
            returned = self.model(observation, inputs.prev_action, inputs.prev_reward, inputs.is_first, state)
        else:
            returned = self.model(observation, inputs.prev_action, inputs.prev_reward)
        if not self._fits:
            self._require_fit(returned)
        if self._recurrent:
            outputs, value, state = returned
        else:
            outputs, value = returned
        return PgInfo(self._head.dist(self.model, outputs, mask), value), state

    def _require_fit(self, returned: Any) -> None:
        """Checks the model's first outputs: wrong shapes would be sampled from, or broadcast, without an error."""
        n_outputs = self._head.n_outputs
        if not isinstance(returned, tuple | list) or len(returned) != 2 + self._recurrent:
            parts = "(outputs, value, new state)" if self._recurrent else "(outputs, value)"
            raise TypeError(f"{type(self.model).__name__} returned {returned_text(returned)}, expected {parts}")
        outputs, value = returned[:2]
        if outputs.shape[-1] != n_outputs or outputs.shape[:-1] != value.shape:
            raise ValueError(
                f"{type(self.model).__name__} returned outputs {list(outputs.shape)} and values {list(value.shape)}; "
                f"expected outputs [..., {n_outputs}] and values [...]"
            )
        self._fits = True
