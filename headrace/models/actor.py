"""Networks of ReLU layers, and the policy network of agents that learn action values of Box actions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from headrace.config import checked_names
from headrace.models.features import Features
from headrace.numpy_inference import NumpyLinear, suits_numpy
from headrace.types import EnvSpaces, Tree

__all__ = ["Actor", "ReluBody"]


class ReluBody(torch.nn.Module):
    """A multi-layer perceptron: ReLU layers, then a linear layer; float32 `[..., sizes[0]]` to `[..., sizes[-1]]`.

    Weights and biases have PyTorch's default initialization.

    Args:
        sizes: sizes of the input, of the hidden layers and of the output.
        layer_norm: normalize the inputs of each ReLU (Ba, Kiros and Hinton, "Layer normalization", 2016).
    """

    def __init__(self, sizes: Sequence[int], layer_norm: bool = False) -> None:
        super().__init__()
        *hidden, (last_in, last_out) = pairwise(sizes)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(n_in, n_out) for n_in, n_out in hidden])
        self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(n_out) for _, n_out in hidden]) if layer_norm else None
        self.head = torch.nn.Linear(last_in, last_out)
        self._largest = max(n_in * n_out for n_in, n_out in pairwise(sizes))
        self._numpy_layers = [NumpyLinear(self.layers, str(index)) for index in range(len(hidden))]
        self._numpy_head = NumpyLinear(self, "head")

    def in_numpy(self, features: torch.Tensor) -> np.ndarray | None:
        """Returns the outputs computed in NumPy, or None where torch should compute them (see `suits_numpy`)."""
        if self.norms is not None or not suits_numpy(features, self._largest):
            return None
        hidden = features.numpy()
        for layer in self._numpy_layers:
            hidden = layer(hidden)
            np.maximum(hidden, 0.0, out=hidden)
        return self._numpy_head(hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns outputs float32 `[..., sizes[-1]]` of features `[..., sizes[0]]`."""
        hidden = features
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if self.norms is not None:
                hidden = self.norms[index](hidden)
            hidden = torch.relu(hidden)
        outputs: torch.Tensor = self.head(hidden)
        return outputs


@checked_names
class Actor(torch.nn.Module):
    """The outputs of a policy from any observation; the default policy network of `DdpgAgent`, `Td3Agent`, `SacAgent`.

    Takes `(observation, prev_action, prev_reward)` with any leading dims and returns outputs `[..., n_outputs]`; it
    ignores the previous action and reward.

    Args:
        spaces: spaces of one environment.
        n_outputs: number of outputs.
        hidden_sizes: sizes of the ReLU layers over the features (`Features`). Default: two of 256.
        layer_norm: see `ReluBody`.
        normalize_observation: see `normalize` of `Features`.
    """

    def __init__(
        self,
        spaces: EnvSpaces,
        n_outputs: int,
        hidden_sizes: Sequence[int] | None = None,
        layer_norm: bool = False,
        normalize_observation: bool = False,
    ) -> None:
        super().__init__()
        self.features = Features(spaces.observation, normalize_observation)
        hidden = (256, 256) if hidden_sizes is None else tuple(hidden_sizes)
        self.body = ReluBody([self.features.size, *hidden, n_outputs], layer_norm)

    def forward(self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor) -> torch.Tensor:
        """Returns outputs `[..., n_outputs]`."""
        features, body = self.features.forward(observation), self.body
        quick = body.in_numpy(features)
        return body.forward(features) if quick is None else torch.from_numpy(quick)
