"""DQN on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.agents.base import Agent
from headrace.agents.dqn import DqnAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.cli.agents import tried
from headrace.cli.algorithms import q_learning
from headrace.cli.algorithms.base import WITHOUT_ATOMS, Algorithm, Defaults, Kind
from headrace.cli.idle import Rule
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.cli.build import TrainOptions

__all__ = ["ALGORITHM"]

_DEFAULTS: dict[Kind, Defaults[DQNConfig]] = {
    # Batches are small because an update may follow each; one process, because small batches do not pay for several.
    "discrete": Defaults(
        n_steps=150_000,
        log_interval_steps=5_000,
        batch_T=8,
        batch_B=8,
        sampler="serial",
        settings=DQNConfig(),
    ),
    "images": Defaults(
        n_steps=10_000_000,
        log_interval_steps=50_000,
        batch_T=4,
        batch_B=16,
        acting=q_learning.ON_IMAGES,
        settings=DQNConfig(**q_learning.RAINBOW, delta_clip=1.0),
    ),
}


def _agent(spaces: EnvSpaces, options: TrainOptions) -> Agent:
    arguments = q_learning.agent_arguments(options)
    return tried(lambda: DqnAgent(**arguments), spaces)


def _rules(options: TrainOptions, spaces: EnvSpaces) -> list[Rule]:
    return [*q_learning.rules(options, options.dqn.prioritized_replay), WITHOUT_ATOMS]


ALGORITHM = Algorithm(
    algo=DQN,
    agent=_agent,
    rules=_rules,
    defaults=_DEFAULTS,
    stands_for={
        "ddqn": ", which is double unless --dqn.no-double-dqn",
        "double-dqn": ", which is double unless --dqn.no-double-dqn",
    },
)
