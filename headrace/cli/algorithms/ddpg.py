"""DDPG on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.agents.base import Agent
from headrace.agents.qpg import DdpgAgent
from headrace.algos.qpg import DDPG, DDPGConfig
from headrace.cli.agents import tried
from headrace.cli.algorithms import q_policy_gradient
from headrace.cli.algorithms.base import Algorithm, Defaults, Kind
from headrace.cli.idle import Rule
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.cli.build import TrainOptions

__all__ = ["ALGORITHM"]

_DEFAULTS: dict[Kind, Defaults[DDPGConfig]] = {"continuous": q_policy_gradient.continuous(DDPGConfig())}

_MEASURED: dict[str, Defaults[DDPGConfig]] = {
    "Pendulum-v1": q_policy_gradient.pendulum(DDPGConfig(discount=0.98, replay_size=200_000), 10_000, (400, 300))
}


def _agent(spaces: EnvSpaces, options: TrainOptions) -> Agent:
    arguments, std = q_policy_gradient.agent_arguments(options), options.acting.exploration_std
    return tried(lambda: DdpgAgent(**arguments, exploration_std=std), spaces)


def _rules(options: TrainOptions, spaces: EnvSpaces) -> list[Rule]:
    return q_policy_gradient.rules(options, options.ddpg)


ALGORITHM = Algorithm(algo=DDPG, agent=_agent, rules=_rules, defaults=_DEFAULTS, measured=_MEASURED)
