"""`headrace train`: trains an agent, evaluates it, leaves a checkpoint and a learning curve."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from headrace.buffers.samples import Samples
from headrace.cli.build import (
    ALGOS,
    TrainOptions,
    agent_for,
    algo_for,
    evaluation_sampler,
    training_sampler,
)
from headrace.cli.defaults import defaults_for
from headrace.cli.environments import factory_of, spaces_of
from headrace.cli.errors import CommandFailed, UsageError, require_at_least, unknown
from headrace.cli.options import parse_options, restored
from headrace.cli.report import failed, summary_line
from headrace.errors import SamplerError
from headrace.processes.affinity import Affinity
from headrace.runners.asynchronous import AsyncRl
from headrace.runners.base import Runner
from headrace.runners.callbacks import Callback
from headrace.runners.logging.console import ConsoleLogger
from headrace.runners.logging.logger import Logger, Loggers
from headrace.runners.logging.plot import plot_learning_curve
from headrace.runners.logging.tensorboard import TensorBoardLogger
from headrace.runners.logging.wandb import WandbLogger
from headrace.runners.minibatch import MinibatchRl
from headrace.runners.run_folder import RunFolder
from headrace.samplers.asynchronous import AsyncSamplerBase
from headrace.samplers.traj_info import TrajInfo
from headrace.types import EnvSpaces

__all__ = ["run"]

_PROG = "headrace train"


class _NoteStart(Callback):
    """Notes a resumption in the folder of the run, once it has come as far as a batch: one that is refused changes
    nothing there.
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], command: Sequence[str]) -> None:
        self._folder, self._config, self._command = folder, config, command
        self._noted = False

    def on_batch(self, runner: Runner, itr: int, samples: Samples, traj_infos: Sequence[TrajInfo]) -> None:
        if not self._noted:
            self._folder.note_start(self._command, self._config)
            self._noted = True


def run(args: Sequence[str]) -> int:
    """Trains and evaluates as the options say; prints what came of it; returns the exit status."""
    options, spaces = _options(args)
    log_dir = _log_dir(options).absolute()  # an environment in this process may change the directory
    agent = agent_for(spaces, options)
    config, command = _config(options), [*_PROG.split(), *args]
    resuming = options.resume is not None
    try:
        asynchronous = issubclass(options.sampler_class, AsyncSamplerBase)
        runner = (AsyncRl if asynchronous else MinibatchRl)(
            algo_for(options),
            agent,
            training_sampler(options),
            options.runner,
            affinity=Affinity(master_torch_threads=options.torch_threads),
            log_dir=log_dir,
            logger=_logger(options, log_dir),
            callbacks=[_NoteStart(RunFolder(log_dir), config, command)] if resuming else [],
            resume_from=options.resume,
        )
        evaluation = evaluation_sampler(options, options.eval_episodes, options.batch_B)
        if not resuming:
            RunFolder.create(log_dir, config, command)
    except FileExistsError as error:
        raise UsageError(f"{log_dir} holds another run; choose another --log-dir, or --resume {log_dir}") from error
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        if not _trained(runner):
            print(f"stopped by SIGTERM; checkpoint: {log_dir / 'checkpoint.pt'}{_go_on(log_dir)}", file=sys.stderr)
            return 128 + signal.SIGTERM
        with evaluation.initialize(agent, seed=runner.seed):
            episodes = evaluation.evaluate_agent(runner.n_itr)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{str(error) or 'interrupted'}{_go_on(log_dir)}") from None
    except SamplerError as error:
        raise failed(error, log_dir) from error
    _report(episodes, log_dir)
    return 0


def _options(args: Sequence[str]) -> tuple[TrainOptions, EnvSpaces]:
    """The options, checked, and the spaces of the environment.

    Read twice: first to see what their defaults stand on, an earlier run or the algorithm and the environment.
    """
    asked = parse_options(TrainOptions(), _PROG, [arg for arg in args if arg not in ("-h", "--help")])
    if asked.algo not in ALGOS:
        raise unknown("algo", asked.algo, ALGOS)
    if asked.resume is not None:
        options = parse_options(_options_of(asked.resume, asked.env), _PROG, args)
        spaces = spaces_of(factory_of(options.env, options.env_kwargs))
    else:
        spaces = spaces_of(factory_of(asked.env, asked.env_kwargs))
        defaults = defaults_for(asked.algo, asked.env, spaces, asked.model.recurrent)
        options = parse_options(replace(defaults, env=asked.env, env_kwargs=asked.env_kwargs), _PROG, args)
    require_at_least(1, "eval-episodes", options.eval_episodes)
    require_at_least(1, "torch-threads", options.torch_threads)
    return options, spaces


def _options_of(run: Path, env: str) -> TrainOptions:
    """Those of an earlier run, given by its folder or a checkpoint in it; env: the environment asked for."""
    try:
        return restored(TrainOptions(), RunFolder.open(_folder_of(run)).runnable(env))
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise UsageError(f"--resume {run}: {error}") from error


def _folder_of(run: Path) -> Path:
    return run.parent if run.is_file() else run


def _log_dir(options: TrainOptions) -> Path:
    if options.log_dir is not None:
        return options.log_dir
    if options.resume is not None:
        return _folder_of(options.resume)
    name = f"{options.env}-{options.algo}-seed{options.runner.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    return Path("runs") / name.replace("/", "-").replace(":", "-")


def _go_on(log_dir: Path) -> str:
    """How to, for the end of a sentence; nothing where there is nothing to go on from yet."""
    return f"; go on with: headrace train --resume {log_dir}" if (log_dir / "checkpoint.pt").exists() else ""


def _config(options: TrainOptions) -> dict[str, Any]:
    """What `config.json` holds: the options, but for those that say where the run is."""
    return {name: value for name, value in asdict(options).items() if name not in ("log_dir", "resume")}


def _logger(options: TrainOptions, log_dir: Path) -> Logger:
    """The console, and what else was asked for."""
    loggers: list[Logger] = [ConsoleLogger()]
    try:
        if options.tensorboard:
            loggers.append(TensorBoardLogger(log_dir / "tensorboard"))
        if options.wandb:
            loggers.append(WandbLogger(options.wandb_project, log_dir.name, _config(options), log_dir))
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
    try:
        mean_return = float(np.mean([episode.Return for episode in episodes]))
        plot_learning_curve(log_dir / "progress.csv", log_dir / "learning_curve.png", mean_return)
    except (ImportError, ValueError) as error:
        print(f"  no learning curve: {error}")
    else:
        print(f"  learning curve  {log_dir / 'learning_curve.png'}")
