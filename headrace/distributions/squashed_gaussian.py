"""The diagonal Gaussian squashed by tanh, as a dataclass of tensors that batches can record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from headrace.distributions.gaussian import Gaussian
from headrace.native_gradients import suits_own_gradients

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
        mean, log_std = self.mean, self.log_std
        if suits_own_gradients(mean):
            drawn: tuple[torch.Tensor, torch.Tensor] = _Reparametrized.apply(mean, log_std, normal)  # type: ignore[no-untyped-call]
            return drawn
        return _by_operators(mean, log_std, normal)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Returns the log density, float `[...]`, of vectors in [−1, 1], float `[..., d]`.

        Numbers within 1e-6 of ±1 count as this far from them, because the inverse of tanh is infinite there.
        """
        u = action.clamp(-_INSIDE, _INSIDE).atanh()
        return Gaussian(self.mean, self.log_std).log_prob(u) - _log_slope(u).sum(dim=-1)


def _by_operators(mean: torch.Tensor, log_std: torch.Tensor, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    u = mean + log_std.exp() * normal
    log_prob = -(0.5 * normal.square() + log_std + _LOG_SQRT_2PI + _log_slope(u)).sum(dim=-1)
    return u.tanh(), log_prob


class _Reparametrized(torch.autograd.Function):
    """Actions `[..., d]` and log densities `[...]`; one operation of autograd, because most of the time of small ones
    passes between them.
    """

    @staticmethod
    def forward(
        ctx: Any, mean: torch.Tensor, log_std: torch.Tensor, normal: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        action, log_prob = _by_operators(mean, log_std, normal)
        ctx.save_for_backward(mean, log_std, normal, action)
        return action, log_prob

    @staticmethod
    def backward(ctx: Any, by_action: torch.Tensor, by_log_prob: torch.Tensor) -> Any:
        mean, log_std, normal, action = ctx.saved_tensors
        if torch.is_grad_enabled():
            with torch.enable_grad():
                again = _by_operators(mean, log_std, normal)
            found = torch.autograd.grad(again, (mean, log_std), (by_action, by_log_prob), create_graph=True)
            return *found, None
        rows = by_log_prob.unsqueeze(-1)
        # With u = mean + std · normal: d action / du = 1 − action², d log_prob / du = 2 · action.
        by_u = torch.addcmul(by_action, action, 2.0 * rows - by_action * action)
        return by_u, by_u * (log_std.exp() * normal) - rows, None


def _log_slope(u: torch.Tensor) -> torch.Tensor:
    """Returns log(1 − tanh²u), the logarithm of the derivative of tanh, in a form that neither over- nor underflows."""
    return 2.0 * (_LOG_2 - u - functional.softplus(-2.0 * u))
