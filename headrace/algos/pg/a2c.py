"""A2C, the synchronous advantage actor-critic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headrace.algos.pg.base import Losses, PgBatch, PgConfig, PolicyGradientAlgo
from headrace.config import checked_names, settings_in

__all__ = ["A2C", "A2CConfig"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class A2CConfig(PgConfig):
    """The settings of `A2C`."""

    gae_lambda: float = 1.0
    """λ of generalized advantage estimation; 1: discounted returns, 0: one-step temporal differences."""
    learning_rate: float = 3e-3
    """Adam's step size, or its initial value if there is a schedule."""


@settings_in(A2CConfig)
class A2C(PolicyGradientAlgo):
    """Takes one gradient step per batch, with the policy loss `−mean(log π(a|s) · A)`.

    This is the synchronous form of Mnih et al., "Asynchronous methods for deep reinforcement learning", 2016.

    Args:
        config: the settings; None: the defaults.
    """

    config: A2CConfig

    def __init__(self, config: A2CConfig | None = None) -> None:
        super().__init__(A2CConfig() if config is None else config)

    def parts(self, itr: int, batch: PgBatch, recomputed: Callable[[], PgBatch]) -> Iterator[PgBatch]:
        """Yields the whole batch, once."""
        yield batch

    def losses(self, itr: int, part: PgBatch) -> Losses:
        """See `PolicyGradientAlgo.actor_critic_losses`."""
        return self.actor_critic_losses(part)
