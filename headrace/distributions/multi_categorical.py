"""Independent categoricals, for MultiDiscrete actions, as a dataclass of tensors that batches can record."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.distributions.categorical import Categorical

__all__ = ["MultiCategorical"]


@dataclass
class MultiCategorical:
    """`k` independent categoricals with any leading dims.

    Args:
        parts: the categoricals, each with its own number of actions.
    """

    parts: tuple[Categorical, ...]

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Returns actions, int64 `[..., k]`, sampled with uniforms `[..., k]` in the open interval (0, 1)."""
        return torch.stack([part.sample(noise[..., i : i + 1]) for i, part in enumerate(self.parts)], dim=-1)

    def mode(self) -> torch.Tensor:
        """Returns the most probable actions, int64 `[..., k]`."""
        return torch.stack([part.mode() for part in self.parts], dim=-1)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Returns log π(action), float `[...]`, of actions `[..., k]`."""
        return torch.stack([part.log_prob(action[..., i]) for i, part in enumerate(self.parts)]).sum(dim=0)

    def entropy(self) -> torch.Tensor:
        """Returns the entropy in nats, float `[...]`."""
        return torch.stack([part.entropy() for part in self.parts]).sum(dim=0)
