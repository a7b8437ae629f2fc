"""The losses of PPO, of one minibatch."""

from __future__ import annotations

from typing import Any

import torch

from headrace import compiled
from headrace.native_gradients import as_rows, differentiable_gradients, suits_native

__all__ = ["ppo_losses"]


def ppo_losses(
    new: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    old: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    ratio_clip: float,
    value_clip: float | None,
) -> torch.Tensor:
    """Computes the losses of PPO.

    Schulman et al., "Proximal policy optimization algorithms", 2017, equations 7 and 9. With gradients, on the CPU and
    where the native part is built, this is one operation of autograd.

    Args:
        new: log π(a|s), entropy and value of the current parameters, float `[n]` or `[T, B]`.
        old: recorded log π(a|s), advantage, target of the value and recorded value, of the same shape.
        ratio_clip: how far the ratio of probabilities may be from 1 before it is clipped.
        value_clip: how far the value may be from the recorded one before it is clipped; None: it is not clipped.

    Returns:
        float `[5]`, means over all steps: the clipped surrogate, negative; half the squared error of the value; the
        entropy; and, without gradient, the KL divergence of old and new policy and the fraction of clipped ratios.
    """
    parts = (*new, *old)
    alike = all(part.shape == new[0].shape for part in parts) and not any(part.requires_grad for part in old)
    if alike and suits_native(*parts):
        flat = (as_rows(part, 1) for part in parts)
        losses: torch.Tensor = _PpoLosses.apply(*flat, ratio_clip, value_clip)  # type: ignore[no-untyped-call]
        return losses
    return _by_operators(ratio_clip, value_clip, *parts)


def _by_operators(
    ratio_clip: float,
    value_clip: float | None,
    log_prob: torch.Tensor,
    entropy: torch.Tensor,
    value: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    returns: torch.Tensor,
    old_value: torch.Tensor,
) -> torch.Tensor:
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1.0 - ratio_clip, 1.0 + ratio_clip) * advantage)
    error = (value - returns).square()
    if value_clip is not None:
        near = old_value + (value - old_value).clamp(-value_clip, value_clip)
        error = torch.maximum(error, (near - returns).square())
    with torch.no_grad():
        # Schulman's estimator of KL(π_old, π) is never negative and less noisy than −mean(log_ratio).
        divergence = (ratio - 1.0 - log_ratio).mean()
        clipped = ((ratio - 1.0).abs() > ratio_clip).float().mean()
    return torch.stack([-surrogate.mean(), 0.5 * error.mean(), entropy.mean(), divergence, clipped])


class _PpoLosses(torch.autograd.Function):
    """See `ppo_losses`; only the first three tensors have gradients."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        assert compiled.learning is not None
        *tensors, ratio_clip, value_clip = arguments
        by_log_prob, by_value = torch.empty(len(tensors[0])), torch.empty(len(tensors[0]))
        losses = compiled.learning.ppo_losses(
            *(tensor.detach().numpy() for tensor in tensors),
            ratio_clip,
            -1.0 if value_clip is None else value_clip,
            by_log_prob.numpy(),
            by_value.numpy(),
        )
        ctx.clips = ratio_clip, value_clip
        ctx.save_for_backward(*tensors, by_log_prob, by_value)
        return torch.tensor(losses, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        *tensors, by_log_prob, by_value = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        constants = [None] * 6
        if torch.is_grad_enabled():

            def operators(*new: torch.Tensor) -> torch.Tensor:
                return _by_operators(*ctx.clips, *new, *tensors[3:])

            return *differentiable_gradients(operators, tensors[:3], gradient, needed), *constants
        of_policy, of_value, of_entropy = gradient.tolist()[:3]
        by_entropy = torch.full_like(by_value, of_entropy / len(by_value)) if needed[1] else None
        return by_log_prob * of_policy, by_entropy, by_value * of_value, *constants
