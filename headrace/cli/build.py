"""From options to the objects they speak of: the one place for every command that trains or evaluates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gymnasium import spaces as gym_spaces

from headrace.agents.base import Agent
from headrace.agents.pg import (
    CategoricalPgAgent,
    GaussianPgAgent,
    RecurrentCategoricalPgAgent,
    RecurrentGaussianPgAgent,
)
from headrace.algos.base import Algo
from headrace.algos.pg import A2C, PPO, A2CConfig, PPOConfig
from headrace.cli.errors import UsageError, unknown
from headrace.cli.options import Json, Unprefixed
from headrace.processes.affinity import usable_cores
from headrace.runners.config import RunnerConfig
from headrace.samplers.alternating import AlternatingSampler, NoOverlapAlternatingSampler
from headrace.samplers.asynchronous import (
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncNoOverlapAlternatingSampler,
    AsyncSerialSampler,
)
from headrace.samplers.base import BaseSampler
from headrace.samplers.cpu import CpuSampler
from headrace.samplers.gpu import GpuSampler
from headrace.samplers.serial import SerialSampler
from headrace.types import EnvSpaces

__all__ = [
    "ALGOS",
    "ModelOptions",
    "PlaceOptions",
    "TrainOptions",
    "agent_for",
    "algo_for",
    "evaluation_sampler",
    "require_at_least",
    "training_sampler",
]

#: Names of the algorithms; each has its settings in `TrainOptions` under its name.
ALGOS = ("a2c", "ppo")
_SAMPLERS: dict[str, type[BaseSampler]] = {
    "serial": SerialSampler,
    "cpu": CpuSampler,
    "gpu": GpuSampler,
    "alternating": AlternatingSampler,
    "alternating-no-overlap": NoOverlapAlternatingSampler,
    "async-serial": AsyncSerialSampler,
    "async-cpu": AsyncCpuSampler,
    "async-gpu": AsyncGpuSampler,
    "async-alternating": AsyncAlternatingSampler,
    "async-alternating-no-overlap": AsyncNoOverlapAlternatingSampler,
}


@dataclass(kw_only=True)
class PlaceOptions:
    """In which environment, and where it is stepped."""

    env: str = "CartPole-v1"
    """A Gymnasium id; `module:Id-v0` imports the module first; `module:factory` is a callable that returns an
    environment; `gym:Id-v0` is an id of old gym."""
    env_kwargs: Json = field(default_factory=dict)
    """Arguments of the environment, as JSON: '{"continuous": true}'."""
    sampler: str = "cpu"
    """serial (everything in this process), cpu (worker processes, an agent in each), gpu (worker processes, actions
    for all of them from this process), alternating (the same in two groups, one steps while the other gets its
    actions) or alternating-no-overlap; each with async- before its name collects in a process of its own while
    the agent learns from the batch before."""
    n_workers: int | None = None
    """Worker processes; if not given as many as usable cores, or one less where actions come from this process."""
    device: str | None = None
    """Where actions are computed and the agent learns, such as cuda:0; not for cpu. If not given, the first GPU for
    samplers whose actions come from this process, else the CPU."""

    @property
    def sampler_class(self) -> type[BaseSampler]:
        """Raises UsageError for a sampler nobody knows."""
        if self.sampler not in _SAMPLERS:
            raise unknown("sampler", self.sampler, _SAMPLERS)
        return _SAMPLERS[self.sampler]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The agent's network. Its kind follows from the spaces: images go through convolutions, Box actions come from a
    Gaussian, others from a softmax.
    """

    hidden_sizes: tuple[int, ...] | None = None
    """Widths of the tanh layers; 64 64 if not given, none over images. Not with --recurrent."""
    separate_value: bool = False
    """Give the value layers of its own. Not with --recurrent."""
    normalize_observation: bool = False
    """Feed the network observations minus their running mean, divided by their running deviation."""
    recurrent: Literal["lstm", "gru"] | None = None
    """Give the agent a memory over each episode."""
    memory_size: int = 64
    """Width of the memory."""
    state_dependent_std: bool = False
    """For Box actions: the network gives deviations too; else they are parameters, the same everywhere."""
    init_log_std: float = 0.0
    """For Box actions: where the logarithm of the deviation begins; 0 is half the range of the action."""


