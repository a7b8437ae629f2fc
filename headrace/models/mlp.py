"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from headrace.in_numpy import NumpyLinear, suits_numpy
from headrace.models.features import FlatFeatures
from headrace.types import EnvSpaces, Tree

__all__ = ["ActorCriticMlp", "linear"]


def linear(n_in: int, n_out: int, gain: float) -> torch.nn.Linear:
    """A linear layer with orthogonal weights of the given gain and zero bias (the usual start of policy gradients)."""
    layer = torch.nn.Linear(n_in, n_out)
    torch.nn.init.orthogonal_(layer.weight, gain)
    torch.nn.init.zeros_(layer.bias)
    return layer


class ActorCriticMlp(torch.nn.Module):
    """A shared tanh body and one linear head: `n_outputs` policy outputs and a value.

    Takes `(observation, prev_action, prev_reward)` with any leading dims and returns `(outputs [..., n_outputs],
    value [...])`; it does not look at the previous action and reward.
    """

    def __init__(self, spaces: EnvSpaces, n_outputs: int, hidden_sizes: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.features = FlatFeatures(spaces.observation)
        sizes = [self.features.size, *hidden_sizes]
        layers = [linear(n_in, n_out, math.sqrt(2.0)) for n_in, n_out in pairwise(sizes)]
        self.body = torch.nn.ModuleList(layers)
        self.head = linear(sizes[-1], n_outputs + 1, 1.0)
        with torch.no_grad():
            self.head.weight[:-1] *= 0.01  # start near the uniform policy
        self._largest = max(n_in * n_out for n_in, n_out in pairwise([*sizes, n_outputs + 1]))
        self._numpy_body = [NumpyLinear(layer) for layer in layers]
        self._numpy_head = NumpyLinear(self.head)

    def forward(
        self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        features = self.features.forward(observation)
        if suits_numpy(features, self._largest):
            return self._in_numpy(features)
        hidden = features
        for layer in self.body:  # functions, not module calls, which cost 2 to 3 µs each
            assert isinstance(layer, torch.nn.Linear)
            hidden = torch.tanh(functional.linear(hidden, layer.weight, layer.bias))
        outputs = functional.linear(hidden, self.head.weight, self.head.bias)
        return outputs[..., :-1], outputs[..., -1]

    def _in_numpy(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same function; see `headrace.in_numpy`."""
        hidden = features.numpy()
        for layer in self._numpy_body:
            hidden = layer(hidden)
            np.tanh(hidden, out=hidden)
        outputs = self._numpy_head(hidden)
        return torch.from_numpy(outputs[..., :-1]), torch.from_numpy(np.asarray(outputs[..., -1]))
