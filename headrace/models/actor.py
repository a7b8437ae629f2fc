"""The policy network of agents that learn the values of Box actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headrace.config import checked_names
from headrace.models.features import Features
from headrace.models.relu_body import ReluBody
from headrace.types import EnvSpaces, Tree

__all__ = ["Actor"]


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
        self.body = ReluBody(1, [self.features.size, *hidden, n_outputs], layer_norm)

    def forward(self, observation: Tree, prev_action: Tree, prev_reward: torch.Tensor) -> torch.Tensor:
        """Returns outputs `[..., n_outputs]`."""
        features = self.features.forward(observation)
        quick = self.body.in_numpy(features)
        return self.body.forward(features)[0] if quick is None else torch.from_numpy(quick)