@dataclass(kw_only=True)
class TrainOptions(PlaceOptions):
    """Trains an agent in a Gymnasium environment, then evaluates it greedily.

    What is not given depends on the algorithm and on the environment: --help beside --algo and --env shows it.
    """

    algo: str = "ppo"
    """ppo or a2c."""
    batch_T: int = 32
    """Time steps of a batch."""
    batch_B: int = 64
    """Environments of a batch."""
    runner: Unprefixed[RunnerConfig] = field(
        default_factory=lambda: RunnerConfig(n_steps=400_000, seed=0, log_interval_steps=20_000)
    )
    """How long to train, and how often to log and save."""
    model: Unprefixed[ModelOptions] = field(default_factory=ModelOptions)
    """The agent's network."""
    eval_episodes: int = 100
    """Episodes of the final evaluation."""
    log_dir: Path | None = None
    """Where the results go; runs/ENV-ALGO-seedN-TIME if not given."""
    resume: Path | None = None
    """The folder of an earlier run, which goes on from its checkpoint with its own settings; a greater --n-steps
    prolongs it."""
    tensorboard: bool = False
    """Write event files for TensorBoard, into the folder of the run."""
    wandb: bool = False
    """Send rows to Weights & Biases."""
    wandb_project: str = "headrace"
    """The project of Weights & Biases to send them to."""
    torch_threads: int = 1
    """Threads of the learner's torch operations; more pay off for large models only."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of ppo."""
    a2c: A2CConfig = field(default_factory=A2CConfig)
    """Settings of a2c."""


def algo_for(options: TrainOptions) -> Algo:
    """The algorithm, not initialized yet."""
    return PPO(options.ppo) if options.algo == "ppo" else A2C(options.a2c)


def training_sampler(options: TrainOptions) -> BaseSampler:
    """The sampler to train with, not initialized yet."""
    return options.sampler_class(
        options.env,
        options.env_kwargs,
        batch_T=options.batch_T,
        batch_B=options.batch_B,
        n_workers=options.n_workers,
        device=options.device,
    )


def agent_for(spaces: EnvSpaces, model: ModelOptions) -> Agent:
    """An agent for these spaces, not initialized yet; raises UsageError where there is none, or options contradict."""
    require_at_least(1, "memory-size", model.memory_size)
    if model.recurrent is not None and (model.hidden_sizes is not None or model.separate_value):
        raise UsageError("--hidden-sizes and --separate-value are not for --recurrent; its width is --memory-size")

    def new() -> Agent:
        continuous = isinstance(spaces.action, gym_spaces.Box)
        kwargs: dict[str, Any] = {"normalize_observation": model.normalize_observation}
        if model.recurrent is None:
            kwargs |= {"hidden_sizes": model.hidden_sizes, "separate_value": model.separate_value}
        else:
            kwargs |= {"cell": model.recurrent, "hidden_size": model.memory_size}
        if continuous:
            gaussian = GaussianPgAgent if model.recurrent is None else RecurrentGaussianPgAgent
            return gaussian(
                model_kwargs=kwargs,
                state_dependent_std=model.state_dependent_std,
                init_log_std=model.init_log_std,
            )
        categorical = CategoricalPgAgent if model.recurrent is None else RecurrentCategoricalPgAgent
        return categorical(model_kwargs=kwargs)

    try:
        new().initialize(spaces, seed=0)  # on trial: what does not fit is said before anything starts
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    return new()


def evaluation_sampler(place: PlaceOptions, episodes: int, at_once: int) -> BaseSampler:
    """A sampler for an evaluation alone; at_once: environments to step side by side at most."""
    rounds = math.ceil(episodes / at_once)
    return place.sampler_class(
        place.env,
        place.env_kwargs,
        batch_T=1,
        batch_B=place.n_workers or usable_cores(),
        n_workers=place.n_workers,
        device=place.device,
        max_decorrelation_steps=0,
        eval_n_envs=math.ceil(episodes / rounds),
        eval_max_trajectories=episodes,
    )


def require_at_least(least: int, option: str, value: int) -> None:
    """Raises UsageError, naming the option, for less."""
    if value < least:
        raise UsageError(f"--{option} must be at least {least}, got {value}")
