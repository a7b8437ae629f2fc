"""`CategoricalDqnAgent`: ε-greedy by the means of distributions of returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from headrace.agents.dqn.dqn import DqnAgent
from headrace.distributions.atoms import mean_of_atoms
from headrace.models.q import QNetwork
from headrace.types import EnvSpaces, StepInputs

__all__ = ["CategoricalDqnAgent", "ReturnDistributions"]


@dataclass
class ReturnDistributions:
    """What `CategoricalDqnAgent.distributions` returns.

    q: the means, float `[..., n_actions]`, −∞ for masked actions; logits: unnormalised log-probabilities of the atoms,
    float `[..., n_actions, n_atoms]`.
    """

    q: torch.Tensor
    logits: torch.Tensor


class CategoricalDqnAgent(DqnAgent):
    """A `DqnAgent` whose network gives each action a distribution over `n_atoms` returns, evenly spaced.

    Bellemare, Dabney and Munos, "A distributional perspective on reinforcement learning", 2017. The returns are a
    buffer of the model, `atoms`. Discounted returns (as the algorithm sees them) beyond `V_min` and `V_max` count as
    these.

    Args:
        ModelCls: called with `n_atoms` besides; returns logits `[..., n_outputs, n_atoms]`.
        model_kwargs, eps_init, eps_final, eps_final_min, eps_itr_min, eps_itr_max, eps_eval: see `DqnAgent`.
        n_atoms: at least 2.
        V_min, V_max: the lowest and the highest return.
    """

    def __init__(
        self,
        ModelCls: Any = QNetwork,
        model_kwargs: Mapping[str, Any] | None = None,
        *,
        n_atoms: int = 51,
        V_min: float = -10.0,
        V_max: float = 10.0,
        eps_init: float = 1.0,
        eps_final: float = 0.01,
        eps_final_min: float | None = None,
        eps_itr_min: int = 0,
        eps_itr_max: int = 1000,
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
        if n_atoms < 2:
            raise ValueError(f"n_atoms must be at least 2, got {n_atoms!r}")
        if not V_min < V_max:
            raise ValueError(f"V_min must be below V_max, {V_max!r}, got {V_min!r}")
        self.n_atoms, self.V_min, self.V_max = n_atoms, V_min, V_max

    @property
    def atoms(self) -> torch.Tensor:
        """The returns, float32 `[n_atoms]`, where the model is."""
        return self.model.get_buffer("atoms")

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        return {**super().settings(), "n_atoms": self.n_atoms, "V_min": self.V_min, "V_max": self.V_max}

    def distributions(self, inputs: StepInputs) -> ReturnDistributions:
        """The training forward: distributions and their means, with gradients."""
        return ReturnDistributions(*self._forward(inputs))

    def _network(self, spaces: EnvSpaces, n_actions: int) -> torch.nn.Module:
        network: torch.nn.Module = self._model_cls(
            spaces, n_outputs=n_actions, n_atoms=self.n_atoms, **self._model_kwargs
        )
        network.register_buffer("atoms", torch.linspace(self.V_min, self.V_max, self.n_atoms))
        return network

    def _answer_shape(self) -> list[int]:
        """What the network returns for a row."""
        return [self._n_actions, self.n_atoms]

    def _values(self, outputs: torch.Tensor) -> torch.Tensor:
        """The means of the distributions."""
        return mean_of_atoms(outputs, self.atoms)
