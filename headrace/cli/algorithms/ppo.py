"""PPO on the command line."""

from __future__ import annotations

from dataclasses import replace

from headrace.algos.pg import PPO, PPOConfig
from headrace.cli.agents import ModelOptions
from headrace.cli.algorithms import policy_gradient
from headrace.cli.algorithms.base import Algorithm, Defaults, Kind
from headrace.cli.algorithms.policy_gradient import NORMALIZED, SEPARATE

__all__ = ["ALGORITHM"]

_DEFAULTS: dict[Kind, Defaults[PPOConfig]] = {
    # Enough to solve CartPole-v1.
    "discrete": Defaults(
        n_steps=400_000,
        log_interval_steps=20_000,
        batch_T=32,
        batch_B=64,
        model=SEPARATE,
        settings=PPOConfig(),
    ),
    # Engstrom et al., "Implementation matters in deep policy gradients", 2020: with Box actions, normalization of
    # observations and rewards matters as much as the algorithm.
    "continuous": Defaults(
        n_steps=1_000_000,
        log_interval_steps=50_000,
        batch_T=64,
        batch_B=32,
        model=NORMALIZED,
        settings=PPOConfig(
            learning_rate=3e-4,
            minibatches=32,
            entropy_loss_coeff=0.0,
        ),
    ),
    # Schulman et al., "Proximal policy optimization algorithms", 2017, table 5 (3 epochs there). Rewards are not
    # scaled, for images in all algorithms: those of `make_atari` are −1, 0 and 1 already.
    "images": Defaults(
        n_steps=10_000_000,
        log_interval_steps=50_000,
        batch_T=128,
        batch_B=8,
        settings=PPOConfig(
            learning_rate=2.5e-4,
            epochs=4,
            minibatches=4,
            ratio_clip=0.1,
            linear_clip_schedule=True,
            normalize_reward=False,
        ),
    ),
}

_MEASURED: dict[str, Defaults[PPOConfig]] = {
    "Acrobot-v1": Defaults(
        n_steps=400_000,
        log_interval_steps=20_000,
        batch_T=128,
        batch_B=16,
        model=NORMALIZED,
        settings=PPOConfig(
            gae_lambda=0.94,
            epochs=4,
            minibatches=8,
            entropy_loss_coeff=0.0,
        ),
    ),
    # With half the range of an action as the first standard deviation, many actions are clipped. A smaller one, a
    # shorter horizon (γ, λ) and larger minibatches together more than double the return: see docs/results.md.
    "HalfCheetah-v5": Defaults(
        n_steps=1_000_000,
        log_interval_steps=50_000,
        batch_T=64,
        batch_B=32,
        model=replace(NORMALIZED, init_log_std=-1.0),
        settings=PPOConfig(
            learning_rate=3e-4,
            discount=0.98,
            gae_lambda=0.92,
            minibatches=16,
            entropy_loss_coeff=0.0,
        ),
    ),
    "LunarLander-v3": Defaults(
        n_steps=1_000_000,
        log_interval_steps=50_000,
        batch_T=256,
        batch_B=16,
        model=SEPARATE,
        settings=PPOConfig(
            discount=0.999,
            gae_lambda=0.98,
            epochs=4,
            minibatches=32,
        ),
    ),
    "Pendulum-v1": Defaults(
        n_steps=150_000,
        log_interval_steps=10_000,
        batch_T=256,
        batch_B=4,
        model=SEPARATE,
        settings=PPOConfig(
            discount=0.9,
            minibatches=16,
            entropy_loss_coeff=0.0,
        ),
    ),
}

#: Measured for an agent with a memory, see docs/results.md: it has to remember differences of small numbers.
_MEMORY = replace(
    _DEFAULTS["discrete"],
    model=ModelOptions(normalize_observation=True),
    settings=PPOConfig(epochs=5),
)


def _with_memory(defaults: Defaults[PPOConfig], kind: Kind) -> Defaults[PPOConfig]:
    found = policy_gradient.one_body(_MEMORY if kind == "discrete" else defaults, kind)
    # For agents with a memory, a minibatch consists of whole columns of the batch.
    return replace(found, settings=replace(found.settings, minibatches=min(found.settings.minibatches, 4)))


ALGORITHM = Algorithm(
    algo=PPO,
    agent=policy_gradient.agent,
    rules=policy_gradient.rules,
    defaults=_DEFAULTS,
    measured=_MEASURED,
    with_memory=_with_memory,
    stands_for={
        "recurrent-ppo": " with --recurrent lstm",
        "trpo": "",
    },
)
