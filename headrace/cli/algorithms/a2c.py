"""A2C on the command line."""

from __future__ import annotations

from headrace.algos.pg import A2C, A2CConfig
from headrace.cli.algorithms import policy_gradient
from headrace.cli.algorithms.base import Algorithm, Defaults, Kind
from headrace.cli.algorithms.policy_gradient import NORMALIZED, SEPARATE

__all__ = ["ALGORITHM"]

_DEFAULTS: dict[Kind, Defaults[A2CConfig]] = {
    "discrete": Defaults(
        n_steps=500_000,
        log_interval_steps=25_000,
        batch_T=8,
        batch_B=32,
        model=SEPARATE,
        settings=A2CConfig(),
    ),
    "continuous": Defaults(
        n_steps=1_000_000,
        log_interval_steps=50_000,
        batch_T=8,
        batch_B=32,
        model=NORMALIZED,
        settings=A2CConfig(
            gae_lambda=0.95,
            learning_rate=7e-4,
            entropy_loss_coeff=0.0,
        ),
    ),
    # Mnih et al., "Asynchronous methods for deep reinforcement learning", 2016, with one learner.
    "images": Defaults(
        n_steps=10_000_000,
        log_interval_steps=50_000,
        batch_T=5,
        batch_B=16,
        settings=A2CConfig(learning_rate=7e-4, normalize_reward=False),
    ),
}

ALGORITHM = Algorithm(
    algo=A2C,
    agent=policy_gradient.agent,
    rules=policy_gradient.rules,
    defaults=_DEFAULTS,
    with_memory=policy_gradient.one_body,
    stands_for={
        "a3c": ", the same without lag, or impala, which corrects for lag (--sampler async-cpu)",
    },
)
