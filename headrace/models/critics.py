"""Networks for the values of Box actions, several of which are computed at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces as gym_spaces

from headrace.config import checked_names
from headrace.models.features import Features
from headrace.models.relu_body import ReluBody
from headrace.types import EnvSpaces, Tree

__all__ = ["Critics"]


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
        layer_norm: see `ReluBody`.
        dropout: see `ReluBody`; 0.01 with `layer_norm` in Hiraoka et al., "Dropout Q-functions for doubly efficient
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
        self.body = ReluBody(n_critics, [n_in, *hidden, 1], layer_norm, dropout)

    def forward(
        self,
        observation: Tree,
        prev_action: Tree,
        prev_reward: torch.Tensor,
        action: torch.Tensor,
        n: int | None = None,
    ) -> torch.Tensor:
        """Returns values `[n_critics, ...]` of actions `[..., d]`, scaled to [−1, 1].

        Args:
            observation: tree of `[..., ...]`.
            prev_action: ignored.
            prev_reward: ignored.
            action: scaled actions, float `[..., d]`.
            n: compute the first `n` networks only; None: all.
        """
        rows = torch.cat([self.features.forward(observation), action], dim=-1)
        return self.body.forward(rows, n).squeeze(-1)
