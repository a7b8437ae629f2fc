"""Options of the agents that a command trains, and the agents they speak of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from gymnasium import spaces as gym_spaces

from headrace.agents.base import Agent
from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import (
    CategoricalPgAgent,
    GaussianPgAgent,
    RecurrentCategoricalPgAgent,
    RecurrentGaussianPgAgent,
)
from headrace.cli.errors import CommandFailed, UsageError, require_at_least
from headrace.cli.imports import imported_model
from headrace.cli.options import Json
from headrace.errors import headline
from headrace.types import EnvSpaces

__all__ = ["ActingOptions", "ModelOptions", "pg_agent", "q_agent"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The agent's network. Its kind follows from the spaces: images go through convolutions, Box actions come from a
    Gaussian, others from a softmax.
    """

    model: str | None = None
    """module:Class, a torch module of your own in place of the network: Class(spaces, n_outputs=..., **model_kwargs).
    The other options of the network are not for it; --recurrent says that it has a memory."""
    model_kwargs: Json = field(default_factory=dict)
    """Arguments of --model, as JSON: '{"width": 32}'."""
    hidden_sizes: tuple[int, ...] | None = None
    """Widths of the tanh layers; 64 64 if not given, none over images. Not with --recurrent."""
    separate_value: bool = False
    """For ppo, a2c and impala: give the value layers of its own. Not with --recurrent."""
    dueling: bool = False
    """For dqn and categorical-dqn: give the value of a state and the advantages of its actions layers of their own."""
    normalize_observation: bool = False
    """Feed the network observations minus their running mean, divided by their running deviation."""
    recurrent: Literal["lstm", "gru"] | None = None
    """For ppo, a2c and impala: give the agent a memory over each episode."""
    memory_size: int = 64
    """Width of the memory."""
    state_dependent_std: bool = False
    """For Box actions: the network gives deviations too; else they are parameters, the same everywhere."""
    init_log_std: float = 0.0
    """For Box actions: where the logarithm of the deviation begins; 0 is half the range of the action."""


@dataclass(frozen=True, kw_only=True)
class ActingOptions:
    """Exploration of dqn and categorical-dqn: with probability epsilon an action is any of the possible ones."""

    eps_init: float = 1.0
    """Epsilon at the start."""
    eps_final: float = 0.05
    """Epsilon at the end."""
    eps_final_min: float | None = None
    """Give each environment an epsilon of its own at the end, from --eps-final to this, evenly spaced in logarithms."""
    eps_steps: float = 25_000
    """Environment steps over which epsilon falls, in a line."""
    eps_eval: float = 0.0
    """Epsilon in evaluations."""
    n_atoms: int = 51
    """For categorical-dqn: how many returns are told apart."""
    V_min: float = -10.0
    """For categorical-dqn: the lowest of them, discounted."""
    V_max: float = 10.0
    """For categorical-dqn: the highest of them, discounted."""


def pg_agent(spaces: EnvSpaces, model: ModelOptions) -> Agent:
    """A policy-gradient agent for these spaces, not initialized yet.

    Raises UsageError where there is none, or options contradict.
    """
    require_at_least(1, "memory-size", model.memory_size)
    own = _own_model(model)
    if model.recurrent is not None and (model.hidden_sizes is not None or model.separate_value):
        raise UsageError("--hidden-sizes and --separate-value are not for --recurrent; its width is --memory-size")
    if model.dueling:
        raise UsageError("--dueling is for dqn and categorical-dqn; others take --separate-value")

    def new() -> Agent:
        kwargs: dict[str, Any] = {"normalize_observation": model.normalize_observation}
        if own:
            kwargs = model.model_kwargs
        elif model.recurrent is None:
            kwargs |= {"hidden_sizes": model.hidden_sizes, "separate_value": model.separate_value}
        else:
            kwargs |= {"cell": model.recurrent, "hidden_size": model.memory_size}
        if isinstance(spaces.action, gym_spaces.Box):
            gaussian = GaussianPgAgent if model.recurrent is None else RecurrentGaussianPgAgent
            return gaussian(
                **own,
                model_kwargs=kwargs,
                state_dependent_std=model.state_dependent_std,
                init_log_std=model.init_log_std,
            )
        categorical = CategoricalPgAgent if model.recurrent is None else RecurrentCategoricalPgAgent
        return categorical(**own, model_kwargs=kwargs)

    return _tried(new, spaces)


def q_agent(
    spaces: EnvSpaces, categorical: bool, model: ModelOptions, acting: ActingOptions, eps_itr_max: int
) -> Agent:
    """A DQN agent for these spaces, not initialized yet; raises UsageError as `pg_agent` does.

    categorical: with distributions of returns; eps_itr_max: batches over which epsilon falls.
    """
    if model.recurrent is not None or model.separate_value:
        raise UsageError(
            "--recurrent and --separate-value are not for dqn and categorical-dqn; the latter is --dueling"
        )
    own = _own_model(model)
    networks_own = {
        "hidden_sizes": model.hidden_sizes,
        "dueling": model.dueling,
        "normalize_observation": model.normalize_observation,
    }
    model_kwargs = model.model_kwargs if own else networks_own
    exploration: dict[str, Any] = {
        "eps_init": acting.eps_init,
        "eps_final": acting.eps_final,
        "eps_final_min": acting.eps_final_min,
        "eps_itr_max": eps_itr_max,
        "eps_eval": acting.eps_eval,
    }

    def new() -> Agent:
        if categorical:
            return CategoricalDqnAgent(
                **own,
                model_kwargs=model_kwargs,
                n_atoms=acting.n_atoms,
                V_min=acting.V_min,
                V_max=acting.V_max,
                **exploration,
            )
        return DqnAgent(**own, model_kwargs=model_kwargs, **exploration)

    return _tried(new, spaces)


def _own_model(model: ModelOptions) -> dict[str, Any]:
    """The user's own model as an argument of an agent; empty if there is none."""
    if model.model is None:
        if model.model_kwargs:
            raise UsageError("--model-kwargs are arguments of a model of your own; give --model module:Class too")
        return {}
    if model.hidden_sizes is not None or model.dueling:
        raise UsageError("--hidden-sizes and --dueling are not for --model; it takes --model-kwargs")
    return {"ModelCls": imported_model(model.model)}


def _tried(new: Callable[[], Agent], spaces: EnvSpaces) -> Agent:
    """A new agent, after one of its kind was built: what does not fit is said before anything starts."""
    try:
        new().initialize(spaces, seed=0)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    except Exception as error:  # a model of the user's own
        raise CommandFailed(f"the model cannot be built: {headline(error)}") from error
    return new()
