"""Independent categoricals, for MultiDiscrete actions, as a tree: it is recorded in a batch and computes from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.distributions.categorical import Categorical

__all__ = ["MultiCategorical"]


@dataclass
class MultiCategorical:
    """`k` categoricals, each with its own number of actions; leading dims are free."""

    parts: tuple[Categorical, ...]

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Actions int64 `[..., k]` from uniforms `[..., k]` inside (0, 1)."""
        return torch.stack([part.sample(noise[..., i : i + 1]) for i, part in enumerate(self.parts)], dim=-1)

    def mode(self) -> torch.Tensor:
        """The most probable actions, int64 `[..., k]`."""
        return torch.stack([part.mode() for part in self.parts], dim=-1)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """log π(action), float `[...]`."""
        return torch.stack([part.log_prob(action[..., i]) for i, part in enumerate(self.parts)]).sum(dim=0)

    def entropy(self) -> torch.Tensor:
        """In nats, float `[...]`."""
        return torch.stack([part.entropy() for part in self.parts]).sum(dim=0)
