"""Arguments of the agents, rules and default settings that all DQN algorithms share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from headrace.cli.agents import GAUSSIAN, ActingOptions, own_model
from headrace.cli.algorithms.base import WITHOUT_CRITICS
from headrace.cli.errors import UsageError
from headrace.cli.idle import Rule

if TYPE_CHECKING:
    from headrace.cli.build import TrainOptions

__all__ = ["ON_IMAGES", "RAINBOW", "agent_arguments", "exploration", "rules"]

#: Settings for images. Hessel et al., "Rainbow", 2018, table 1, without its noisy networks.
RAINBOW: dict[str, Any] = {
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
#: Exploration for images.
ON_IMAGES = ActingOptions(eps_final=0.01, eps_steps=250_000, eps_eval=0.001)


def agent_arguments(options: TrainOptions) -> dict[str, Any]:
    """Returns the arguments of an agent for its network and its exploration.

    Raises:
        UsageError: options contradict each other.
        CommandFailed: the user's own model cannot be imported.
    """
    model = options.model
    if model.recurrent is not None or model.separate_value:
        raise UsageError(
            "--recurrent and --separate-value are not for dqn and categorical-dqn; for separate layers, use --dueling"
        )
    own = own_model(model)
    network = {
        "hidden_sizes": model.hidden_sizes,
        "dueling": model.dueling,
        "normalize_observation": model.normalize_observation,
    }
    return {**own, "model_kwargs": model.model_kwargs if own else network, **exploration(options)}


def exploration(options: TrainOptions) -> dict[str, Any]:
    """Returns the arguments of an agent for its exploration."""
    acting = options.acting
    return {
        "eps_init": acting.eps_init,
        "eps_final": acting.eps_final,
        "eps_final_min": acting.eps_final_min,
        "eps_itr_max": math.ceil(acting.eps_steps / (options.batch_T * options.batch_B)),
        "eps_eval": acting.eps_eval,
    }


def rules(options: TrainOptions, prioritized_replay: bool) -> list[Rule]:
    """Returns the rules that all DQN algorithms share; see `Algorithm.rules`."""
    algo = options.algo
    return [
        Rule(
            tuple(f"{algo}.{name}" for name in ("pri-alpha", "pri-beta-init", "pri-beta-final")),
            prioritized_replay,
            f"for a prioritized replay; add --{algo}.prioritized-replay",
        ),
        WITHOUT_CRITICS,
        Rule(GAUSSIAN, False, f"for Box actions, which are drawn from a Gaussian; {algo} has Discrete actions only"),
    ]
