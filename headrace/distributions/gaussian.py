"""The diagonal Gaussian over real vectors, as a dataclass of tensors that batches can record."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headrace.numpy_acting import draw_gaussian
from headrace.numpy_inference import suits_numpy

__all__ = ["Gaussian"]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass
class Gaussian:
    """Diagonal Gaussians over vectors of `d` numbers, with any leading dims.

    Args:
        mean: means, float `[..., d]`.
        log_std: logarithms of the standard deviations, float `[..., d]`.
    """

    mean: torch.Tensor
    log_std: torch.Tensor

    @staticmethod
    def noise_size(d: int) -> int:
        """Returns the number of uniforms that a sample of `d` numbers uses: pairs, as Box–Muller requires."""
        return 2 * ((d + 1) // 2)

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Returns sampled vectors, float `[..., d]`.

        Box and Muller, "A note on the generation of random normal deviates", 1958: one radius and one angle give two
        normals. The first half of the uniforms gives the radii, the second half the angles.

        Args:
            noise: uniforms `[..., noise_size(d)]` in the open interval (0, 1).
        """
        if suits_numpy(self.mean):
            return torch.from_numpy(draw_gaussian(self.mean.numpy(), self.log_std.numpy(), noise.numpy()))
        radius, angle = noise.chunk(2, dim=-1)
        radius, angle = (-2.0 * radius.log()).sqrt(), 2.0 * math.pi * angle
        normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., : self.mean.shape[-1]]
        return self.mean + self.log_std.exp() * normal

    def mode(self) -> torch.Tensor:
        """Returns the mean, float `[..., d]`."""
        return self.mean

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Returns log π(action), float `[...]`, the log density of vectors `[..., d]`."""
        standard = (action - self.mean) * (-self.log_std).exp()
        return -(0.5 * standard.square() + self.log_std + _LOG_SQRT_2PI).sum(dim=-1)

    def entropy(self) -> torch.Tensor:
        """Returns the differential entropy in nats, float `[...]`; it may be negative."""
        return (self.log_std + (0.5 + _LOG_SQRT_2PI)).sum(dim=-1)
