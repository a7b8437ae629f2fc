"""The ε-greedy choice among actions 0 … n − 1, as a tree: it is recorded in a batch and chooses from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from headrace.numpy_inference import suits_numpy

__all__ = ["EpsilonGreedy"]


@dataclass
class EpsilonGreedy:
    """Action values `q`, float `[..., n]`; leading dims are free. An action of value −∞ (a masked one) is impossible.

    Sutton and Barto, "Reinforcement learning: an introduction", 2018, section 2.2.
    """

    q: torch.Tensor

    def sample(self, noise: torch.Tensor, epsilon: float | torch.Tensor) -> torch.Tensor:
        """Actions int64 `[...]`: with probability ε any of the possible ones, each as likely, else the best.

        noise: uniforms `[..., 2]` inside (0, 1); the first decides whether to explore, the second where. epsilon: one
        for all rows, or float `[...]`.
        """
        if suits_numpy(self.q):
            rates = epsilon.numpy() if isinstance(epsilon, torch.Tensor) else epsilon
            return torch.from_numpy(_sample_in_numpy(self.q.numpy(), noise.numpy(), rates))
        count = (self.q > -torch.inf).cumsum(dim=-1)
        anywhere = (count < noise[..., 1:2] * count[..., -1:]).sum(dim=-1)
        return torch.where(noise[..., 0] < epsilon, anywhere, self.q.argmax(dim=-1))

    def mode(self) -> torch.Tensor:
        """The best actions, int64 `[...]`."""
        return self.q.argmax(dim=-1)


def _sample_in_numpy(q: np.ndarray, noise: np.ndarray, epsilon: float | np.ndarray) -> np.ndarray:
    action = np.asarray(q.argmax(axis=-1))
    explores = noise[..., 0] < epsilon
    if explores.any():  # late in training: in few rows
        count = (q > -np.inf).cumsum(axis=-1, dtype=np.float32)  # as torch compares: by either route the same action
        anywhere = (count >= noise[..., 1:2] * count[..., -1:]).argmax(axis=-1)
        action = np.where(explores, anywhere, action)
    return action
