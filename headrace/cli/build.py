"""The options of `headrace train`, and the objects that commands build from options."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from headrace.agents.base import Agent
from headrace.agents.device import device_here
from headrace.algos.base import Algo
from headrace.algos.dqn import CategoricalDQNConfig, DQNConfig, R2D1Config
from headrace.algos.pg import A2CConfig, IMPALAConfig, PPOConfig, VPGConfig
from headrace.algos.qpg import DDPGConfig, SACConfig, TD3Config
from headrace.cli.agents import ActingOptions, ModelOptions
from headrace.cli.algorithms.a2c import ALGORITHM as A2C
from headrace.cli.algorithms.base import Algorithm
from headrace.cli.algorithms.categorical_dqn import ALGORITHM as CATEGORICAL_DQN
from headrace.cli.algorithms.ddpg import ALGORITHM as DDPG
from headrace.cli.algorithms.dqn import ALGORITHM as DQN
from headrace.cli.algorithms.impala import ALGORITHM as IMPALA
from headrace.cli.algorithms.ppo import ALGORITHM as PPO
from headrace.cli.algorithms.r2d1 import ALGORITHM as R2D1
from headrace.cli.algorithms.sac import ALGORITHM as SAC
from headrace.cli.algorithms.td3 import ALGORITHM as TD3
from headrace.cli.algorithms.vpg import ALGORITHM as VPG
from headrace.cli.errors import UsageError, unknown
from headrace.cli.idle import Rule, of_place
from headrace.cli.options import Unprefixed, flags_of
from headrace.cli.place import PlaceOptions
from headrace.processes.affinity import Affinity, AffinityLike, usable_cores
from headrace.runners.asynchronous import AsyncRl
from headrace.runners.config import RunnerConfig
from headrace.runners.logging.logger import Logger
from headrace.runners.minibatch import MinibatchRl
from headrace.runners.run_folder import RunRecord
from headrace.runners.synchronous import SyncRl
from headrace.runners.team import SyncConfig
from headrace.samplers.base import BaseSampler
from headrace.samplers.presets import AsyncSamplerBase
from headrace.types import EnvSpaces

__all__ = [
    "ALGORITHMS",
    "TrainOptions",
    "agent_for",
    "algo_for",
    "algorithm_named",
    "defaults_for",
    "evaluation_sampler",
    "field_of",
    "of_training",
    "placement",
    "training_runner",
    "training_sampler",
]


@dataclass(kw_only=True)
class TrainOptions(PlaceOptions):
    """Trains an agent in a Gymnasium environment, then evaluates it greedily.

    Defaults depend on the algorithm and on the environment: --help together with --algo and --env shows them.
    """

    algo: str = "ppo"
    """Name of the algorithm: ppo, a2c, dqn, or any other that has settings below."""
    batch_T: int = 32
    """Time steps of a batch."""
    batch_B: int = 64
    """Environments of a batch."""
    state_interval: int | None = None
    """For r2d1: time steps from one recorded recurrent state, where sequences may start, to the next; divides
    --batch-T."""
    runner: Unprefixed[RunnerConfig] = field(
        default_factory=lambda: RunnerConfig(n_steps=400_000, seed=0, log_interval_steps=20_000)
    )
    """How long to train, and how often to log and save."""
    model: Unprefixed[ModelOptions] = field(default_factory=ModelOptions)
    """The agent's network."""
    acting: Unprefixed[ActingOptions] = field(default_factory=ActingOptions)
    """Exploration of algorithms with a replay, and the distribution of returns of categorical-dqn."""
    eval_episodes: int = 100
    """Episodes of the final evaluation."""
    ranks: int = 1
    """Learners, each a process with a sampler of its own, that average their gradients; batch_B counts the environments
    of one."""
    devices: str | None = None
    """Devices on which several learners learn, separated by commas: cuda:0,cuda:1; None: the CPU."""
    log_dir: Path | None = None
    """Folder for the results; None: runs/ENV-ALGO-seedN-TIME."""
    resume: Path | None = None
    """Folder of an earlier run to resume from its checkpoint, with its settings; a greater --n-steps prolongs it."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the folder of the run."""
    wandb: bool = False
    """Send the log rows to Weights & Biases."""
    wandb_project: str = "headrace"
    """Project of Weights & Biases that receives them."""
    # The table of algorithms: one with settings in the field `a_b` is called a-b on the command line.
    ppo: PPOConfig = field(default_factory=PPOConfig, metadata={"algorithm": PPO})
    """Settings of ppo."""
    a2c: A2CConfig = field(default_factory=A2CConfig, metadata={"algorithm": A2C})
    """Settings of a2c."""
    impala: IMPALAConfig = field(default_factory=IMPALAConfig, metadata={"algorithm": IMPALA})
    """Settings of impala."""
    vpg: VPGConfig = field(default_factory=VPGConfig, metadata={"algorithm": VPG})
    """Settings of vpg."""
    dqn: DQNConfig = field(default_factory=DQNConfig, metadata={"algorithm": DQN})
    """Settings of dqn, for Discrete actions."""
    categorical_dqn: CategoricalDQNConfig = field(
        default_factory=CategoricalDQNConfig, metadata={"algorithm": CATEGORICAL_DQN}
    )
    """Settings of categorical-dqn, for Discrete actions."""
    r2d1: R2D1Config = field(default_factory=R2D1Config, metadata={"algorithm": R2D1})
    """Settings of r2d1, for Discrete actions and agents with a memory."""
    ddpg: DDPGConfig = field(default_factory=DDPGConfig, metadata={"algorithm": DDPG})
    """Settings of ddpg, for Box actions."""
    td3: TD3Config = field(default_factory=TD3Config, metadata={"algorithm": TD3})
    """Settings of td3, for Box actions."""
    sac: SACConfig = field(default_factory=SACConfig, metadata={"algorithm": SAC})
    """Settings of sac, for Box actions."""


