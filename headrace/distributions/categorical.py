"""The categorical distribution over actions 0 … n − 1, as a dataclass of tensors that batches can record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headrace import compiled
from headrace.native_gradients import as_rows, differentiable_gradients, suits_native
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
        logits, action = self.logits, action.long()
        if suits_native(logits) and action.shape == logits.shape[:-1]:
            found: torch.Tensor = _LogProb.apply(as_rows(logits, 2), action.reshape(-1))  # type: ignore[no-untyped-call]
            return found if action.ndim == 1 else found.reshape(action.shape)
        return _log_prob(logits, action)

    def entropy(self) -> torch.Tensor:
        """Returns the entropy −Σ p log p in nats, float `[...]`.

        A logit of −∞ (a masked action) contributes neither to the entropy nor to its gradient.
        """
        logits = self.logits
        if suits_native(logits):
            found: torch.Tensor = _Entropy.apply(as_rows(logits, 2))  # type: ignore[no-untyped-call]
            return found if logits.ndim == 2 else found.reshape(logits.shape[:-1])
        return _entropy(logits)


def _log_prob(logits: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, dim=-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    log_probs = torch.log_softmax(logits, dim=-1)
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)  # 0 · −∞ would be NaN
    return -(log_probs.exp() * finite).sum(dim=-1)


class _LogProb(torch.autograd.Function):
    """Log-probabilities `[n]` of logits `[n, k]` and actions `[n]`."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        assert compiled.learning is not None
        probability, log_prob = torch.empty(logits.shape), torch.empty(len(logits))
        known = compiled.learning.categorical_log_prob(
            logits.detach().numpy(), action.numpy(), probability.numpy(), log_prob.numpy()
        )
        if not known:
            raise IndexError(f"an action is outside 0 to {logits.shape[1] - 1}, the actions of these distributions")
        ctx.save_for_backward(logits, action, probability)
        return log_prob

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        assert compiled.learning is not None
        logits, action, probability = ctx.saved_tensors
        if torch.is_grad_enabled():
            by_logits = differentiable_gradients(lambda own: _log_prob(own, action), (logits,), gradient, (True,))
            return *by_logits, None
        to = torch.empty(logits.shape)
        compiled.learning.categorical_log_prob_gradient(
            gradient.numpy(), probability.numpy(), action.numpy(), to.numpy()
        )
        return to, None


class _Entropy(torch.autograd.Function):
    """Entropies `[n]` of logits `[n, k]`."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        assert compiled.learning is not None
        probability = torch.empty(logits.shape)
        log_total, entropy = torch.empty(len(logits)), torch.empty(len(logits))
        compiled.learning.categorical_entropy(
            logits.detach().numpy(), probability.numpy(), log_total.numpy(), entropy.numpy()
        )
        ctx.save_for_backward(logits, probability, log_total, entropy)
        return entropy

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        assert compiled.learning is not None
        logits, *own = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(_entropy, (logits,), gradient, (True,))
        to = torch.empty(logits.shape)
        compiled.learning.categorical_entropy_gradient(
            gradient.numpy(), logits.detach().numpy(), *(one.numpy() for one in own), to.numpy()
        )
        return to
