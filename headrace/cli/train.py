"""`headrace train`: trains an agent, evaluates it, leaves a checkpoint and a learning curve."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from headrace.cli.build import (
    ALGOS,
    TrainOptions,
    agent_for,
    algo_for,
    evaluation_sampler,
    placement,
    require_algo,
    training_sampler,
)
from headrace.cli.defaults import defaults_for
from headrace.cli.earlier import EarlierRun
from headrace.cli.environments import factory_of, spaces_of
from headrace.cli.errors import CommandFailed, UsageError, require_at_least
from headrace.cli.idle import of_training, refuse_idle
from headrace.cli.options import parse_options
from headrace.cli.report import failed, summary_line
from headrace.errors import SamplerError
from headrace.runners.asynchronous import AsyncRl
from headrace.runners.logging.console import ConsoleLogger
from headrace.runners.logging.logger import Logger, Loggers
from headrace.runners.logging.tensorboard import TensorBoardLogger
from headrace.runners.logging.wandb import WandbLogger
from headrace.runners.minibatch import MinibatchRl
from headrace.runners.run_folder import RunFolder, RunRecord
from headrace.runners.threads import torch_threads
from headrace.samplers.presets import AsyncSamplerBase
from headrace.samplers.traj_info import TrajInfo
from headrace.types import EnvSpaces

__all__ = ["run"]

_PROG = "headrace train"


def run(args: Sequence[str]) -> int:
    """Trains and evaluates as the options say; prints what came of it; returns the exit status."""
    options, spaces = _options(args)
    log_dir = _log_dir(options).absolute()  # an environment in this process may change the directory
    agent = agent_for(spaces, options)
    try:
        asynchronous = issubclass(options.sampler_class, AsyncSamplerBase)
        runner = (AsyncRl if asynchronous else MinibatchRl)(
            algo_for(options),
            agent,
            training_sampler(options),
            options.runner,
            affinity=placement(options),
            log_dir=log_dir,
            logger=_logger(options, log_dir),
            resume_from=options.resume,
            record=RunRecord(_config(options), [*_PROG.split(), *args]),
        )
        evaluation = evaluation_sampler(options, options.acting_device, options.eval_episodes, options.batch_B)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        with torch_threads(options.torch_threads):
            if not _trained(runner):
                print(f"stopped by SIGTERM; checkpoint: {log_dir / 'checkpoint.pt'}{_go_on(log_dir)}", file=sys.stderr)
                return 128 + signal.SIGTERM
            with evaluation.initialize(agent, seed=runner.seed):
                episodes = evaluation.evaluate_agent(runner.n_itr)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{str(error) or 'interrupted'}{_go_on(log_dir)}") from None
    except FileExistsError as error:
        or_resume = f", or --resume {log_dir}" if (log_dir / "checkpoint.pt").exists() else ""
        raise UsageError(f"{str(error).partition(';')[0]}; choose another --log-dir{or_resume}") from error
    except SamplerError as error:
        raise failed(error, log_dir) from error
    _report(episodes, log_dir)
    return 0


def _options(args: Sequence[str]) -> tuple[TrainOptions, EnvSpaces]:
    """The options, checked, and the spaces of the environment.

    Read twice: first to see what their defaults stand on, an earlier run or the algorithm and the environment.
    """
    words = [arg for arg in args if arg not in ("-h", "--help")]
    asked = parse_options(TrainOptions(), _PROG, words, own=lambda options: options.algo)
    require_algo(asked.algo)
    if asked.resume is not None:
        earlier = _earlier(asked.resume)
        options = parse_options(earlier.options, _PROG, args)
        earlier.require("env", options.env)
        earlier.require("model", options.model.model)
        require_algo(options.algo)
        spaces = spaces_of(factory_of(options.env, options.env_kwargs, options.pad))
    else:
        spaces = spaces_of(factory_of(asked.env, asked.env_kwargs, asked.pad))
        defaults = defaults_for(asked.algo, asked.env, spaces, asked.model.recurrent)
        known = replace(defaults, env=asked.env, env_kwargs=asked.env_kwargs, pad=asked.pad)
        options = parse_options(known, _PROG, args)
    refuse_idle(args, of_training(options, spaces))
    require_at_least(1, "eval-episodes", options.eval_episodes)
    require_at_least(1, "torch-threads", options.torch_threads)
    return options, spaces


def _earlier(run: Path) -> EarlierRun:
    """The run to go on with."""
    try:
        earlier = EarlierRun.at(run)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise UsageError(f"--resume {run}: {error}") from error
    if not earlier.by_command:
        raise UsageError(f"--resume {run} is a run of a program of your own; go on in that program, with resume_from")
    return earlier


def _log_dir(options: TrainOptions) -> Path:
    if options.log_dir is not None:
        return options.log_dir
    if options.resume is not None:
        return options.resume.parent if options.resume.is_file() else options.resume
    name = f"{options.env}-{options.algo}-seed{options.runner.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    return Path("runs") / name.replace("/", "-").replace(":", "-")


def _go_on(log_dir: Path) -> str:
    """How to, for the end of a sentence; nothing where there is nothing to go on from yet."""
    return f"; go on with: headrace train --resume {log_dir}" if (log_dir / "checkpoint.pt").exists() else ""


def _config(options: TrainOptions) -> dict[str, Any]:
    """What `config.json` holds: the options, without where the run is, and without settings of other algorithms."""
    others = {algo.replace("-", "_") for algo in ALGOS if algo != options.algo}
    left_out = others | {"log_dir", "resume"}
    return {name: value for name, value in asdict(options).items() if name not in left_out}


def _logger(options: TrainOptions, log_dir: Path) -> Logger:
    """The console, and what else was asked for."""
    loggers: list[Logger] = [ConsoleLogger()]
    try:
        if options.tensorboard:
            loggers.append(TensorBoardLogger(log_dir / "tensorboard"))
        if options.wandb:
            loggers.append(WandbLogger(options.wandb_project, log_dir.name, folder=log_dir))
    except ImportError as error:
        raise CommandFailed(str(error)) from error
    return Loggers(*loggers)


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


def _report(episodes: list[TrajInfo], log_dir: Path) -> None:
    """Prints the mean return, draws the learning curve, prints where everything is."""
    print(summary_line(episodes))
    print(f"  checkpoint      {log_dir / 'checkpoint.pt'}")
    print(f"  progress        {log_dir / 'progress.csv'}")
    why_not = RunFolder(log_dir).draw(float(np.mean([episode.Return for episode in episodes])))
    print(f"  no learning curve: {why_not}" if why_not else f"  learning curve  {log_dir / 'learning_curve.png'}")
