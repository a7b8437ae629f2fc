"""Options of the agents that a command trains, and what all agents are built with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace.agents.base import Agent
from headrace.cli.errors import CommandFailed, UsageError
from headrace.cli.imports import imported_model
from headrace.cli.options import Json
from headrace.errors import headline
from headrace.types import EnvSpaces

__all__ = [
    "ATOMS",
    "CRITICS",
    "EPSILON",
    "GAUSSIAN",
    "NOISE",
    "ActingOptions",
    "ModelOptions",
    "own_model",
    "tried",
]

#: Options of epsilon-greedy exploration, of distributions of returns, of Gaussian policies, of agents with critics and
#: of noise on actions, as on the command line.
EPSILON = ("eps-init", "eps-final", "eps-final-min", "eps-steps", "eps-eval")
ATOMS = ("n-atoms", "V-min", "V-max")
GAUSSIAN = ("state-dependent-std", "init-log-std")
CRITICS = ("layer-norm", "dropout", "random-steps")
NOISE = ("exploration-std",)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The agent's network. Its kind follows from the algorithm and the spaces: images get convolutions; with ppo, a2c,
    impala and vpg, Box actions get a Gaussian policy, other actions a softmax policy.
    """

    model: str | None = None
    """module:Class, a torch module of your own in place of the network: Class(spaces, n_outputs=..., **model_kwargs).
    For ddpg, td3 and sac it is the policy's network, and the critics stay headrace's. The other options of the network
    do not apply to it; --recurrent declares that it has a memory."""
    model_kwargs: Json = field(default_factory=dict)
    """Arguments of --model, as JSON: '{"width": 32}'."""
    hidden_sizes: tuple[int, ...] | None = None
    """Widths of the hidden layers; None: 64 64 with tanh, or no such layers for images; for ddpg, td3 and sac, 256 256
    with ReLU, also for the critics. Not with --recurrent."""
    separate_value: bool = False
    """For ppo, a2c, impala and vpg: give the value separate layers. Not with --recurrent."""
    dueling: bool = False
    """For dqn, categorical-dqn and r2d1: give state values and advantages separate layers."""
    normalize_observation: bool = False
    """Normalize observations by their running mean and standard deviation."""
    layer_norm: bool = False
    """For ddpg, td3 and sac: layer normalization in the critics."""
    dropout: float = 0.0
    """For ddpg, td3 and sac: probability of dropout in the critics."""
    recurrent: Literal["lstm", "gru"] | None = None
    """For ppo, a2c, impala, vpg and r2d1: give the agent a memory within each episode."""
    memory_size: int = 64
    """Width of the memory."""
    state_dependent_std: bool = False
    """For Box actions with ppo, a2c, impala and vpg: the network computes the standard deviations; otherwise they are
    parameters, the same in every state."""
    init_log_std: float = 0.0
    """For Box actions with ppo, a2c, impala and vpg: initial logarithm of the standard deviation; 0 is half the range
    of the action."""


@dataclass(frozen=True, kw_only=True)
class ActingOptions:
    """Exploration. With dqn, categorical-dqn and r2d1, an action is uniformly random with probability epsilon; with
    ddpg, td3 and sac, all actions are until --random-steps.
    """

    eps_init: float = 1.0
    """Epsilon at the start."""
    eps_final: float = 0.05
    """Epsilon at the end."""
    eps_final_min: float | None = None
    """Give each environment its own epsilon at the end, from --eps-final to this, spaced evenly in logarithms."""
    eps_steps: float = 25_000
    """Environment steps over which epsilon falls linearly."""
    eps_eval: float = 0.0
    """Epsilon in evaluations."""
    n_atoms: int = 51
    """For categorical-dqn: number of atoms of the distribution of returns."""
    V_min: float = -10.0
    """For categorical-dqn: lowest atom, a discounted return."""
    V_max: float = 10.0
    """For categorical-dqn: highest atom, a discounted return."""
    random_steps: float = 10_000
    """For ddpg, td3 and sac: environment steps with uniformly random actions at the start."""
    exploration_std: float = 0.1
    """For ddpg and td3: standard deviation of the noise on actions; 1 is half the range of an action."""


def own_model(model: ModelOptions) -> dict[str, Any]:
    """Returns the user's own model as an argument of an agent; an empty dict if there is none.

    Raises:
        UsageError: options contradict each other, or `--model` names nothing.
        CommandFailed: the module cannot be imported.
    """
    if model.model is None:
        if model.model_kwargs:
            raise UsageError("--model-kwargs are arguments of a model of your own; add --model module:Class")
        return {}
    if model.hidden_sizes is not None or model.dueling:
        raise UsageError("--hidden-sizes and --dueling are not for --model; use --model-kwargs")
    return {"ModelCls": imported_model(model.model)}


def tried(new: Callable[[], Agent], spaces: EnvSpaces) -> Agent:
    """Returns a new agent after initializing another one, so that errors are reported before anything starts.

    Args:
        new: makes an agent.
        spaces: spaces of the environment.

    Raises:
        UsageError: the agent does not accept the spaces or the options.
        CommandFailed: the user's own model raised.
    """
    try:
        new().initialize(spaces, seed=0)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    except Exception as error:  # the user's own model may raise anything
        raise CommandFailed(f"the model cannot be built: {headline(error)}") from error
    return new()
