"""`headrace train`: trains an agent, evaluates it, and saves a checkpoint and a learning curve."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from headrace.cli.build import (
    ALGORITHMS,
    TrainOptions,
    agent_for,
    algorithm_named,
    defaults_for,
    evaluation_sampler,
    field_of,
    of_training,
    training_runner,
)
from headrace.cli.earlier import EarlierRun
from headrace.cli.environments import factory_of, spaces_of
from headrace.cli.errors import CommandFailed, UsageError, no_such_file, require_at_least
from headrace.cli.idle import refuse_idle
from headrace.cli.options import parse_options
from headrace.cli.place import SAMPLERS
from headrace.cli.report import failed, summary_line
from headrace.errors import SamplerError
from headrace.runners.logging.console import ConsoleLogger
from headrace.runners.logging.logger import Logger, Loggers
from headrace.runners.logging.tensorboard import TensorBoardLogger
from headrace.runners.logging.wandb import WandbLogger
from headrace.runners.minibatch import MinibatchRl
from headrace.runners.run_folder import RunFolder, RunRecord
from headrace.runners.threads import torch_threads
from headrace.samplers.traj_info import TrajInfo
from headrace.types import EnvSpaces

__all__ = ["run"]

_PROG = "headrace train"


def run(args: Sequence[str]) -> int:
    """Trains and evaluates as the options say, and prints the results; returns the exit status."""
    options, spaces = _options(args)
    log_dir = _log_dir(options).absolute()  # an environment in this process may change the working directory
    agent = agent_for(spaces, options)
    try:
        record = RunRecord(_config(options), [*_PROG.split(), *args], draws=False)
        runner = training_runner(options, agent, log_dir, _logger(options, log_dir), record)
        evaluation = evaluation_sampler(options, options.acting_device, options.eval_episodes, options.batch_B)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        with torch_threads(options.torch_threads):
            if not _trained(runner):
                RunFolder(log_dir).draw()
                print(f"stopped by SIGTERM; checkpoint: {log_dir / 'checkpoint.pt'}{_go_on(log_dir)}", file=sys.stderr)
                return 128 + signal.SIGTERM
            with evaluation.initialize(agent, seed=runner.seed):
                episodes = evaluation.evaluate_agent(runner.n_itr)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{str(error) or 'interrupted'}{_go_on(log_dir)}") from None
    except FileExistsError as error:
        or_resume = f", or --resume {log_dir}" if (log_dir / "checkpoint.pt").exists() else ""
        raise UsageError(
            f"{(error.strerror or str(error)).partition(';')[0]}; choose another --log-dir{or_resume}"
        ) from error
    except SamplerError as error:
        raise failed(error, log_dir) from error
    _report(episodes, log_dir)
    return 0


def _options(args: Sequence[str]) -> tuple[TrainOptions, EnvSpaces]:
    """Returns the options, checked, and the spaces of the environment.

    The options are parsed twice, first for those that the defaults depend on: the run to resume, or the algorithm and
    the environment.
    """
    words = [arg for arg in args if arg not in ("-h", "--help")]
    asked = parse_options(TrainOptions(), _PROG, words, own=lambda options: options.algo, stray=_option_for)
    algorithm_named(asked.algo)
    if asked.resume is not None:
        earlier = _earlier(asked.resume)
        options = parse_options(earlier.options, _PROG, args, stray=_option_for)
        if options.algo != (trained := earlier.options.algo):
            raise UsageError(
                f"--resume {asked.resume}: this run was trained with {trained}, not {options.algo}; leave --algo out, "
                "or begin a new run without --resume"
            )
        earlier.require("env", options.env)
        earlier.require("model", options.model.model)
        spaces = spaces_of(factory_of(options.env, options.env_kwargs, options.pad), options.start_method)
    else:
        spaces = spaces_of(factory_of(asked.env, asked.env_kwargs, asked.pad), asked.start_method)
        defaults = defaults_for(asked.algo, asked.env, spaces, asked.model.recurrent)
        known = replace(defaults, env=asked.env, env_kwargs=asked.env_kwargs, pad=asked.pad)
        options = parse_options(known, _PROG, args, stray=_option_for)
    refuse_idle(args, of_training(options, spaces))
    require_at_least(1, "eval-episodes", options.eval_episodes)
    require_at_least(1, "torch-threads", options.torch_threads)
    return options, spaces


def _option_for(word: str) -> str:
    """Returns the option with the value `word`, which was given without one; empty if it is unknown."""
    if word.lower() in ALGORITHMS:
        return f"--algo {word.lower()}"
    if word in SAMPLERS:
        return f"--sampler {word}"
    return f"--env {word}" if ":" in word or word in gymnasium.registry or re.search(r"(-v\d+|\.py)$", word) else ""


def _earlier(run: Path) -> EarlierRun:
    """Returns the run to resume."""
    if not run.exists():
        raise no_such_file(run, "give the folder of a run, or a checkpoint in it, to --resume")
    try:
        earlier = EarlierRun.at(run)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise UsageError(f"--resume {run}: {error}") from error
    if not earlier.by_command:
        raise UsageError(
            f"--resume {run} is a run of a program of your own; resume it in that program, with "
            f"resume_from={str(run)!r}"
        )
    return earlier


def _log_dir(options: TrainOptions) -> Path:
    if options.log_dir is not None:
        return options.log_dir
    if options.resume is not None:
        return options.resume.parent if options.resume.is_file() else options.resume
    name = f"{options.env}-{options.algo}-seed{options.runner.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    return Path("runs") / name.replace("/", "-").replace(":", "-")


def _go_on(log_dir: Path) -> str:
    """Returns the end of a sentence that says how to resume the run; empty before its first checkpoint."""
    return f"; resume it with: headrace train --resume {log_dir}" if (log_dir / "checkpoint.pt").exists() else ""


def _config(options: TrainOptions) -> dict[str, Any]:
    """Returns the contents of `config.json`: the options without the folder and settings of other algorithms."""
    others = {field_of(algo) for algo in ALGORITHMS if algo != options.algo}
    left_out = others | {"log_dir", "resume"}
    return {name: value for name, value in asdict(options).items() if name not in left_out}


def _logger(options: TrainOptions, log_dir: Path) -> Logger:
    """Returns the console logger and the loggers that the options add."""
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
    """Trains; returns False if SIGTERM ended training, after the current batch."""
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        runner.stop()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        runner.train()
    except SamplerError:
        if not stopped:  # a SIGTERM for the whole process group may end the workers first
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return not stopped


def _report(episodes: list[TrajInfo], log_dir: Path) -> None:
    """Draws the learning curve, and prints the returns of the evaluation and the paths of the results."""
    print(summary_line(episodes))
    print(f"  checkpoint      {log_dir / 'checkpoint.pt'}")
    print(f"  progress        {log_dir / 'progress.csv'}")
    why_not = RunFolder(log_dir).draw(float(np.mean([episode.Return for episode in episodes])))
    print(f"  no learning curve: {why_not}" if why_not else f"  learning curve  {log_dir / 'learning_curve.png'}")
