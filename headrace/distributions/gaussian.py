"""The diagonal Gaussian over real vectors, as a dataclass of tensors that batches can record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from headrace import compiled
from headrace.native_gradients import as_rows, differentiable_gradients, suits_native
from headrace.numpy_acting import draw_gaussian
from headrace.numpy_inference import suits_numpy

__all__ = ["Gaussian", "standard_normal"]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def standard_normal(noise: torch.Tensor, d: int) -> torch.Tensor:
    """Returns `d` standard normal numbers, float `[..., d]`, for each row of uniforms.

    Box and Muller, "A note on the generation of random normal deviates", 1958: one radius and one angle give two
    normals. The first half of the uniforms gives the radii, the second half the angles.

    Args:
        noise: uniforms `[..., Gaussian.noise_size(d)]` in the open interval (0, 1).
        d: how many numbers to return.
    """
    radius, angle = noise.chunk(2, dim=-1)
    radius, angle = (-2.0 * radius.log()).sqrt(), 2.0 * math.pi * angle
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :d]


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

        Args:
            noise: uniforms `[..., noise_size(d)]`, see `standard_normal`.
        """
        if suits_numpy(self.mean):
            return torch.from_numpy(draw_gaussian(self.mean.numpy(), self.log_std.numpy(), noise.numpy()))
        return self.mean + self.log_std.exp() * standard_normal(noise, self.mean.shape[-1])

    def mode(self) -> torch.Tensor:
        """Returns the mean, float `[..., d]`."""
        return self.mean

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Returns log π(action), float `[...]`, the log density of vectors `[..., d]`."""
        mean, log_std = self.mean, self.log_std
        if suits_native(mean, log_std, action) and mean.shape == log_std.shape == action.shape:
            parts = (as_rows(part, 2) for part in (mean, log_std, action))
            found: torch.Tensor = _LogProb.apply(*parts)  # type: ignore[no-untyped-call]
            return found if mean.ndim == 2 else found.reshape(mean.shape[:-1])
        return _log_prob(mean, log_std, action)

    def entropy(self) -> torch.Tensor:
        """Returns the differential entropy in nats, float `[...]`; it may be negative."""
        return (self.log_std + (0.5 + _LOG_SQRT_2PI)).sum(dim=-1)


def _log_prob(mean: torch.Tensor, log_std: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    standard = (action - mean) * (-log_std).exp()
    return -(0.5 * standard.square() + log_std + _LOG_SQRT_2PI).sum(dim=-1)


class _LogProb(torch.autograd.Function):
    """Log densities `[n]` of means, logarithms of standard deviations and actions, each `[n, d]`."""

    @staticmethod
    def forward(ctx: Any, mean: torch.Tensor, log_std: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        assert compiled.learning is not None
        log_prob, by_mean, by_log_std = torch.empty(len(mean)), torch.empty(mean.shape), torch.empty(mean.shape)
        compiled.learning.gaussian_log_prob(
            *(part.detach().numpy() for part in (mean, log_std, action, log_prob, by_mean, by_log_std))
        )
        ctx.save_for_backward(mean, log_std, action, by_mean, by_log_std)
        return log_prob

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        *arguments, by_mean, by_log_std = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(_log_prob, arguments, gradient, ctx.needs_input_grad)
        rows = gradient.unsqueeze(-1)
        by_action = -by_mean * rows if ctx.needs_input_grad[2] else None
        return by_mean * rows, by_log_std * rows, by_action
