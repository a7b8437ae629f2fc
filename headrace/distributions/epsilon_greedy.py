"""ε-greedy choice among actions 0 … n − 1, as a dataclass of tensors that batches can record."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.numpy_acting import draw_epsilon_greedy
from headrace.numpy_inference import suits_numpy

__all__ = ["EpsilonGreedy"]


@dataclass
class EpsilonGreedy:
    """ε-greedy choice by action values, with any leading dims. An action of value −∞ (a masked one) is never taken.

    Sutton and Barto, "Reinforcement learning: an introduction", 2018, section 2.2.

    Args:
        q: action values, float `[..., n]`.
    """

    q: torch.Tensor

    def sample(self, noise: torch.Tensor, epsilon: float | torch.Tensor) -> torch.Tensor:
        """Returns actions, int64 `[...]`: with probability ε uniform over the unmasked actions, else the best.

        Args:
            noise: uniforms `[..., 2]` (further entries are ignored) in the open interval (0, 1). The first decides
                whether to explore, the second which action to take then.
            epsilon: ε, one number or float `[...]`.
        """
        if suits_numpy(self.q):
            rates = epsilon.numpy() if isinstance(epsilon, torch.Tensor) else epsilon
            return torch.from_numpy(draw_epsilon_greedy(self.q.numpy(), noise.numpy(), rates))
        count = (self.q > -torch.inf).cumsum(dim=-1)
        anywhere = (count < noise[..., 1:2] * count[..., -1:]).sum(dim=-1)
        return torch.where(noise[..., 0] < epsilon, anywhere, self.q.argmax(dim=-1))

    def mode(self) -> torch.Tensor:
        """Returns the best actions, int64 `[...]`."""
        return self.q.argmax(dim=-1)
