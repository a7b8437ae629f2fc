"""`headrace train`: trains an agent, evaluates it, leaves a checkpoint and a learning curve."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import gymnasium
import numpy as np

from headrace.agents.base import Agent
from headrace.agents.pg.categorical import CategoricalPgAgent
from headrace.algos.base import Algo
from headrace.algos.pg.a2c import A2C, A2CConfig
from headrace.algos.pg.ppo import PPO, PPOConfig
from headrace.cli.errors import CommandFailed, UsageError, unknown
from headrace.cli.options import parse_options
from headrace.errors import SamplerError, headline
from headrace.processes.affinity import Affinity, usable_cores
from headrace.runners.config import RunnerConfig
from headrace.runners.logging.plot import plot_learning_curve
from headrace.runners.minibatch import MinibatchRl
from headrace.samplers.base import BaseSampler
from headrace.samplers.cpu import CpuSampler
from headrace.samplers.serial import SerialSampler
from headrace.samplers.traj_info import TrajInfo

__all__ = ["TrainOptions", "run"]

_ENV_LISTING = "gymnasium.pprint_registry() in Python shows all"
_SAMPLERS: dict[str, type[BaseSampler]] = {"serial": SerialSampler, "cpu": CpuSampler}


@dataclass(kw_only=True)
class TrainOptions:
    """Trains an agent on a Gymnasium environment with Discrete actions, then evaluates it greedily."""

    algo: str = "ppo"
    """ppo or a2c."""
    env: str = "CartPole-v1"
    """A Gymnasium id; `module:Id-v0` imports the module first."""
    sampler: str = "cpu"
    """serial (this process) or cpu (worker processes)."""
    batch_T: int = 32
    """Time steps of a batch."""
    batch_B: int = 64
    """Environments of a batch."""
    n_workers: int | None = None
    """Worker processes of the cpu sampler; as many as usable cores if not given."""
    n_steps: int = 400_000
    """Environment steps to train for."""
    seed: int = 0
    """Of all randomness."""
    eval_episodes: int = 100
    """Episodes of the final evaluation."""
    log_interval_steps: int = 20_000
    """Environment steps between rows of progress.csv."""
    log_dir: Path | None = None
    """Where the results go; runs/ENV-ALGO-seedN-TIME if not given."""
    torch_threads: int = 1
    """Threads of the learner's torch operations; more pay off for large models only."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of ppo."""
    a2c: A2CConfig = field(default_factory=A2CConfig)
    """Settings of a2c."""


#: What each algorithm starts from: enough to solve CartPole-v1.
_DEFAULTS = {
    "ppo": TrainOptions(),
    "a2c": TrainOptions(algo="a2c", batch_T=8, batch_B=32, n_steps=500_000, log_interval_steps=25_000),
}


def run(args: Sequence[str]) -> int:
    """Trains and evaluates as the options say; prints what came of it; returns the exit status."""
    options = _options(args)
    algo: Algo = PPO(options.ppo) if options.algo == "ppo" else A2C(options.a2c)
    agent = _agent_for(options.env)
    log_dir = options.log_dir or _log_dir(options)
    if (log_dir / "progress.csv").exists():
        raise UsageError(f"{log_dir} holds another run; choose another --log-dir")
    try:
        runner = MinibatchRl(
            algo,
            agent,
            _sampler(options),
            RunnerConfig(n_steps=options.n_steps, seed=options.seed, log_interval_steps=options.log_interval_steps),
            affinity=Affinity(master_torch_threads=options.torch_threads),
            log_dir=log_dir,
        )
        evaluation = _evaluation(options)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    log_dir.mkdir(parents=True, exist_ok=True)
    (log_dir / "config.json").write_text(json.dumps(asdict(options), default=str, indent=2) + "\n")
    try:
        if not _trained(runner):
            print(f"stopped by SIGTERM; checkpoint: {log_dir / 'checkpoint.pt'}", file=sys.stderr)
            return 128 + signal.SIGTERM
        with evaluation.initialize(agent, seed=options.seed):
            episodes = evaluation.evaluate_agent(runner.n_itr)
    except SamplerError as error:
        raise _failed(error, log_dir) from error
    _report(episodes, log_dir)
    return 0


