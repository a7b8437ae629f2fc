"""IMPALA, an actor-critic with off-policy corrections for batches that an older policy collected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from headrace.algos.checks import require
from headrace.algos.pg.base import Losses, PgBatch, PgConfig, PolicyGradientAlgo
from headrace.algos.returns import bootstrap_values, final_values, first_state, v_trace
from headrace.buffers.samples import Samples
from headrace.config import checked_names, settings_in
from headrace.types import StepInputs

__all__ = ["IMPALA", "IMPALAConfig"]


@checked_names
@dataclass(frozen=True, kw_only=True)
class IMPALAConfig(PgConfig):
    """The settings of `IMPALA`."""

    gae_lambda: float = 1.0
    """λ of V-trace; 1: corrections propagate back as far as the clipped ratios allow, 0: one-step differences."""
    rho_clip: float = 1.0
    """ρ̄: upper limit of the ratios in temporal differences and in the policy gradient."""
    c_clip: float = 1.0
    """c̄: upper limit of the ratios by which corrections propagate back in time."""
    learning_rate: float = 3e-3
    """Adam's step size, or its initial value if there is a schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rho_clip", "c_clip"):
            require(name, getattr(self, name), 0.0, math.inf)


@settings_in(IMPALAConfig)
class IMPALA(PolicyGradientAlgo):
    """Takes one gradient step per batch, with V-trace advantages and value targets.

    Espeholt et al., "IMPALA: scalable distributed deep-RL with importance weighted actor-learner architectures", 2018.
    The behaviour policy is given by the distributions recorded in the batch. Values, also for the time step after the
    batch, are computed with the current parameters. If those are the parameters that acted, this is A2C.

    Args:
        config: the settings; None: the defaults.
    """

    bootstrap_value = False
    config: IMPALAConfig

    def __init__(self, config: IMPALAConfig | None = None) -> None:
        super().__init__(IMPALAConfig() if config is None else config)

    def advantages(
        self, samples: Samples, reward: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns V-trace advantages and value targets; see `PolicyGradientAlgo`."""
        env, acted = samples.env, samples.agent
        inputs = StepInputs(env.observation, acted.prev_action, env.prev_reward, env.is_first)
        now = self._agent(inputs, first_state(self._agent, samples))
        return v_trace(
            reward,
            now.value,
            now.dist.log_prob(acted.action) - acted.agent_info.dist.log_prob(acted.action),
            env.terminated,
            env.truncated,
            bootstrap_values(self._agent, samples),
            final_values(self._agent, samples),
            self.discount,
            self.config.gae_lambda,
            self.config.rho_clip,
            self.config.c_clip,
            valid,
        )

    def parts(self, itr: int, batch: PgBatch, recomputed: Callable[[], PgBatch]) -> Iterator[PgBatch]:
        """Yields the whole batch, once."""
        yield batch

    def losses(self, itr: int, part: PgBatch) -> Losses:
        """See `PolicyGradientAlgo.actor_critic_losses`."""
        return self.actor_critic_losses(part)
