"""What `headrace train` starts from: settings by algorithm and by what an environment's spaces are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from gymnasium import spaces as gym_spaces

from headrace.algos.pg.a2c import A2CConfig
from headrace.algos.pg.ppo import PPOConfig
from headrace.cli.build import ModelOptions, TrainOptions
from headrace.models.conv import is_image
from headrace.runners.config import RunnerConfig
from headrace.types import EnvSpaces

__all__ = ["defaults_for"]

Kind = Literal["discrete", "continuous", "images"]

_NORMALIZED = ModelOptions(separate_value=True, normalize_observation=True)

#: By algorithm and kind of environment.
_DEFAULTS: dict[tuple[str, Kind], TrainOptions] = {
    # Enough to solve CartPole-v1.
    ("ppo", "discrete"): TrainOptions(),
    ("a2c", "discrete"): TrainOptions(
        algo="a2c",
        batch_T=8,
        batch_B=32,
        runner=RunnerConfig(n_steps=500_000, seed=0, log_interval_steps=25_000),
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
            value_loss_coeff=0.5,
            normalize_reward=True,
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
            value_loss_coeff=0.5,
            normalize_reward=True,
        ),
    ),
    # Schulman et al., "Proximal policy optimization algorithms", 2017, table 5 (3 epochs there).
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
            value_loss_coeff=0.5,
        ),
    ),
    # Mnih et al., "Asynchronous methods for deep reinforcement learning", 2016, with one learner.
    ("a2c", "images"): TrainOptions(
        algo="a2c",
        batch_T=5,
        batch_B=16,
        runner=RunnerConfig(n_steps=10_000_000, seed=0, log_interval_steps=50_000),
        a2c=A2CConfig(learning_rate=7e-4, value_loss_coeff=0.5),
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
            value_loss_coeff=0.5,
            normalize_reward=True,
        ),
    ),
    ("ppo", "LunarLander-v3"): TrainOptions(
        batch_T=256,
        batch_B=16,
        runner=RunnerConfig(n_steps=1_000_000, seed=0, log_interval_steps=50_000),
        model=ModelOptions(separate_value=True),
        ppo=PPOConfig(
            discount=0.999,
            gae_lambda=0.98,
            epochs=4,
            minibatches=32,
            value_loss_coeff=0.5,
            normalize_reward=True,
        ),
    ),
    ("ppo", "Pendulum-v1"): TrainOptions(
        batch_T=256,
        batch_B=4,
        runner=RunnerConfig(n_steps=150_000, seed=0, log_interval_steps=10_000),
        model=ModelOptions(separate_value=True),
        ppo=PPOConfig(
            discount=0.9,
            minibatches=16,
            entropy_loss_coeff=0.0,
            value_loss_coeff=0.5,
            normalize_reward=True,
        ),
    ),
}


#: Where an agent with a memory does better with other settings; see docs/results.md. Policy and value share it, so
#: returns must be of the size of advantages for both to learn, and what it remembers are differences of small numbers.
_WITH_MEMORY: dict[tuple[str, Kind], TrainOptions] = {
    ("ppo", "discrete"): TrainOptions(
        model=ModelOptions(normalize_observation=True),
        ppo=PPOConfig(epochs=5, value_loss_coeff=0.5, normalize_reward=True),
    ),
}


def defaults_for(algo: str, env: str, spaces: EnvSpaces, recurrent: Literal["lstm", "gru"] | None) -> TrainOptions:
    """The options to start from.

    algo: one of `ALGOS`; env: as the command line names it; recurrent: whether the agent has a memory, and which.
    """
    kind = _kind_of(spaces)
    options = _MEASURED.get((algo, env)) or _DEFAULTS[algo, kind]
    if recurrent is None:
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
