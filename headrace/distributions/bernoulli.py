"""Independent Bernoulli variables, for MultiBinary actions, as a dataclass of tensors that batches can record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["Bernoulli"]


@dataclass
class Bernoulli:
    """Independent Bernoulli variables with any leading dims.

    Args:
        logits: log-odds of 1, float `[..., n]`.
    """

    logits: torch.Tensor

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Returns actions, int8 `[..., n]`, sampled with uniforms `[..., n]` in the open interval (0, 1)."""
        return (noise < torch.sigmoid(self.logits)).to(torch.int8)

    def mode(self) -> torch.Tensor:
        """Returns the more probable value of each variable, int8 `[..., n]`; 0 for equal probabilities."""
        return (self.logits > 0).to(torch.int8)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Returns log π(action), float `[...]`, of actions `[..., n]`."""
        signs = 2.0 * action.to(self.logits.dtype) - 1.0
        return functional.logsigmoid(signs * self.logits).sum(dim=-1)

    def entropy(self) -> torch.Tensor:
        """Returns the entropy in nats, float `[...]`."""
        # H = softplus(x) − x · sigmoid(x)
        return (functional.softplus(self.logits) - self.logits * torch.sigmoid(self.logits)).sum(dim=-1)
