"""Arguments of the agents, rules and defaults that `ddpg`, `td3` and `sac` share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from headrace.cli.agents import EPSILON, GAUSSIAN, ActingOptions, ModelOptions, own_model
from headrace.cli.algorithms.base import WITHOUT_ATOMS, Config, Defaults
from headrace.cli.errors import UsageError
from headrace.cli.idle import Rule

if TYPE_CHECKING:
    from headrace.algos.qpg import QpgConfig
    from headrace.cli.build import TrainOptions

__all__ = ["agent_arguments", "continuous", "pendulum", "rules"]


def agent_arguments(options: TrainOptions) -> dict[str, Any]:
    """Returns the arguments of an agent for its networks and its random actions.

    Raises:
        UsageError: options contradict each other.
        CommandFailed: the user's own model cannot be imported.
    """
    model, acting = options.model, options.acting
    if model.recurrent is not None or model.separate_value or model.dueling:
        raise UsageError(
            f"--recurrent, --separate-value and --dueling are not for {options.algo}, whose policy and critics are "
            "separate feed-forward networks"
        )
    own = own_model(model)
    sizes = {"hidden_sizes": model.hidden_sizes, "normalize_observation": model.normalize_observation}
    return {
        **own,
        "model_kwargs": model.model_kwargs if own else sizes,
        "q_model_kwargs": {**sizes, "layer_norm": model.layer_norm, "dropout": model.dropout},
        "random_itr_max": math.ceil(acting.random_steps / (options.batch_T * options.batch_B)),
    }


def continuous(settings: Config) -> Defaults[Config]:
    """Returns the defaults for Box actions: as many steps as the papers have, batches as small as updates ask for."""
    return Defaults(
        n_steps=1_000_000, log_interval_steps=10_000, batch_T=8, batch_B=4, sampler="serial", settings=settings
    )


def pendulum(settings: Config, random_steps: int, hidden_sizes: tuple[int, ...] | None = None) -> Defaults[Config]:
    """Returns the options for Pendulum-v1, with the settings of RL Baselines3 Zoo.

    Args:
        settings: those of the algorithm.
        random_steps: steps with uniform actions at the start.
        hidden_sizes: of the networks; None: the agent's own.
    """
    return Defaults(
        n_steps=20_000,
        log_interval_steps=1_000,
        batch_T=8,
        batch_B=4,
        sampler="serial",
        model=ModelOptions(hidden_sizes=hidden_sizes),
        acting=ActingOptions(random_steps=random_steps),
        settings=settings,
    )


def rules(options: TrainOptions, settings: QpgConfig) -> list[Rule]:
    """Returns the rules that these algorithms share; see `Algorithm.rules`."""
    algo = options.algo
    return [
        Rule(
            tuple(f"{algo}.{name}" for name in ("pri-alpha", "pri-beta-init", "pri-beta-final")),
            settings.prioritized_replay,
            f"for a prioritized replay; add --{algo}.prioritized-replay",
        ),
        Rule(EPSILON, False, f"for dqn, categorical-dqn and r2d1; {algo} begins with --random-steps"),
        WITHOUT_ATOMS,
        Rule(GAUSSIAN, False, f"for ppo, a2c, impala and vpg; {algo} has a policy of its own"),
    ]
