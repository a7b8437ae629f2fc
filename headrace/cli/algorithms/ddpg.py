"""DDPG on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.agents.base import Agent
from headrace.agents.qpg import DdpgAgent
from headrace.algos.qpg import DDPG, DDPGConfig
from headrace.cli.agents import ActingOptions, ModelOptions, tried
from headrace.cli.algorithms import q_policy_gradient
from headrace.cli.algorithms.base import Algorithm, Defaults, Kind
from headrace.cli.idle import Rule
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.cli.build import TrainOptions

__all__ = ["ALGORITHM"]

_DEFAULTS: dict[Kind, Defaults[DDPGConfig]] = {
    "continuous": Defaults(
        n_steps=1_000_000,
        log_interval_steps=10_000,
        batch_T=8,
        batch_B=4,
        sampler="serial",
        settings=DDPGConfig(),
    ),
}

#: Settings of RL Baselines3 Zoo.
_MEASURED: dict[str, Defaults[DDPGConfig]] = {
    "Pendulum-v1": Defaults(
        n_steps=20_000,
        log_interval_steps=1_000,
        batch_T=8,
        batch_B=4,
        sampler="serial",
        model=ModelOptions(hidden_sizes=(400, 300)),
        acting=ActingOptions(random_steps=10_000),
        settings=DDPGConfig(discount=0.98, replay_size=200_000),
    ),
}


def _agent(spaces: EnvSpaces, options: TrainOptions) -> Agent:
    arguments, std = q_policy_gradient.agent_arguments(options), options.acting.exploration_std
    return tried(lambda: DdpgAgent(**arguments, exploration_std=std), spaces)


def _rules(options: TrainOptions, spaces: EnvSpaces) -> list[Rule]:
    return q_policy_gradient.rules(options, options.ddpg)


ALGORITHM = Algorithm(algo=DDPG, agent=_agent, rules=_rules, defaults=_DEFAULTS, measured=_MEASURED)
