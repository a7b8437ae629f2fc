"""`R2d1Agent`, which acts ε-greedily on the action values of a recurrent network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headrace.agents.dqn.dqn import DqnAgent, DqnInfo
from headrace.agents.modelling import made_model, returned_text
from headrace.buffers.tree import tree_rows
from headrace.config import checked_names
from headrace.models.rnn import RecurrentQNetwork
from headrace.types import ActingPlan, ActingRows, AgentStep, EnvSpaces, StepInputs, Tree

__all__ = ["R2d1Agent", "R2d1AlternatingAgent"]


@checked_names
class R2d1Agent(DqnAgent):
    """Recurrent `DqnAgent`: takes the best action by the values of an LSTM or GRU, or a random one with probability ε.

    Kapturowski et al., "Recurrent experience replay in distributed reinforcement learning", 2019. Its ε differs from
    environment to environment, evenly spaced in logarithms from `eps_final` down to `eps_final_min`.

    Args:
        ModelCls: called as `ModelCls(spaces, n_outputs=..., **model_kwargs)`; a module that takes `(observation,
            prev_action, prev_reward, is_first, state)` over leading dims `[]`, `[B]` or `[T, B]`, returns `(values
            [..., n_outputs], new state)` and has `initial_state(n)` (see `RecurrentQNetwork`).
        model_kwargs: further arguments of the model; for `RecurrentQNetwork` for example `{"dueling": True}`.
        eps_init: see `DqnAgent`.
        eps_final: see `DqnAgent`.
        eps_final_min: see `DqnAgent`; None: all environments have the same ε.
        eps_itr_min: see `DqnAgent`.
        eps_itr_max: see `DqnAgent`.
        eps_eval: see `DqnAgent`.
    """

    def __init__(
        self,
        ModelCls: Any = RecurrentQNetwork,
        model_kwargs: Mapping[str, Any] | None = None,
        *,
        eps_init: float = 1.0,
        eps_final: float = 0.4,
        eps_final_min: float | None = 0.001,
        eps_itr_min: int = 0,
        eps_itr_max: int = 0,
        eps_eval: float = 0.0,
    ) -> None:
        super().__init__(
            ModelCls,
            model_kwargs,
            eps_init=eps_init,
            eps_final=eps_final,
            eps_final_min=eps_final_min,
            eps_itr_min=eps_itr_min,
            eps_itr_max=eps_itr_max,
            eps_eval=eps_eval,
        )

    def initial_state(self, n: int) -> Tree:
        """See `Agent`."""
        state: Tree = self.model.initial_state(n)  # type: ignore[operator]
        return state

    def __call__(self, inputs: StepInputs, state: Tree = None) -> DqnInfo:
        """Returns the values of all actions, with gradients; `state` None means zeros."""
        return self.unroll(inputs, state)[0]

    def unroll(self, inputs: StepInputs, state: Tree) -> tuple[DqnInfo, Tree]:
        """Returns the values of all actions, with gradients, and the state after the last time step.

        Args:
            inputs: trees of `[T, B, ...]`, or with fewer leading dims.
            state: recurrent state before them, tree of `[B, ...]`; None means zeros.
        """
        values, (_, state) = self._forward(inputs, state)
        return DqnInfo(values), state

    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        """Returns actions `[n]` with a `DqnInfo` and the new state."""
        info, state = self.unroll(inputs, state)
        return AgentStep(self._explore(info.q, inputs.noise), info, state)

    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        """Returns the value of the best action, float `[n]`."""
        return self.unroll(inputs, state)[0].q.max(dim=-1).values

    def acting_plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        """See `Agent`; there is none."""
        return None

    def _network(self, spaces: EnvSpaces, n_actions: int) -> torch.nn.Module:
        inputs = ["observation", "prev_action", "prev_reward", "is_first", "state"]
        returns = "(action values [..., n_outputs], new state)"
        model = made_model(self._model_cls, spaces, {"n_outputs": n_actions}, self._model_kwargs, inputs, returns)
        if not callable(getattr(model, "initial_state", None)):
            raise TypeError(
                f"{type(model).__name__} has no initial_state(n), which returns the state at the start of an episode, "
                "zeros [n, ...]; for a model without a memory use DqnAgent"
            )
        return model

    def _run_model(self, seen: Tree, inputs: StepInputs, state: Tree) -> tuple[torch.Tensor, Tree]:
        """See `DqnAgent`."""
        if state is None:
            dims = inputs.is_first.shape
            state = self.initial_state(dims[-1]) if dims else tree_rows(self.initial_state(1), 0)
        returned = self.model(seen, inputs.prev_action, inputs.prev_reward, inputs.is_first, state)
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise TypeError(
                f"{type(self.model).__name__} returned {returned_text(returned)}, expected (action values, new state)"
            )
        return returned[0], returned[1]


#: The sampler keeps the recurrent state of every environment, so no agent of its own is needed for two groups.
R2d1AlternatingAgent = R2d1Agent
