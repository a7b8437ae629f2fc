"""SAC on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.agents.base import Agent
from headrace.agents.qpg import SacAgent
from headrace.algos.qpg import SAC, SACConfig
from headrace.cli.agents import NOISE, tried
from headrace.cli.algorithms import q_policy_gradient
from headrace.cli.algorithms.base import Algorithm, Defaults, Kind
from headrace.cli.idle import Rule
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.cli.build import TrainOptions

__all__ = ["ALGORITHM"]

_DEFAULTS: dict[Kind, Defaults[SACConfig]] = {"continuous": q_policy_gradient.continuous(SACConfig())}

_MEASURED: dict[str, Defaults[SACConfig]] = {
    "Pendulum-v1": q_policy_gradient.pendulum(SACConfig(learning_rate=1e-3, min_steps_learn=100), 100)
}


def _agent(spaces: EnvSpaces, options: TrainOptions) -> Agent:
    arguments = q_policy_gradient.agent_arguments(options)
    return tried(lambda: SacAgent(**arguments), spaces)


def _rules(options: TrainOptions, spaces: EnvSpaces) -> list[Rule]:
    noise = Rule(NOISE, False, "for ddpg and td3; sac draws its actions from its policy")
    return [*q_policy_gradient.rules(options, options.sac), noise]


ALGORITHM = Algorithm(
    algo=SAC,
    agent=_agent,
    rules=_rules,
    defaults=_DEFAULTS,
    measured=_MEASURED,
    stands_for={"droq": " with --layer-norm, --dropout 0.01 and a higher --sac.replay-ratio"},
)
