"""Networks for action values and for return distributions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from headrace.config import checked_names
from headrace.models.features import Features
from headrace.models.mlp import TanhBody
from headrace.numpy_acting import dueling
from headrace.types import EnvSpaces, Tree

__all__ = ["DuelingHead", "QNetwork"]


class DuelingHead(torch.nn.Module):
    """Dueling head `Q(s, a) = V(s) + A(s, a) − mean over actions of A(s, ·)`; V and A have separate layers.

    Maps float32 `[..., sizes[0]]` to `[..., n_actions · n_atoms]`. The atoms of an action are adjacent, and the formula
    is applied to each atom. Wang et al., "Dueling network architectures for deep reinforcement learning", 2016,
    equation 9.

    Args:
        sizes: sizes of the features and of the hidden layers, for both V and A.
        n_actions: number of actions.
        n_atoms: number of outputs per action; 1: its value.
    """

    def __init__(self, sizes: Sequence[int], n_actions: int, n_atoms: int = 1) -> None:
        super().__init__()
        self.value = TanhBody([*sizes, n_atoms])
        self.advantage = TanhBody([*sizes, n_actions * n_atoms])
        self._shape = (n_actions, n_atoms)

    def in_numpy(self, features: torch.Tensor) -> np.ndarray | None:
        """Returns the outputs computed in NumPy, or None where torch should compute them (see `suits_numpy`)."""
        advantage = self.advantage.in_numpy(features)
        if advantage is None:
            return None
        value = self.value.in_numpy(features)
        assert value is not None  # its matrix products are no larger than those of A
        dueling(advantage.reshape(*advantage.shape[:-1], *self._shape), value)  # in the memory of `advantage`
        return advantage

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns outputs float32 `[..., n_actions · n_atoms]` of features `[..., sizes[0]]`."""
        outputs = self.advantage.forward(features)
        advantage = outputs.reshape(*outputs.shape[:-1], *self._shape)
        value = self.value.forward(features).unsqueeze(-2)
        return (value + advantage - advantage.mean(dim=-2, keepdim=True)).reshape(outputs.shape)


@checked_names
class QNetwork(torch.nn.Module):
    """Values of all actions from any observation; the default model of DQN agents.

    Takes `(observation, prev_action, prev_reward)` with any leading dims and returns values `[..., n_outputs]` or, with
    `n_atoms`, unnormalised log-probabilities of returns `[..., n_outputs, n_atoms]`; it ignores the previous action and
    reward.

    Args:
        spaces: spaces of one environment.
        n_outputs: number of actions.
        n_atoms: number of atoms in the return distribution of each action; None: output values instead.
        hidden_sizes: sizes of the tanh layers over the features (`Features`). Default: two of 64, none over images.
        dueling: use a `DuelingHead`.
        normalize_observation: see `normalize` of `Features`.
    """

    def __init__(
        self,
        spaces: EnvSpaces,
        n_outputs: int,
        n_atoms: int | None = None,
        hidden_sizes: Sequence[int] | None = None,
        dueling: bool = False,
        normalize_observation: bool = False,
    ) -> None:
        super().__init__()
        self.features = Features(spaces.observation, normalize_observation)
        if hidden_sizes is None:
            hidden_sizes = () if self.features.has_images else (64, 64)
        sizes = [self.features.size, *hidden_sizes]
        per_action = 1 if n_atoms is None else n_atoms
        self.head: DuelingHead | TanhBody = (
            DuelingHead(sizes, n_outputs, per_action) if dueling else TanhBody([*sizes, n_outputs * per_action])
        )
        self._shape = None if n_atoms is None else (n_outputs, n_atoms)

    def forward(self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor) -> torch.Tensor:
        """Returns values `[..., n_outputs]`, or log-probabilities `[..., n_outputs, n_atoms]`."""
        features = self.features.forward(observation)
        quick = self.head.in_numpy(features)
        outputs = self.head.forward(features) if quick is None else torch.from_numpy(quick)
        return outputs if self._shape is None else outputs.reshape(*outputs.shape[:-1], *self._shape)
