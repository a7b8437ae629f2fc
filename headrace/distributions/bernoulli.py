"""Independent coins, for MultiBinary actions, as a tree: it is recorded in a batch and computes from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["Bernoulli"]


@dataclass
class Bernoulli:
    """Coins that show 1 with log-odds `logits`, float `[..., n]`; leading dims are free."""

    logits: torch.Tensor

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Actions int8 `[..., n]` from uniforms `[..., n]` inside (0, 1)."""
        return (noise < torch.sigmoid(self.logits)).to(torch.int8)

    def mode(self) -> torch.Tensor:
        """The more probable side of each coin, int8 `[..., n]`; 0 where both are."""
        return (self.logits > 0).to(torch.int8)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """log π(action), float `[...]`."""
        signs = 2.0 * action.to(self.logits.dtype) - 1.0
        return functional.logsigmoid(signs * self.logits).sum(dim=-1)

    def entropy(self) -> torch.Tensor:
        """In nats, float `[...]`."""
        # H = softplus(x) − x · sigmoid(x)
        return (functional.softplus(self.logits) - self.logits * torch.sigmoid(self.logits)).sum(dim=-1)
