"""VPG, the vanilla policy gradient: REINFORCE with a learned value as its baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from headrace.algos.checks import require
from headrace.algos.pg.base import Losses, PgBatch, PgConfig, PolicyGradientAlgo
from headrace.config import checked_names, settings_in

__all__ = ["VPG", "VPGConfig"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class VPGConfig(PgConfig):
    """The settings of `VPG`."""

    gae_lambda: float = 1.0
    """λ of generalized advantage estimation; 1: discounted returns, 0: one-step temporal differences."""
    learning_rate: float = 5e-3
    """Adam's step size, or its initial value if there is a schedule."""
    value_epochs: int = 4
    """Passes over each batch that train the value alone, after the one that trains policy and value. All share one
    optimizer, so Adam's momentum carries the policy on meanwhile: about √(1 + value_epochs) times as far per batch as
    without them, at the same learning rate. Layers that policy and value share are trained as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("value_epochs", self.value_epochs, 0, math.inf)


@dataclass
class _ValuePart(PgBatch):
    """The data of an update that trains the value alone."""


@settings_in(VPGConfig)
class VPG(PolicyGradientAlgo):
    """Takes one gradient step per batch, with Monte Carlo returns and the policy loss `−mean(log π(a|s) · (R − V))`.

    This is REINFORCE (Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
    learning", 1992) with a baseline (Sutton and Barto, "Reinforcement learning: an introduction", 2018, section 13.4),
    which is the recorded value V. V is fitted to the returns R by least squares.

    In batches of whole episodes, R is the return of the rest of the episode; a truncated one is continued by V of its
    final observation. Such batches come from a sampler with `reset_mode="wait"` and `batch_T` at least as long as an
    episode, or from an episode sampler. Other batches also continue R by V where they cut an episode.

    Args:
        config: the settings; None: the defaults.
    """

    config: VPGConfig

    def __init__(self, config: VPGConfig | None = None) -> None:
        super().__init__(VPGConfig() if config is None else config)

    def parts(self, itr: int, batch: PgBatch, recomputed: Callable[[], PgBatch]) -> Iterator[PgBatch]:
        """Yields the whole batch, once for policy and value, then `value_epochs` times for the value."""
        yield batch
        again = _ValuePart(**vars(batch))
        for _ in range(self.config.value_epochs):
            yield again

    def losses(self, itr: int, part: PgBatch) -> Losses:
        """See `PolicyGradientAlgo.actor_critic_losses`; where the value alone learns, only its loss has a gradient."""
        losses = self.actor_critic_losses(part)
        if isinstance(part, _ValuePart):
            return replace(losses, policy=losses.policy.detach(), entropy=losses.entropy.detach())
        return losses
