"""Networks for the values of Box actions, several of which are computed at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from gymnasium import spaces as gym_spaces
from torch.nn import functional

from headrace.config import checked_names
from headrace.models.features import Features
from headrace.types import EnvSpaces, Tree

__all__ = ["Critics", "StackedBody"]


class StackedBody(torch.nn.Module):
    """`n` perceptrons of the same sizes over the same inputs; float32 `[N, sizes[0]]` to `[n, N, sizes[-1]]`.

    Each layer computes all of them in one batched matrix product. Weights and biases have the distribution of
    `torch.nn.Linear`'s default initialization.

    Args:
        n: number of perceptrons.
        sizes: sizes of the input, of the ReLU layers and of the output.
        layer_norm: normalize the inputs of each ReLU (Ba, Kiros and Hinton, "Layer normalization", 2016).
        dropout: probability with which each hidden number is set to 0 before it is normalized, in training mode.
    """

    def __init__(self, n: int, sizes: Sequence[int], layer_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self._n, self._dropout = n, dropout
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for n_in, n_out in pairwise(sizes):
            bound = 1.0 / math.sqrt(n_in)
            self.weights.append(torch.nn.Parameter(torch.empty(n, n_in, n_out).uniform_(-bound, bound)))
            self.biases.append(torch.nn.Parameter(torch.empty(n, 1, n_out).uniform_(-bound, bound)))
        normed = sizes[1:-1] if layer_norm else ()
        self.scales = torch.nn.ParameterList([torch.ones(n, 1, size) for size in normed])
        self.shifts = torch.nn.ParameterList([torch.zeros(n, 1, size) for size in normed])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the outputs of every perceptron, float32 `[n, N, sizes[-1]]`, for rows `[N, sizes[0]]`."""
        hidden = rows.expand(self._n, *rows.shape)
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if index < last:
                hidden = torch.relu(self._regularized(hidden, index))
        return hidden

    def _regularized(self, hidden: torch.Tensor, index: int) -> torch.Tensor:
        """Returns hidden numbers `[n, N, size]` after dropout and layer normalization, if there are any."""
        if self._dropout:
            hidden = functional.dropout(hidden, self._dropout, self.training)
        if not len(self.scales):
            return hidden
        normed: torch.Tensor = functional.layer_norm(hidden, hidden.shape[-1:])
        return torch.addcmul(self.shifts[index], normed, self.scales[index])


@checked_names
class Critics(torch.nn.Module):
    """Values of Box actions by `n_critics` networks; the default critics of `DdpgAgent`, `Td3Agent` and `SacAgent`.

    Takes `(observation, prev_action, prev_reward, action)` with any leading dims and returns values
    `[n_critics, ...]`; it ignores the previous action and reward. The networks share the `Features` of the
    observation, so images pass through one `NatureCnn` for all of them.

    Args:
        spaces: spaces of one environment.
        n_critics: number of networks.
        hidden_sizes: sizes of the ReLU layers over features and action. Default: two of 256.
        layer_norm: see `StackedBody`.
        dropout: see `StackedBody`; 0.01 with `layer_norm` in Hiraoka et al., "Dropout Q-functions for doubly efficient
            reinforcement learning", 2022.
        normalize_observation: see `normalize` of `Features`.
    """

    def __init__(
        self,
        spaces: EnvSpaces,
        n_critics: int,
        hidden_sizes: Sequence[int] | None = None,
        layer_norm: bool = False,
        dropout: float = 0.0,
        normalize_observation: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        assert isinstance(spaces.action, gym_spaces.Box)
        self.features = Features(spaces.observation, normalize_observation)
        hidden = (256, 256) if hidden_sizes is None else tuple(hidden_sizes)
        n_in = self.features.size + spaces.action.shape[0]
        self.body = StackedBody(n_critics, [n_in, *hidden, 1], layer_norm, dropout)

    def forward(
        self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor, action: torch.Tensor
    ) -> torch.Tensor:
        """Returns values `[n_critics, ...]` of actions `[..., d]`, scaled to [−1, 1]."""
        rows = torch.cat([self.features.forward(observation), action], dim=-1)
        if rows.ndim == 2:
            return self.body.forward(rows)[..., 0]
        values = self.body.forward(rows.reshape(-1, rows.shape[-1]))
        return values.reshape(len(values), *rows.shape[:-1])
