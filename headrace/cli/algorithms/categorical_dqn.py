"""Categorical DQN on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.agents.base import Agent
from headrace.agents.dqn import CategoricalDqnAgent
from headrace.algos.dqn import CategoricalDQN, CategoricalDQNConfig
from headrace.cli.agents import ActingOptions, tried
from headrace.cli.algorithms import q_learning
from headrace.cli.algorithms.base import Algorithm, Defaults, Kind
from headrace.cli.idle import Rule
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.cli.build import TrainOptions

__all__ = ["ALGORITHM"]

_DEFAULTS: dict[Kind, Defaults[CategoricalDQNConfig]] = {
    # Rewards of ±1 per step, discounted by 0.99, add up to ±100 at most.
    "discrete": Defaults(
        n_steps=100_000,
        log_interval_steps=5_000,
        batch_T=8,
        batch_B=8,
        sampler="serial",
        acting=ActingOptions(V_min=-100.0, V_max=100.0, n_atoms=101),
        settings=CategoricalDQNConfig(),
    ),
    "images": Defaults(
        n_steps=10_000_000,
        log_interval_steps=50_000,
        batch_T=4,
        batch_B=16,
        acting=q_learning.ON_IMAGES,
        settings=CategoricalDQNConfig(**q_learning.RAINBOW),
    ),
}

_MEASURED: dict[str, Defaults[CategoricalDQNConfig]] = {
    "Acrobot-v1": Defaults(
        n_steps=100_000,
        log_interval_steps=5_000,
        batch_T=8,
        batch_B=8,
        sampler="serial",
        acting=ActingOptions(V_min=-100.0, V_max=0.0),
        settings=CategoricalDQNConfig(),
    ),
}


def _agent(spaces: EnvSpaces, options: TrainOptions) -> Agent:
    arguments, acting = q_learning.agent_arguments(options), options.acting
    return tried(
        lambda: CategoricalDqnAgent(**arguments, n_atoms=acting.n_atoms, V_min=acting.V_min, V_max=acting.V_max), spaces
    )


def _rules(options: TrainOptions, spaces: EnvSpaces) -> list[Rule]:
    return q_learning.rules(options, options.categorical_dqn.prioritized_replay)


ALGORITHM = Algorithm(
    algo=CategoricalDQN,
    agent=_agent,
    rules=_rules,
    defaults=_DEFAULTS,
    measured=_MEASURED,
    stands_for={
        "c51": "",
        "qr-dqn": ", which also learns distributions of returns",
        "qrdqn": ", which also learns distributions of returns",
        "rainbow": " with --dueling and --categorical-dqn.prioritized-replay",
    },
)
