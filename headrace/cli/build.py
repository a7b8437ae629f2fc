"""From options to the objects they speak of: the one place for every command that trains or evaluates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from headrace.agents.base import Agent
from headrace.agents.device import device_here
from headrace.algos.base import Algo
from headrace.algos.dqn import DQN, CategoricalDQN, CategoricalDQNConfig, DQNConfig
from headrace.algos.pg import A2C, IMPALA, PPO, A2CConfig, IMPALAConfig, PPOConfig
from headrace.cli.agents import ActingOptions, ModelOptions, pg_agent, q_agent
from headrace.cli.errors import UsageError, unknown
from headrace.cli.options import Json, Lengths, Unprefixed
from headrace.processes.affinity import Affinity, usable_cores
from headrace.runners.config import RunnerConfig
from headrace.samplers.base import BaseSampler
from headrace.samplers.presets import (
    AlternatingSampler,
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncNoOverlapAlternatingSampler,
    AsyncSerialSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    SerialSampler,
)
from headrace.types import EnvSpaces

__all__ = [
    "ALGOS",
    "Q_ALGOS",
    "SAMPLERS",
    "PlaceOptions",
    "TrainOptions",
    "agent_for",
    "algo_for",
    "evaluation_sampler",
    "placement",
    "require_algo",
    "training_sampler",
]

#: Algorithms that there are elsewhere: what comes nearest here.
_ELSEWHERE = {
    "a3c": "a2c, the same without lag, or impala, which corrects for it (--sampler async-cpu)",
    "appo": "impala, with --sampler async-cpu",
    "c51": "categorical-dqn",
    "ddpg": "ppo, for Box actions",
    "ddqn": "dqn, which is double unless --dqn.no-double-dqn",
    "double-dqn": "dqn, which is double unless --dqn.no-double-dqn",
    "qr-dqn": "categorical-dqn, which learns distributions of returns, too",
    "qrdqn": "categorical-dqn, which learns distributions of returns, too",
    "r2d1": "ppo with --recurrent lstm, for agents with a memory",
    "r2d2": "ppo with --recurrent lstm, for agents with a memory",
    "rainbow": "categorical-dqn with --dueling and --categorical-dqn.prioritized-replay",
    "recurrent-ppo": "ppo with --recurrent lstm",
    "reinforce": "a2c",
    "sac": "ppo, for Box actions",
    "td3": "ppo, for Box actions",
    "trpo": "ppo",
    "vpg": "a2c",
}
#: Names of the algorithms; each has its settings in `TrainOptions` under its name.
ALGOS = ("a2c", "categorical-dqn", "dqn", "impala", "ppo")
#: Those that learn action values.
Q_ALGOS = ("categorical-dqn", "dqn")
#: By the names they have on the command line.
SAMPLERS: dict[str, type[BaseSampler]] = {
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
    pad: Lengths = field(default_factory=dict)
    """Texts and sequences in the observation become arrays of this size: mission=48, or goal.steps=10 where it is
    nested."""
    sampler: str = "cpu"
    """serial (everything in this process), cpu (worker processes, an agent in each), gpu (worker processes, actions
    for all of them from this process), alternating (the same in two groups, one steps while the other gets its
    actions) or alternating-no-overlap; each with async- before its name collects in a process of its own while
    the agent learns from the batch before."""
    n_workers: int | None = None
    """Worker processes; if not given as many as usable cores, or one less where actions come from this process."""
    device: str | None = None
    """Where the agent learns, such as cuda:0, and where its actions are computed, unless workers do that (cpu). If not
    given, the first GPU for samplers whose actions come from this process, else the CPU."""
    start_method: Literal["auto", "fork", "forkserver", "spawn"] = "auto"
    """How worker processes start; auto is fork on Linux while CUDA is not initialised, else forkserver."""
    torch_threads: int = 1
    """Threads of torch operations in this process; more pay off for large models only."""

    @property
    def sampler_class(self) -> type[BaseSampler]:
        """Raises UsageError for a sampler nobody knows."""
        if self.sampler not in SAMPLERS:
            raise unknown("sampler", self.sampler, SAMPLERS)
        return SAMPLERS[self.sampler]

    @property
    def acting_device(self) -> str | None:
        """The device for the sampler; none for samplers that act in their workers, on the CPU."""
        layout = self.sampler_class.layout
        return None if layout.acts_in_workers else self.device


@dataclass(kw_only=True)
class TrainOptions(PlaceOptions):
    """Trains an agent in a Gymnasium environment, then evaluates it greedily.

    What is not given depends on the algorithm and on the environment: --help beside --algo and --env shows it.
    """

    algo: str = "ppo"
    """ppo, a2c, impala, dqn or categorical-dqn; the last two for Discrete actions only."""
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
    acting: Unprefixed[ActingOptions] = field(default_factory=ActingOptions)
    """How agents of dqn and categorical-dqn explore, and what returns categorical-dqn tells apart."""
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
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of ppo."""
    a2c: A2CConfig = field(default_factory=A2CConfig)
    """Settings of a2c."""
    impala: IMPALAConfig = field(default_factory=IMPALAConfig)
    """Settings of impala."""
    dqn: DQNConfig = field(default_factory=DQNConfig)
    """Settings of dqn."""
    categorical_dqn: CategoricalDQNConfig = field(default_factory=CategoricalDQNConfig)
    """Settings of categorical-dqn."""


