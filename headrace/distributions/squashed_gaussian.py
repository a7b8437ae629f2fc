"""The diagonal Gaussian squashed by tanh, as a dataclass of tensors that batches can record."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from headrace.distributions.gaussian import Gaussian

__all__ = ["SquashedGaussian"]

_LOG_2 = math.log(2.0)
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
#: Largest absolute value of an action whose density is asked for: at 1 itself, the Gaussian's value is infinite.
_INSIDE = 1.0 - 1e-6


@dataclass
class SquashedGaussian:
    """The distribution of `tanh(u)` for Gaussian vectors `u` of `d` independent numbers, with any leading dims.

    Haarnoja et al., "Soft actor-critic algorithms and applications", 2018, appendix C.

    Args:
        mean: means of u, float `[..., d]`.
        log_std: logarithms of the standard deviations of u, float `[..., d]`.
    """

    mean: torch.Tensor
    log_std: torch.Tensor

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Returns sampled vectors in [−1, 1], float `[..., d]`.

        Args:
            noise: uniforms `[..., Gaussian.noise_size(d)]` in the open interval (0, 1).
        """
        return Gaussian(self.mean, self.log_std).sample(noise).tanh()

    def mode(self) -> torch.Tensor:
        """Returns tanh of the mean of u, float `[..., d]`; it is the median of each number."""
        return self.mean.tanh()

    def reparametrized(self, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns vectors that are differentiable in the parameters, float `[..., d]`, and their log densities `[...]`.

        Args:
            normal: standard normal numbers, float `[..., d]`.
        """
        u = self.mean + self.log_std.exp() * normal
        log_prob = (-0.5 * normal.square() - self.log_std - _LOG_SQRT_2PI - _log_slope(u)).sum(dim=-1)
        return u.tanh(), log_prob

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Returns the log density, float `[...]`, of vectors in [−1, 1], float `[..., d]`.

        Numbers within 1e-6 of ±1 count as this far from them, because the inverse of tanh is infinite there.
        """
        u = action.clamp(-_INSIDE, _INSIDE).atanh()
        return Gaussian(self.mean, self.log_std).log_prob(u) - _log_slope(u).sum(dim=-1)


def _log_slope(u: torch.Tensor) -> torch.Tensor:
    """Returns log(1 − tanh²u), the logarithm of the derivative of tanh, in a form that neither over- nor underflows."""
    return 2.0 * (_LOG_2 - u - functional.softplus(-2.0 * u))