#: The algorithms by their names on the command line.
ALGORITHMS: dict[str, Algorithm[Any]] = {
    one.name.replace("_", "-"): one.metadata["algorithm"] for one in fields(TrainOptions) if "algorithm" in one.metadata
}


def algorithm_named(name: str) -> Algorithm[Any]:
    """Returns an algorithm; raises UsageError, which names the nearest one, if there is none of this name."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    elsewhere = name.lower().replace("_", "-")
    for ours, algorithm in ALGORITHMS.items():
        if elsewhere in algorithm.stands_for:
            raise UsageError(f"headrace has no {name}; the nearest is {ours}{algorithm.stands_for[elsewhere]}")
    raise unknown("algo", name, ALGORITHMS)


def field_of(algo: str) -> str:
    """Returns the name of the field of `TrainOptions` with the settings of an algorithm."""
    return algo.replace("-", "_")


def defaults_for(algo: str, env: str, spaces: EnvSpaces, recurrent: Literal["lstm", "gru"] | None) -> TrainOptions:
    """Returns the default options of a training.

    Args:
        algo: name of the algorithm.
        env: name of the environment on the command line.
        spaces: its spaces.
        recurrent: memory of the agent; None: it has none.
    """
    found = algorithm_named(algo).defaults_for(env, spaces, recurrent)
    options = TrainOptions(
        algo=algo,
        sampler=found.sampler,
        batch_T=found.batch_T,
        batch_B=found.batch_B,
        state_interval=found.state_interval,
        runner=RunnerConfig(n_steps=found.n_steps, seed=0, log_interval_steps=found.log_interval_steps),
        model=found.model,
        acting=found.acting,
    )
    settings: dict[str, Any] = {field_of(algo): found.settings}
    return replace(options, **settings)


def of_training(options: TrainOptions, spaces: EnvSpaces) -> list[Rule]:
    """Returns the rules for the options of `headrace train`."""
    model = options.model
    return [
        *of_place(options),
        *_of_other_algorithms(options.algo),
        *algorithm_named(options.algo).rules(options, spaces),
        Rule(
            ("memory-size",),
            model.recurrent is not None and model.model is None,
            "the width of the network's memory; add --recurrent lstm, or for --model use --model-kwargs",
        ),
        Rule(
            ("normalize-observation", "separate-value"),
            model.model is None,
            "for the networks of headrace, not for --model; normalize in your model, or use --model-kwargs",
        ),
        Rule(
            ("state-interval",),
            options.algo == "r2d1",
            f"for r2d1, which learns from sequences; {options.algo} does not use the states",
        ),
        Rule(("wandb-project",), options.wandb, "for Weights & Biases; add --wandb"),
    ]


def _of_other_algorithms(algo: str) -> Iterator[Rule]:
    """Yields the rules for the settings of all algorithms but `algo`."""
    flags = flags_of(TrainOptions())
    for flag in flags:
        where, _, name = flag[2:].rpartition(".")
        if where in ALGORITHMS and where != algo:
            own = f"--{algo}.{name}"
            instead = f"which has {own}" if own in flags else f"which has no such setting; add --algo {where}"
            yield Rule([flag[2:]], False, f"for --algo {where}, but this run trains {algo}, {instead}")


def algo_for(options: TrainOptions) -> Algo:
    """Returns the algorithm, not initialized; raises UsageError as `algorithm_named`."""
    return algorithm_named(options.algo).algo(getattr(options, field_of(options.algo)))


def agent_for(spaces: EnvSpaces, options: TrainOptions) -> Agent:
    """Returns an agent for the algorithm and these spaces, not initialized; for errors, see `Algorithm.agent`."""
    return algorithm_named(options.algo).agent(spaces, options)


def placement(options: TrainOptions) -> Affinity:
    """Returns the threads and the device of the learner; raises ValueError for a device that it cannot use."""
    learning_on = None if options.device is None else device_here(options.device, "device")
    cuda_idx = None
    if learning_on is not None and options.acting_device is None and learning_on.type != "cpu":
        if learning_on.type != "cuda":
            raise ValueError(
                f"device={options.device!r}: with --sampler {options.sampler} the agent learns on a CUDA GPU or on the "
                "CPU; give cuda, cuda:N or cpu"
            )
        cuda_idx = learning_on.index or 0
    return Affinity(master_torch_threads=options.torch_threads, cuda_idx=cuda_idx)


def training_runner(
    options: TrainOptions, agent: Agent, log_dir: Path, logger: Logger, record: RunRecord
) -> MinibatchRl:
    """Returns the runner, with algorithm and sampler.

    Raises:
        TypeError: if an option has a wrong type.
        ValueError: if an option has a wrong value, or options contradict each other.
    """
    config, affinity = options.runner, placement(options)
    asynchronous = issubclass(options.sampler_class, AsyncSamplerBase)
    make: type[MinibatchRl] = AsyncRl if asynchronous else MinibatchRl
    places: AffinityLike = affinity
    if options.ranks != 1 or options.devices is not None:
        if asynchronous:
            raise ValueError(
                "--ranks and --devices are for samplers that collect in turn with learning; leave async- out"
            )
        if options.device is not None:
            raise ValueError("--device is for one learner; give several their --devices")
        devices = None if options.devices is None else tuple(options.devices.split(","))
        ranks = options.ranks if options.ranks != 1 or devices is None else None
        config = SyncConfig(
            **vars(options.runner), world_size=ranks, devices=devices, start_method=options.start_method
        )
        make, places = SyncRl, None
    return make(
        algo_for(options),
        agent,
        training_sampler(options),
        config,
        affinity=places,
        log_dir=log_dir,
        logger=logger,
        resume_from=options.resume,
        record=record,
    )


def training_sampler(options: TrainOptions) -> BaseSampler:
    """Returns the sampler for training, not initialized."""
    return options.sampler_class(
        options.env,
        options.env_kwargs,
        batch_T=options.batch_T,
        batch_B=options.batch_B,
        n_workers=options.n_workers,
        start_method=options.start_method,
        device=options.acting_device,
        pad=options.pad,
        state_interval=options.state_interval,
    )


def evaluation_sampler(place: PlaceOptions, device: str | None, episodes: int, at_once: int) -> BaseSampler:
    """Returns a sampler for an evaluation only, not initialized.

    Args:
        place: the environment and the kind of sampler.
        device: device on which the agent acts.
        episodes: episodes to evaluate.
        at_once: maximum number of environments to step at the same time.
    """
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
