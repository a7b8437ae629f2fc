"""`DqnAgent`, which acts ε-greedily on the action values of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces as gym_spaces

from headrace import compiled
from headrace.agents.base import Agent
from headrace.agents.dqn.exploration import EpsilonSchedule
from headrace.agents.masks import has_mask, masked, seen_spaces, without_mask
from headrace.agents.modelling import made_model, returned_text
from headrace.agents.plan import is_of, plan_for
from headrace.buffers.samples import Samples
from headrace.config import checked_names
from headrace.distributions.epsilon_greedy import EpsilonGreedy
from headrace.models.features import Features
from headrace.models.q import QNetwork
from headrace.types import ACTION_MASK, ActingPlan, ActingRows, AgentStep, EnvSpaces, StepInputs, Tree

__all__ = ["DqnAgent", "DqnInfo"]


@dataclass
class DqnInfo:
    """The `agent_info` that a DQN agent records, and the output of its training forward pass.

    Args:
        q: values of all actions, float `[..., n_actions]`, −∞ for masked ones.
    """

    q: torch.Tensor


@checked_names
class DqnAgent(Agent):
    """Takes the Discrete action with the highest value or, with probability ε, a random one; feed-forward.

    Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015. ε is a function of the batch
    number (`EpsilonSchedule`) and is known before workers start, so every sampler explores in the same way; in
    evaluations it is `eps_eval`. A Dict observation space with the key "action_mask" (one entry per action) masks
    actions: those with 0 are never taken and do not count in targets. The model does not see the mask.

    Args:
        ModelCls: called as `ModelCls(spaces, n_outputs=..., **model_kwargs)`; a module that takes `(observation,
            prev_action, prev_reward)` over any leading dims and returns values `[..., n_outputs]`.
        model_kwargs: further arguments of the model; for `QNetwork` for example `{"dueling": True}`.
        eps_init: ε up to batch `eps_itr_min`.
        eps_final: ε from batch `eps_itr_max` on.
        eps_final_min: if given, each environment has its own final ε, from `eps_final` down to this.
        eps_itr_min: batch at which ε begins to fall linearly.
        eps_itr_max: batch at which ε reaches its final value.
        eps_eval: ε in evaluations.
    """

    noise_size = 2

    def __init__(
        self,
        ModelCls: Any = QNetwork,
        model_kwargs: Mapping[str, Any] | None = None,
        *,
        eps_init: float = 1.0,
        eps_final: float = 0.01,
        eps_final_min: float | None = None,
        eps_itr_min: int = 0,
        eps_itr_max: int = 1000,
        eps_eval: float = 0.0,
    ) -> None:
        if not 0.0 <= eps_eval <= 1.0:
            raise ValueError(f"eps_eval must be between 0 and 1, got {eps_eval!r}")
        self.schedule = EpsilonSchedule(
            eps_init=eps_init,
            eps_final=eps_final,
            eps_final_min=eps_final_min,
            eps_itr_min=eps_itr_min,
            eps_itr_max=eps_itr_max,
        )
        self.eps_eval = float(eps_eval)
        self._model_cls = ModelCls
        self._model_kwargs = dict(model_kwargs or {})
        self._masks = False
        self._fits = False  # whether the shape of the network's output has been checked
        self._n_envs = 1
        if eps_final_min is not None:
            self.noise_size, self.noise_has_env_id = 3, True
        self._epsilon: float | torch.Tensor = self.eps_eval

    def initialize(self, spaces: EnvSpaces, *, seed: int, global_B: int = 1, env_ids: Sequence[int] = (0,)) -> None:
        """See `Agent`."""
        super().initialize(spaces, seed=seed, global_B=global_B, env_ids=env_ids)
        self._n_envs = global_B

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        """Returns a new network. Raises TypeError if actions are not Discrete or an action mask has the wrong shape."""
        action = spaces.action
        if not isinstance(action, gym_spaces.Discrete):
            raise TypeError(
                f"{type(self).__name__} acts in Discrete action spaces, but the environment has {action}; use a "
                "CategoricalPgAgent for MultiDiscrete and MultiBinary actions, or a GaussianPgAgent for Box actions"
            )
        self._n_actions = int(action.n)
        self._masks = has_mask(spaces, self._n_actions)
        return self._network(seen_spaces(spaces) if self._masks else spaces, self._n_actions)

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        return {
            "ModelCls": self._model_cls,
            "model_kwargs": self._model_kwargs,
            **asdict(self.schedule),
            "eps_eval": self.eps_eval,
        }

    def sample_mode(self, itr: int) -> None:
        """Sets ε to that of batch `itr`."""
        super().sample_mode(itr)
        epsilon = self.schedule.at(itr, self._n_envs)
        self._epsilon = torch.from_numpy(epsilon).to(self.device) if epsilon.ndim else float(epsilon)

    def eval_mode(self, itr: int) -> None:
        """Sets ε to `eps_eval`."""
        super().eval_mode(itr)
        self._epsilon = self.eps_eval

    def __call__(self, inputs: StepInputs, state: Tree = None) -> DqnInfo:
        """Returns the values of all actions, with gradients."""
        return DqnInfo(self._forward(inputs)[0])

    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        """Returns actions `[n]` with a `DqnInfo`."""
        info = DqnInfo(self._forward(inputs)[0])
        return AgentStep(self._explore(info.q, inputs.noise), info)

    def acting_plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        """See `Agent`."""
        return self._plan(rows, deterministic) if is_of(self, DqnAgent) else None

    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        """Returns the value of the best action, float `[n]`."""
        return self._forward(inputs)[0].max(dim=-1).values

    def exploration(self, itr: int, samples: Samples) -> dict[str, float]:
        """Returns `epsilon`, the mean over environments."""
        return {"epsilon": float(self.schedule.at(itr, self._n_envs).mean())}

    def update_statistics(self, observation: Tree) -> None:
        """Updates every `Features(..., normalize=True)` of the model with observations `[N, ...]`."""
        if self._masks:
            observation = without_mask(observation)
        for module in self.model.modules():
            if isinstance(module, Features) and module.normalizes:
                module.update(observation)

    def _network(self, spaces: EnvSpaces, n_actions: int) -> torch.nn.Module:
        return self._made(spaces, {"n_outputs": n_actions}, "action values [..., n_outputs]")

    def _made(self, spaces: EnvSpaces, sizes: Mapping[str, int], returns: str) -> torch.nn.Module:
        """Returns the network; see `made_model`."""
        inputs = ["observation", "prev_action", "prev_reward"]
        return made_model(self._model_cls, spaces, sizes, self._model_kwargs, inputs, returns)

    def _plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        """Returns an acting plan for an agent whose `step` is this class's, if the model has one."""
        if self._masks or rows.action.dtype != np.int64:
            return None

        def acting_rows(rows: ActingRows, network: Any, shared: Any) -> Any:
            return compiled.acting.ValueRows(network, shared, rows.noise, rows.action, rows.agent_info.q)

        def settings() -> tuple[np.ndarray, np.ndarray | None]:
            return torch.as_tensor(self._epsilon, dtype=torch.float32).reshape(-1).numpy(), self._atoms()

        return plan_for(self.model, rows, deterministic, acting_rows, settings)

    def _atoms(self) -> np.ndarray | None:
        """Returns the atoms whose means are the values; None if the network outputs values."""
        return None

    def _answer_shape(self) -> list[int]:
        """Returns the shape of the network's output for one environment."""
        return [self._n_actions]

    def _values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns values `[..., n_actions]`, computed from the network's output."""
        return outputs

    def _explore(self, q: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Returns ε-greedy actions, int64 `[n]`, for values `[n, n_actions]`."""
        epsilon = self._epsilon if isinstance(self._epsilon, float) else _of_envs(self._epsilon, noise[..., 2])
        return EpsilonGreedy(q).sample(noise, epsilon)

    def _forward(self, inputs: StepInputs, state: Tree = None) -> tuple[torch.Tensor, tuple[torch.Tensor, Tree]]:
        """Returns values, −∞ where masked, and the network's output with the new recurrent state."""
        observation = inputs.observation
        seen = without_mask(observation) if self._masks else observation
        outputs, state = self._run_model(seen, inputs, state)
        if not self._fits:
            self._require_fit(outputs)
        values = self._values(outputs)
        return masked(values, observation[ACTION_MASK]) if self._masks else values, (outputs, state)

    def _run_model(self, seen: Tree, inputs: StepInputs, state: Tree) -> tuple[torch.Tensor, Tree]:
        """Returns the network's output and the new recurrent state; seen: the observation without an action mask."""
        return self.model(seen, inputs.prev_action, inputs.prev_reward), None

    def _require_fit(self, outputs: torch.Tensor) -> None:
        """Checks the network's first output: with too many values, the best action might not exist."""
        expected = self._answer_shape()
        if not isinstance(outputs, torch.Tensor):
            raise TypeError(
                f"{type(self.model).__name__} returned {returned_text(outputs)}, expected one tensor [..., "
                f"{str(expected)[1:]}"
            )
        if list(outputs.shape[-len(expected) :]) != expected:
            raise ValueError(
                f"{type(self.model).__name__} returned {list(outputs.shape)}; expected [..., {str(expected)[1:]}"
            )
        self._fits = True


def _of_envs(epsilon: torch.Tensor, env_ids: torch.Tensor) -> torch.Tensor:
    """Returns ε `[n]` for `n` environments, given by float32 ids, from the ε of all environments.

    Ids beyond those that the agent was initialized for (`load_agent`) wrap around to the first ε.
    """
    return epsilon[env_ids.long() % len(epsilon)]
