"""VPG on the command line."""

from __future__ import annotations

from headrace.algos.pg import VPG, VPGConfig
from headrace.cli.algorithms import policy_gradient
from headrace.cli.algorithms.base import Algorithm, Defaults, Kind
from headrace.cli.algorithms.policy_gradient import NORMALIZED, SEPARATE

__all__ = ["ALGORITHM"]

_DEFAULTS: dict[Kind, Defaults[VPGConfig]] = {
    # Enough to solve CartPole-v1.
    "discrete": Defaults(
        n_steps=300_000,
        log_interval_steps=20_000,
        batch_T=128,
        batch_B=16,
        model=SEPARATE,
        settings=VPGConfig(),
    ),
    "continuous": Defaults(
        n_steps=1_000_000,
        log_interval_steps=50_000,
        batch_T=128,
        batch_B=16,
        model=NORMALIZED,
        settings=VPGConfig(learning_rate=3e-3, entropy_loss_coeff=0.0),
    ),
    # The learning rate and the rewards of a2c, with larger batches; no result is recorded for images.
    "images": Defaults(
        n_steps=10_000_000,
        log_interval_steps=50_000,
        batch_T=128,
        batch_B=16,
        settings=VPGConfig(learning_rate=7e-4, value_epochs=0, normalize_reward=False),
    ),
}

ALGORITHM = Algorithm(
    algo=VPG,
    agent=policy_gradient.agent,
    rules=policy_gradient.rules,
    defaults=_DEFAULTS,
    with_memory=policy_gradient.one_body,
    stands_for={"reinforce": ""},
)
