"""Scales rewards by the running standard deviation of discounted returns."""

from __future__ import annotations

from typing import Any

import torch

from headrace.algos.ranks import ALONE, Ranks, moments
from headrace.schema import Kind, fields, optional, real, tensor, whole

__all__ = ["RewardScaling"]


class RewardScaling:
    """Divides rewards by the running standard deviation of the discounted return, then clips them to ±`clip`.

    The return of environment b accumulates past rewards, `y_t = γ y_{t−1} + r_t`, from 0 at the start of each episode
    (Engstrom et al., "Implementation matters in deep policy gradients", 2020, §2). The mean is not subtracted, because
    that would change which policy is optimal. Each batch updates the statistics before it is scaled.

    Args:
        discount: γ.
        clip: largest absolute value of a scaled reward.
    """

    def __init__(self, discount: float, clip: float = 10.0) -> None:
        self._discount = discount
        self._clip = clip
        self._count, self._mean, self._var = 0, 0.0, 1.0
        self._running: torch.Tensor | None = None

    @property
    def deviation(self) -> float:
        """The divisor of rewards: the size of one unit of scaled return, in the environment's rewards."""
        return float((self._var + 1e-8) ** 0.5)

    def __call__(
        self, reward: torch.Tensor, ended: torch.Tensor, valid: torch.Tensor | None, ranks: Ranks = ALONE
    ) -> torch.Tensor:
        """Updates the statistics with a batch and returns its scaled rewards, `[T, B]`.

        Args:
            reward: rewards, float `[T, B]`.
            ended: bool `[T, B]`, whether the episode ended at this step.
            valid: bool `[T, B]`; None: all steps are valid.
            ranks: the learners whose batches the statistics include.
        """
        reward = reward if valid is None else reward.masked_fill(~valid, 0.0)
        running = reward.new_zeros(reward.shape[1]) if self._running is None else self._running.to(reward.device)
        goes_on = (~ended).to(reward.dtype)
        returns = torch.empty_like(reward)
        for t in range(len(reward)):
            torch.add(reward[t], running, alpha=self._discount, out=returns[t])
            running = returns[t] * goes_on[t]
        # Where every episode ended there is nothing to continue, so batches of whole episodes may differ in number.
        self._running = running if bool(running.any()) else None
        self._update((returns if valid is None else returns[valid]).double(), ranks)
        scaled: torch.Tensor = (reward / self.deviation).clamp(-self._clip, self._clip)
        return scaled

    def _update(self, returns: torch.Tensor, ranks: Ranks) -> None:
        n, mean_of_all, var_of_all = moments(ranks, returns)
        if not n:
            return
        mean, var = float(mean_of_all), float(var_of_all)
        share, delta = n / (self._count + n), mean - self._mean
        # The first batch has share 1 and replaces the initial mean 0 and variance 1.
        self._var = (1 - share) * self._var + share * var + (1 - share) * share * delta * delta
        self._mean += share * delta
        self._count += n

    def cut(self, returns: torch.Tensor | None = None) -> None:
        """Restarts the running returns, because the next batch does not continue the last one.

        Args:
            returns: those up to the next batch, float `[B]`; None: 0.
        """
        self._running = returns

    def state_dict(self) -> dict[str, Any]:
        """Returns the statistics and the running returns."""
        return {"count": self._count, "mean": self._mean, "var": self._var, "running": self._running}

    @staticmethod
    def kind(B: int) -> Kind:
        """Returns the schema of `state_dict` for batches of B environments."""
        running = optional(tensor((B,), torch.float32))
        return fields({"count": whole(), "mean": real(-1e300, 1e300), "var": real(0, 1e300), "running": running})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self._count, self._mean, self._var = state["count"], state["mean"], state["var"]
        self._running = state["running"]