def require_algo(name: str) -> None:
    """Raises UsageError for an algorithm that is not there, with what comes nearest."""
    if name not in ALGOS:
        elsewhere = _ELSEWHERE.get(name.lower().replace("_", "-"))
        if elsewhere is not None:
            raise UsageError(f"there is no {name} here; the nearest is {elsewhere}")
        raise unknown("algo", name, ALGOS)


def algo_for(options: TrainOptions) -> Algo:
    """The algorithm, not initialized yet."""
    match options.algo:
        case "a2c":
            return A2C(options.a2c)
        case "impala":
            return IMPALA(options.impala)
        case "dqn":
            return DQN(options.dqn)
        case "categorical-dqn":
            return CategoricalDQN(options.categorical_dqn)
    return PPO(options.ppo)


def agent_for(spaces: EnvSpaces, options: TrainOptions) -> Agent:
    """An agent for the algorithm and these spaces, not initialized yet; raises UsageError as `pg_agent` does."""
    if options.algo in Q_ALGOS:
        n_itr = options.acting.eps_steps / (options.batch_T * options.batch_B)
        return q_agent(spaces, options.algo == "categorical-dqn", options.model, options.acting, math.ceil(n_itr))
    return pg_agent(spaces, options.model)


def placement(options: TrainOptions) -> Affinity:
    """Where the learner runs; raises ValueError for a device that is none, or none to learn on."""
    learning_on = None if options.device is None else device_here(options.device, "device")
    cuda_idx = None
    if learning_on is not None and options.acting_device is None and learning_on.type != "cpu":
        if learning_on.type != "cuda":
            raise ValueError(
                f"device={options.device!r}: with --sampler {options.sampler} the agent learns on a GPU, or on the CPU"
            )
        cuda_idx = learning_on.index or 0
    return Affinity(master_torch_threads=options.torch_threads, cuda_idx=cuda_idx)


def training_sampler(options: TrainOptions) -> BaseSampler:
    """The sampler to train with, not initialized yet."""
    return options.sampler_class(
        options.env,
        options.env_kwargs,
        batch_T=options.batch_T,
        batch_B=options.batch_B,
        n_workers=options.n_workers,
        start_method=options.start_method,
        device=options.acting_device,
        pad=options.pad,
    )


def evaluation_sampler(place: PlaceOptions, device: str | None, episodes: int, at_once: int) -> BaseSampler:
    """A sampler for an evaluation alone, acting on `device`; at_once: environments to step side by side at most."""
    rounds = math.ceil(episodes / at_once)
    return place.sampler_class(
        place.env,
        place.env_kwargs,
        batch_T=1,
        batch_B=place.n_workers or usable_cores(),
        n_workers=place.n_workers,
        start_method=place.start_method,
        device=device,
        pad=place.pad,
        max_decorrelation_steps=0,
        eval_n_envs=math.ceil(episodes / rounds),
        eval_max_trajectories=episodes,
    )
