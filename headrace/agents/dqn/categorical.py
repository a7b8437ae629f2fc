"""`CategoricalDqnAgent`, which acts ε-greedily on the means of return distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.agents.dqn.dqn import DqnAgent
from headrace.agents.plan import is_of
from headrace.config import checked_names
from headrace.distributions.atoms import mean_of_atoms
from headrace.models.q import QNetwork
from headrace.types import ActingPlan, ActingRows, EnvSpaces, StepInputs

__all__ = ["CategoricalDqnAgent", "ReturnDistributions"]


@dataclass
class ReturnDistributions:
    """The return distributions of all actions, from `CategoricalDqnAgent.distributions`.

    Args:
        q: means, float `[..., n_actions]`, −∞ for masked actions.
        logits: unnormalised log-probabilities of the atoms, float `[..., n_actions, n_atoms]`.
    """

    q: torch.Tensor
    logits: torch.Tensor


@checked_names
class CategoricalDqnAgent(DqnAgent):
    """A `DqnAgent` whose network outputs, for each action, a distribution over `n_atoms` evenly spaced returns.

    Bellemare, Dabney and Munos, "A distributional perspective on reinforcement learning", 2017. The atoms are a buffer
    of the model, `atoms`. Discounted returns (as the algorithm sees them) outside `V_min` to `V_max` are clipped to
    that range.

    Args:
        ModelCls: as for `DqnAgent`, but also called with `n_atoms`; returns logits `[..., n_outputs, n_atoms]`.
        model_kwargs: see `DqnAgent`.
        n_atoms: number of atoms, at least 2.
        V_min: lowest atom, a discounted return.
        V_max: highest atom, a discounted return.
        eps_init: see `DqnAgent`.
        eps_final: see `DqnAgent`.
        eps_final_min: see `DqnAgent`.
        eps_itr_min: see `DqnAgent`.
        eps_itr_max: see `DqnAgent`.
        eps_eval: see `DqnAgent`.
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
        """The atoms, float32 `[n_atoms]`, on the model's device."""
        return self.model.get_buffer("atoms")

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        return {**super().settings(), "n_atoms": self.n_atoms, "V_min": self.V_min, "V_max": self.V_max}

    def distributions(self, inputs: StepInputs) -> ReturnDistributions:
        """Runs the training forward pass and returns distributions and their means, with gradients."""
        q, (logits, _) = self._forward(inputs)
        return ReturnDistributions(q, logits)

    def acting_plan(self, rows: ActingRows, deterministic: bool) -> ActingPlan | None:
        """See `Agent`."""
        return self._plan(rows, deterministic) if is_of(self, CategoricalDqnAgent) else None

    def _network(self, spaces: EnvSpaces, n_actions: int) -> torch.nn.Module:
        sizes = {"n_outputs": n_actions, "n_atoms": self.n_atoms}
        network = self._made(spaces, sizes, "logits of returns [..., n_outputs, n_atoms]")
        network.register_buffer("atoms", torch.linspace(self.V_min, self.V_max, self.n_atoms))
        return network

    def _atoms(self) -> np.ndarray:
        """See `DqnAgent`."""
        return self.atoms.numpy()

    def _answer_shape(self) -> list[int]:
        """Returns the shape of the network's output for one environment."""
        return [self._n_actions, self.n_atoms]

    def _values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns the means of the distributions."""
        return mean_of_atoms(outputs, self.atoms)
