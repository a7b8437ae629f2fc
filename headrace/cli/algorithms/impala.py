"""IMPALA on the command line."""

from __future__ import annotations

from headrace.algos.pg import IMPALA, IMPALAConfig
from headrace.cli.algorithms import policy_gradient
from headrace.cli.algorithms.base import Algorithm, Defaults, Kind
from headrace.cli.algorithms.policy_gradient import NORMALIZED, SEPARATE

__all__ = ["ALGORITHM"]

_DEFAULTS: dict[Kind, Defaults[IMPALAConfig]] = {
    "discrete": Defaults(
        n_steps=500_000,
        log_interval_steps=25_000,
        batch_T=8,
        batch_B=32,
        model=SEPARATE,
        settings=IMPALAConfig(),
    ),
    "continuous": Defaults(
        n_steps=1_000_000,
        log_interval_steps=50_000,
        batch_T=8,
        batch_B=32,
        model=NORMALIZED,
        settings=IMPALAConfig(
            gae_lambda=0.95,
            learning_rate=7e-4,
            entropy_loss_coeff=0.0,
        ),
    ),
    # Espeholt et al., "IMPALA", 2018, table G.1, with Adam.
    "images": Defaults(
        n_steps=10_000_000,
        log_interval_steps=50_000,
        batch_T=20,
        batch_B=32,
        settings=IMPALAConfig(
            learning_rate=6e-4, clip_grad_norm=40.0, normalize_advantage=False, normalize_reward=False
        ),
    ),
}

ALGORITHM = Algorithm(
    algo=IMPALA,
    agent=policy_gradient.agent,
    rules=policy_gradient.rules,
    defaults=_DEFAULTS,
    with_memory=policy_gradient.one_body,
    stands_for={"appo": ", with --sampler async-cpu"},
)
