"""The agents of the policy-gradient algorithms, and the default networks of these agents."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gymnasium import spaces as gym_spaces

from headrace.agents.base import Agent
from headrace.agents.pg import (
    CategoricalPgAgent,
    GaussianPgAgent,
    RecurrentCategoricalPgAgent,
    RecurrentGaussianPgAgent,
)
from headrace.cli.agents import EPSILON, GAUSSIAN, ModelOptions, own_model, tried
from headrace.cli.algorithms.base import WITHOUT_ATOMS, WITHOUT_CRITICS, Config, Defaults, Kind
from headrace.cli.errors import UsageError, require_at_least
from headrace.cli.idle import Rule
from headrace.types import EnvSpaces

if TYPE_CHECKING:
    from headrace.cli.build import TrainOptions

__all__ = ["NORMALIZED", "SEPARATE", "agent", "one_body", "rules"]

SEPARATE = ModelOptions(separate_value=True)
NORMALIZED = ModelOptions(separate_value=True, normalize_observation=True)


def agent(spaces: EnvSpaces, options: TrainOptions) -> Agent:
    """Returns an agent with a policy and a value; see `Algorithm.agent`."""
    model = options.model
    require_at_least(1, "memory-size", model.memory_size)
    own = own_model(model)
    if model.recurrent is not None and (model.hidden_sizes is not None or model.separate_value):
        raise UsageError("--hidden-sizes and --separate-value are not for --recurrent; its width is --memory-size")
    if model.dueling:
        raise UsageError(f"--dueling is for dqn, categorical-dqn and r2d1; {options.algo} has --separate-value")
    kwargs: dict[str, Any] = {"normalize_observation": model.normalize_observation}
    if own:
        kwargs = model.model_kwargs
    elif model.recurrent is None:
        kwargs |= {"hidden_sizes": model.hidden_sizes, "separate_value": model.separate_value}
    else:
        kwargs |= {"cell": model.recurrent, "hidden_size": model.memory_size}
    if isinstance(spaces.action, gym_spaces.Box):
        gaussian = GaussianPgAgent if model.recurrent is None else RecurrentGaussianPgAgent
        return tried(
            lambda: gaussian(
                **own,
                model_kwargs=kwargs,
                state_dependent_std=model.state_dependent_std,
                init_log_std=model.init_log_std,
            ),
            spaces,
        )
    categorical = CategoricalPgAgent if model.recurrent is None else RecurrentCategoricalPgAgent
    return tried(lambda: categorical(**own, model_kwargs=kwargs), spaces)


def rules(options: TrainOptions, spaces: EnvSpaces) -> list[Rule]:
    """Returns the rules for the options of agents; see `Algorithm.rules`."""
    algo = options.algo
    return [
        Rule(
            EPSILON,
            False,
            f"for dqn, categorical-dqn and r2d1; {algo} draws its actions from its policy, and "
            f"--{algo}.entropy-loss-coeff makes it explore",
        ),
        WITHOUT_ATOMS,
        WITHOUT_CRITICS,
        Rule(
            GAUSSIAN,
            isinstance(spaces.action, gym_spaces.Box),
            f"for Box actions, which are drawn from a Gaussian; --env {options.env} has others",
        ),
    ]


def one_body(defaults: Defaults[Config], kind: Kind) -> Defaults[Config]:
    """Returns the defaults for an agent with a memory: its model has no separate layers for the value."""
    return replace(defaults, model=replace(defaults.model, separate_value=False))
