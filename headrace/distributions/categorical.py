"""The categorical distribution over actions 0 … n − 1, as a tree: it is recorded in a batch and computes from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from headrace.numpy_inference import suits_numpy

__all__ = ["Categorical"]


@dataclass
class Categorical:
    """Unnormalised log-probabilities `logits`, float `[..., n]`; leading dims are free."""

    logits: torch.Tensor

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Actions int64 `[...]` by the inverse of the distribution function, from uniforms `[..., 1]` inside (0, 1).

        The smallest k whose cumulated probability reaches u · total. Scaling by the total and the strict `<` keep an
        action of probability zero impossible, whatever the rounding.
        """
        if suits_numpy(self.logits):
            return torch.from_numpy(_sample_in_numpy(self.logits.numpy(), noise.numpy()))
        cumulated = torch.softmax(self.logits, dim=-1).cumsum(dim=-1)
        return (cumulated < noise * cumulated[..., -1:]).sum(dim=-1)

    def mode(self) -> torch.Tensor:
        """The most probable actions, int64 `[...]`."""
        return self.logits.argmax(dim=-1)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """log π(action), float `[...]`, of integers `[...]`."""
        log_probs = torch.log_softmax(self.logits, dim=-1)
        return log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> torch.Tensor:
        """−Σ p log p in nats, float `[...]`; a logit of −∞ (a masked action) has no part in it, nor in its gradient."""
        log_probs = torch.log_softmax(self.logits, dim=-1)
        finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)  # 0 · −∞ would be NaN
        return -(log_probs.exp() * finite).sum(dim=-1)


def _sample_in_numpy(logits: np.ndarray, noise: np.ndarray) -> np.ndarray:
    cumulated = np.exp(logits - logits.max(axis=-1, keepdims=True)).cumsum(axis=-1)
    return np.asarray((cumulated >= noise * cumulated[..., -1:]).argmax(axis=-1))
