"""The diagonal Gaussian over real vectors, as a tree: it is recorded in a batch and computes from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from headrace.numpy_inference import suits_numpy

__all__ = ["Gaussian"]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass
class Gaussian:
    """Independent normals with `mean` and `log_std`, float `[..., d]`; leading dims are free."""

    mean: torch.Tensor
    log_std: torch.Tensor

    @staticmethod
    def noise_size(d: int) -> int:
        """Uniforms a draw of `d` numbers takes: pairs, by Box and Muller."""
        return 2 * ((d + 1) // 2)

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Vectors float `[..., d]` from uniforms `[..., noise_size(d)]` inside (0, 1).

        Box and Muller, "A note on the generation of random normal deviates", 1958: one radius and one angle give two
        normals. The first half of the uniforms are radii, the second half angles.
        """
        if suits_numpy(self.mean):
            return torch.from_numpy(_sample_in_numpy(self.mean.numpy(), self.log_std.numpy(), noise.numpy()))
        radius, angle = noise.chunk(2, dim=-1)
        radius, angle = (-2.0 * radius.log()).sqrt(), 2.0 * math.pi * angle
        normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., : self.mean.shape[-1]]
        return self.mean + self.log_std.exp() * normal

    def mode(self) -> torch.Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """log π(action), float `[...]`: the density of the vector."""
        standard = (action - self.mean) * (-self.log_std).exp()
        return -(0.5 * standard.square() + self.log_std + _LOG_SQRT_2PI).sum(dim=-1)

    def entropy(self) -> torch.Tensor:
        """In nats, float `[...]`; a density's, so it may be negative."""
        return (self.log_std + (0.5 + _LOG_SQRT_2PI)).sum(dim=-1)


def _sample_in_numpy(mean: np.ndarray, log_std: np.ndarray, noise: np.ndarray) -> np.ndarray:
    half = noise.shape[-1] // 2
    radius = np.sqrt(-2.0 * np.log(noise[..., :half]))
    angle = np.float32(2.0 * math.pi) * noise[..., half:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)[..., : mean.shape[-1]]
    drawn: np.ndarray = mean + np.exp(log_std) * normal
    return drawn
