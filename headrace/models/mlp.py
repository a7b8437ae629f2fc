"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from headrace.config import checked_names
from headrace.models.features import Features
from headrace.models.tanh_network import tanh_network
from headrace.numpy_inference import NumpyLinear, suits_numpy
from headrace.types import EnvSpaces, Tree

__all__ = ["ActorCritic", "TanhBody", "linear"]


def linear(n_in: int, n_out: int, gain: float) -> torch.nn.Linear:
    """Returns a linear layer with orthogonal weights and zero bias, the usual initialization for policy gradients.

    Args:
        n_in: number of inputs.
        n_out: number of outputs.
        gain: gain of the orthogonal weights.
    """
    layer = torch.nn.Linear(n_in, n_out)
    torch.nn.init.orthogonal_(layer.weight, gain)
    torch.nn.init.zeros_(layer.bias)
    return layer


class TanhBody(torch.nn.Module):
    """A multi-layer perceptron: tanh layers, then a linear layer; float32 `[..., sizes[0]]` to `[..., sizes[-1]]`.

    Args:
        sizes: sizes of the input, of the hidden layers and of the output.
        head_gain: gain of the orthogonal weights of the last layer.
    """

    def __init__(self, sizes: Sequence[int], head_gain: float = 1.0) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        *hidden, (last_in, last_out) = pairwise(sizes)
        layers = [linear(n_in, n_out, math.sqrt(2.0)) for n_in, n_out in hidden]
        self.layers = torch.nn.ModuleList(layers)
        self.head = linear(last_in, last_out, head_gain)
        #: Multiplications per row in the largest matrix product.
        self.largest = max(n_in * n_out for n_in, n_out in pairwise(sizes))
        self._numpy_layers = [NumpyLinear(self.layers, str(index)) for index in range(len(layers))]
        self._numpy_head = NumpyLinear(self, "head")

    def in_numpy(self, features: torch.Tensor) -> np.ndarray | None:
        """Returns the outputs computed in NumPy, or None where torch should compute them (see `suits_numpy`)."""
        if not suits_numpy(features, self.largest):
            return None
        hidden = features.numpy()
        for layer in self._numpy_layers:
            hidden = layer(hidden)
            np.tanh(hidden, out=hidden)
        return self._numpy_head(hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns outputs float32 `[..., sizes[-1]]` of features `[..., sizes[0]]`."""
        layers = [(layer.weight, layer.bias) for layer in (*self.layers, self.head)]
        return tanh_network(features, layers)


@checked_names
class ActorCritic(torch.nn.Module):
    """Policy outputs and a value from any observation; the default model of policy-gradient agents.

    Takes `(observation, prev_action, prev_reward)` with any leading dims and returns `(outputs [..., n_outputs],
    value [...])`; it ignores the previous action and reward.

    Args:
        spaces: spaces of one environment.
        n_outputs: number of policy outputs.
        hidden_sizes: sizes of the tanh layers over the features (`Features`). Default: two of 64, none over images.
        separate_value: compute the value by separate layers over the same features.
        normalize_observation: see `normalize` of `Features`.
    """

    def __init__(
        self,
        spaces: EnvSpaces,
        n_outputs: int,
        hidden_sizes: Sequence[int] | None = None,
        separate_value: bool = False,
        normalize_observation: bool = False,
    ) -> None:
        super().__init__()
        self.features = Features(spaces.observation, normalize_observation)
        if hidden_sizes is None:
            hidden_sizes = () if self.features.has_images else (64, 64)
        sizes = [self.features.size, *hidden_sizes]
        if separate_value:
            self.policy = TanhBody([*sizes, n_outputs], head_gain=0.01)
            self.value: TanhBody | None = TanhBody([*sizes, 1])
        else:
            self.policy = TanhBody([*sizes, n_outputs + 1])
            self.value = None
            with torch.no_grad():
                self.policy.head.weight[:-1] *= 0.01  # start close to the uniform policy

    def forward(
        self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns policy outputs `[..., n_outputs]` and values `[...]`."""
        features, policy, value_body = self.features.forward(observation), self.policy, self.value
        outputs = policy.in_numpy(features)
        if outputs is None:
            both = policy.forward(features)
            if value_body is None:
                return both[..., :-1], both[..., -1]
            return both, value_body.forward(features)[..., 0]
        if value_body is None:
            return torch.from_numpy(outputs[..., :-1]), torch.from_numpy(np.asarray(outputs[..., -1]))
        value = value_body.in_numpy(features)
        assert value is not None  # its matrix products are no larger than the policy's
        return torch.from_numpy(outputs), torch.from_numpy(np.asarray(value[..., 0]))