def _options(args: Sequence[str]) -> TrainOptions:
    """The options, checked. Read twice: first to see which algorithm's defaults they stand on."""
    options = parse_options(_DEFAULTS["ppo"], "headrace train", [arg for arg in args if arg not in ("-h", "--help")])
    if options.algo not in _DEFAULTS:
        raise unknown("algo", options.algo, _DEFAULTS)
    options = parse_options(_DEFAULTS[options.algo], "headrace train", args)
    if options.sampler not in _SAMPLERS:
        raise unknown("sampler", options.sampler, _SAMPLERS)
    for name, least in (("seed", 0), ("eval_episodes", 1), ("torch_threads", 1)):
        if getattr(options, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    return options


def _log_dir(options: TrainOptions) -> Path:
    name = f"{options.env}-{options.algo}-seed{options.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    return Path("runs") / name.replace("/", "-")


def _agent_for(env_id: str) -> Agent:
    """An agent for the action space of an environment; makes one environment to see it."""
    try:
        env = gymnasium.make(env_id)
    except gymnasium.error.DependencyNotInstalled as error:
        raise CommandFailed(f"{env_id} needs another package: {error}") from error
    except gymnasium.error.Error as error:
        raise unknown("environment", env_id, gymnasium.registry, _ENV_LISTING) from error
    except Exception as error:
        raise CommandFailed(f"{env_id} could not be made: {headline(error)}") from error
    space = env.action_space
    env.close()
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise UsageError(f"{env_id} has the action space {space}; ppo and a2c act in Discrete ones, e.g. CartPole-v1")
    return CategoricalPgAgent()


def _sampler(options: TrainOptions) -> BaseSampler:
    return _SAMPLERS[options.sampler](
        options.env, batch_T=options.batch_T, batch_B=options.batch_B, n_workers=options.n_workers
    )


def _evaluation(options: TrainOptions) -> BaseSampler:
    """A sampler for the final evaluation alone; it steps no more environments at once than training did."""
    rounds = math.ceil(options.eval_episodes / options.batch_B)
    return _SAMPLERS[options.sampler](
        options.env,
        batch_T=1,
        batch_B=options.n_workers or usable_cores(),
        n_workers=options.n_workers,
        max_decorrelation_steps=0,
        eval_n_envs=math.ceil(options.eval_episodes / rounds),
        eval_max_trajectories=options.eval_episodes,
    )


def _trained(runner: MinibatchRl) -> bool:
    """Trains; SIGTERM ends training after the batch at hand: then the answer is False."""
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        runner.stop()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        runner.train()
    except SamplerError:
        if not stopped:  # a SIGTERM for the whole process group ends the workers first
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return not stopped


def _failed(error: SamplerError, log_dir: Path) -> CommandFailed:
    """One line for an error in a sampler; the traceback of the environment's own code goes to a file."""
    where = f" (at: {error.where})" if error.where is not None else ""
    if error.traceback_text:
        (log_dir / "error.txt").write_text(f"{error}\n")
        where += f"; its traceback is in {log_dir / 'error.txt'}"
    return CommandFailed(f"{type(error).__name__}: {error.message}{where}")


def _report(episodes: list[TrajInfo], log_dir: Path) -> None:
    """Prints the mean return, draws the learning curve, prints where everything is."""
    returns = np.array([episode.Return for episode in episodes])
    print(
        f"mean return {returns.mean():.1f} over {len(returns)} episodes "
        f"(std {returns.std():.1f}, min {returns.min():.1f}, max {returns.max():.1f})"
    )
    print(f"  checkpoint      {log_dir / 'checkpoint.pt'}")
    print(f"  progress        {log_dir / 'progress.csv'}")
    try:
        plot_learning_curve(log_dir / "progress.csv", log_dir / "learning_curve.png", float(returns.mean()))
    except (ImportError, ValueError) as error:
        print(f"  no learning curve: {error}")
    else:
        print(f"  learning curve  {log_dir / 'learning_curve.png'}")
