"""The categorical distribution over actions 0 … n − 1, as a dataclass of tensors that batches can record."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.numpy_acting import draw_categorical
from headrace.numpy_inference import suits_numpy

__all__ = ["Categorical"]


@dataclass
class Categorical:
    """Categorical distributions over `n` actions, with any leading dims.

    Args:
        logits: unnormalised log-probabilities, float `[..., n]`.
    """

    logits: torch.Tensor

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Returns actions, int64 `[...]`, by inverting the cumulative distribution function.

        The action is the smallest k whose cumulative probability reaches u · total. Scaling by the total and the strict
        `<` ensure that an action of probability zero is never sampled, whatever the rounding.

        Args:
            noise: uniforms u, float32 `[..., 1]`, in the open interval (0, 1).
        """
        if suits_numpy(self.logits):
            return torch.from_numpy(draw_categorical(self.logits.numpy(), noise.numpy()))
        cumulated = torch.softmax(self.logits, dim=-1).cumsum(dim=-1)
        return (cumulated < noise * cumulated[..., -1:]).sum(dim=-1)

    def mode(self) -> torch.Tensor:
        """Returns the most probable actions, int64 `[...]`."""
        return self.logits.argmax(dim=-1)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Returns log π(action), float `[...]`, of integer actions `[...]`."""
        log_probs = torch.log_softmax(self.logits, dim=-1)
        return log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> torch.Tensor:
        """Returns the entropy −Σ p log p in nats, float `[...]`.

        A logit of −∞ (a masked action) contributes neither to the entropy nor to its gradient.
        """
        log_probs = torch.log_softmax(self.logits, dim=-1)
        finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)  # 0 · −∞ would be NaN
        return -(log_probs.exp() * finite).sum(dim=-1)
