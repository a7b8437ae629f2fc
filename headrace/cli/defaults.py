"""What `headrace train` starts from: settings by algorithm and by what an environment's spaces are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from gymnasium import spaces as gym_spaces

from headrace.algos.dqn.categorical import CategoricalDQNConfig
from headrace.algos.dqn.dqn import DQNConfig
from headrace.algos.pg.a2c import A2CConfig
from headrace.algos.pg.impala import IMPALAConfig
from headrace.algos.pg.ppo import PPOConfig
from headrace.cli.agents import ActingOptions, ModelOptions
from headrace.cli.build import Q_ALGOS, TrainOptions
from headrace.models.conv import is_image
from headrace.runners.config import RunnerConfig
from headrace.types import EnvSpaces

__all__ = ["defaults_for"]

Kind = Literal["discrete", "continuous", "images"]

_RAINBOW: dict[str, Any] = {
    "batch_size": 32,
    "replay_ratio": 8.0,
    "replay_size": 200_000,
    "min_steps_learn": 20_000,
    "n_step": 3,
    "target_update_interval": 2_000,
    "learning_rate": 6.25e-5,
    "linear_lr_schedule": False,
    "adam_eps": 1.5e-4,
}
_SEPARATE = ModelOptions(separate_value=True)
_NORMALIZED = ModelOptions(separate_value=True, normalize_observation=True)

#: By algorithm and kind of environment.
_DEFAULTS: dict[tuple[str, Kind], TrainOptions] = {
    # Enough to solve CartPole-v1.
    ("ppo", "discrete"): TrainOptions(model=_SEPARATE),
    ("a2c", "discrete"): TrainOptions(
        algo="a2c",
        batch_T=8,
        batch_B=32,
        runner=RunnerConfig(n_steps=500_000, seed=0, log_interval_steps=25_000),
        model=_SEPARATE,
    ),
    # Engstrom et al., "Implementation matters in deep policy gradients", 2020: with Box actions normalization of
    # observations and rewards matters as much as the algorithm.
    ("ppo", "continuous"): TrainOptions(
        batch_T=64,
        batch_B=32,
        runner=RunnerConfig(n_steps=1_000_000, seed=0, log_interval_steps=50_000),
        model=_NORMALIZED,
        ppo=PPOConfig(
            learning_rate=3e-4,
            minibatches=32,
            entropy_loss_coeff=0.0,
        ),
    ),
    ("a2c", "continuous"): TrainOptions(
        algo="a2c",
        batch_T=8,
        batch_B=32,
        runner=RunnerConfig(n_steps=1_000_000, seed=0, log_interval_steps=50_000),
        model=_NORMALIZED,
        a2c=A2CConfig(
            gae_lambda=0.95,
            learning_rate=7e-4,
            entropy_loss_coeff=0.0,
        ),
    ),
    # Schulman et al., "Proximal policy optimization algorithms", 2017, table 5 (3 epochs there). Rewards are not
    # scaled here and for the other images: those of `make_atari` are −1, 0 and 1 already.
    ("ppo", "images"): TrainOptions(
        batch_T=128,
        batch_B=8,
        runner=RunnerConfig(n_steps=10_000_000, seed=0, log_interval_steps=50_000),
        ppo=PPOConfig(
            learning_rate=2.5e-4,
            epochs=4,
            minibatches=4,
            ratio_clip=0.1,
            linear_clip_schedule=True,
            normalize_reward=False,
        ),
    ),
    # Mnih et al., "Asynchronous methods for deep reinforcement learning", 2016, with one learner.
    ("a2c", "images"): TrainOptions(
        algo="a2c",
        batch_T=5,
        batch_B=16,
        runner=RunnerConfig(n_steps=10_000_000, seed=0, log_interval_steps=50_000),
        a2c=A2CConfig(learning_rate=7e-4, normalize_reward=False),
    ),
    ("impala", "discrete"): TrainOptions(
        algo="impala",
        batch_T=8,
        batch_B=32,
        runner=RunnerConfig(n_steps=500_000, seed=0, log_interval_steps=25_000),
        model=_SEPARATE,
    ),
    ("impala", "continuous"): TrainOptions(
        algo="impala",
        batch_T=8,
        batch_B=32,
        runner=RunnerConfig(n_steps=1_000_000, seed=0, log_interval_steps=50_000),
        model=_NORMALIZED,
        impala=IMPALAConfig(
            gae_lambda=0.95,
            learning_rate=7e-4,
            entropy_loss_coeff=0.0,
        ),
    ),
    # Espeholt et al., "IMPALA", 2018, table G.1, with Adam.
    ("impala", "images"): TrainOptions(
        algo="impala",
        batch_T=20,
        batch_B=32,
        runner=RunnerConfig(n_steps=10_000_000, seed=0, log_interval_steps=50_000),
        impala=IMPALAConfig(learning_rate=6e-4, clip_grad_norm=40.0, normalize_advantage=False, normalize_reward=False),
    ),
    # Small batches, because an update may follow each; one process, because small batches are not worth several.
    ("dqn", "discrete"): TrainOptions(
        algo="dqn",
        sampler="serial",
        batch_T=8,
        batch_B=8,
        runner=RunnerConfig(n_steps=150_000, seed=0, log_interval_steps=5_000),
    ),
    # Rewards of ±1 a step, discounted with 0.99, add up to ±100 at most.
    ("categorical-dqn", "discrete"): TrainOptions(
        algo="categorical-dqn",
        sampler="serial",
        batch_T=8,
        batch_B=8,
        runner=RunnerConfig(n_steps=100_000, seed=0, log_interval_steps=5_000),
        acting=ActingOptions(V_min=-100.0, V_max=100.0, n_atoms=101),
    ),
    # Hessel et al., "Rainbow", 2018, table 1, without its noisy networks.
    ("dqn", "images"): TrainOptions(
        algo="dqn",
        batch_T=4,
        batch_B=16,
        runner=RunnerConfig(n_steps=10_000_000, seed=0, log_interval_steps=50_000),
        acting=ActingOptions(eps_final=0.01, eps_steps=250_000, eps_eval=0.001),
        dqn=DQNConfig(**_RAINBOW, delta_clip=1.0),
    ),
    ("categorical-dqn", "images"): TrainOptions(
        algo="categorical-dqn",
        batch_T=4,
        batch_B=16,
        runner=RunnerConfig(n_steps=10_000_000, seed=0, log_interval_steps=50_000),
        acting=ActingOptions(eps_final=0.01, eps_steps=250_000, eps_eval=0.001),
        categorical_dqn=CategoricalDQNConfig(**_RAINBOW),
    ),
}


#: Where other settings were measured to be better; see docs/results.md.
_MEASURED: dict[tuple[str, str], TrainOptions] = {
    ("ppo", "Acrobot-v1"): TrainOptions(
        batch_T=128,
        batch_B=16,
        runner=RunnerConfig(n_steps=400_000, seed=0, log_interval_steps=20_000),
        model=_NORMALIZED,
        ppo=PPOConfig(
            gae_lambda=0.94,
            epochs=4,
            minibatches=8,
            entropy_loss_coeff=0.0,
        ),
    ),
    ("categorical-dqn", "Acrobot-v1"): TrainOptions(
        algo="categorical-dqn",
        sampler="serial",
        batch_T=8,
        batch_B=8,
        runner=RunnerConfig(n_steps=100_000, seed=0, log_interval_steps=5_000),
        acting=ActingOptions(V_min=-100.0, V_max=0.0),
    ),
    ("ppo", "LunarLander-v3"): TrainOptions(
        batch_T=256,
        batch_B=16,
        runner=RunnerConfig(n_steps=1_000_000, seed=0, log_interval_steps=50_000),
        model=_SEPARATE,
        ppo=PPOConfig(
            discount=0.999,
            gae_lambda=0.98,
            epochs=4,
            minibatches=32,
        ),
    ),
    ("ppo", "Pendulum-v1"): TrainOptions(
        batch_T=256,
        batch_B=4,
        runner=RunnerConfig(n_steps=150_000, seed=0, log_interval_steps=10_000),
        model=_SEPARATE,
        ppo=PPOConfig(
            discount=0.9,
            minibatches=16,
            entropy_loss_coeff=0.0,
        ),
    ),
}


#: Where an agent with a memory does better with other settings; see docs/results.md. What it is to remember
#: are differences of small numbers.
_WITH_MEMORY: dict[tuple[str, Kind], TrainOptions] = {
    ("ppo", "discrete"): TrainOptions(
        model=ModelOptions(normalize_observation=True),
        ppo=PPOConfig(epochs=5),
    ),
}


def defaults_for(algo: str, env: str, spaces: EnvSpaces, recurrent: Literal["lstm", "gru"] | None) -> TrainOptions:
    """The options to start from.

    algo: one of `ALGOS`; env: as the command line names it; recurrent: whether the agent has a memory, and which.
    """
    kind = _kind_of(spaces)
    if algo in Q_ALGOS and kind == "continuous":
        kind = "discrete"  # an agent that acts in a Box will be missed, and said to be
    options = _MEASURED.get((algo, env)) or _DEFAULTS[algo, kind]
    if recurrent is None or algo in Q_ALGOS:
        return options
    options = _WITH_MEMORY.get((algo, kind), options)
    # Whole columns make a minibatch, and the model with a memory has one body.
    return replace(
        options,
        model=replace(options.model, recurrent=recurrent, separate_value=False),
        ppo=replace(options.ppo, minibatches=min(options.ppo.minibatches, 4)),
    )


def _kind_of(spaces: EnvSpaces) -> Kind:
    """Images anywhere in the observation, else Box actions, else the rest."""
    if _sees_images(spaces.observation):
        return "images"
    return "continuous" if isinstance(spaces.action, gym_spaces.Box) else "discrete"


def _sees_images(space: gym_spaces.Space[Any]) -> bool:
    match space:
        case gym_spaces.Dict():
            return any(map(_sees_images, space.spaces.values()))
        case gym_spaces.Tuple():
            return any(map(_sees_images, space.spaces))
    return is_image(space)
