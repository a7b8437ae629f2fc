"""`headrace eval`: evaluates the agent of a checkpoint, and records videos of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import torch

from headrace.agents.base import Agent
from headrace.checkpoints.store import CheckpointStore
from headrace.cli.build import TrainOptions, evaluation_sampler
from headrace.cli.earlier import EarlierRun
from headrace.cli.environments import factory_of, spaces_of
from headrace.cli.errors import CommandFailed, UsageError, no_such_file, require_at_least
from headrace.cli.idle import Rule, of_place, refuse_idle
from headrace.cli.imports import imported_model
from headrace.cli.options import Positional, parse_options
from headrace.cli.place import PlaceOptions
from headrace.cli.report import failed, summary_line
from headrace.cli.video import Recorder, require_video
from headrace.envs.factory import EnvFactory
from headrace.errors import SamplerError
from headrace.policy import load_agent
from headrace.runners.threads import torch_threads
from headrace.samplers.presets import SerialSampler
from headrace.text import significant
from headrace.types import AgentStep, EnvSpaces, StepInputs, Tree

__all__ = ["EvalOptions", "run"]

_PROG = "headrace eval"


@dataclass(kw_only=True)
class EvalOptions(PlaceOptions):
    """Evaluates the agent of a run greedily, in the environment of the run or another one with the same spaces."""

    checkpoint: Positional[str] = ""
    """The folder of a run (its newest checkpoint), or a checkpoint, such as the run's best.pt."""
    env: str = ""
    """Environment, as for headrace train. Default: that of the run."""
    model: str | None = None
    """module:Class, the model of the agent if it is your own. Default: that of the run."""
    episodes: int = 100
    """Episodes to evaluate."""
    seed: int = 0
    """Seed of the environments."""
    stochastic: bool = False
    """Draw actions from the policy, as in training, instead of taking the most probable ones."""
    video: Path | None = None
    """Folder for videos (mp4) of separate episodes, which the evaluation does not count."""
    video_episodes: int = 1
    """Episodes to record."""


class _Sampling(Agent):
    """Makes an agent act in evaluations as it does in training."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.model, self.spaces = agent.model, agent.spaces
        self.noise_size, self.noise_has_env_id = agent.noise_size, agent.noise_has_env_id

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        return self._agent.build_model(spaces)

    def initial_state(self, n: int) -> Tree:
        return self._agent.initial_state(n)

    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        return self._agent.step(inputs, state)

    def value(self, inputs: StepInputs, state: Tree) -> torch.Tensor:
        return self._agent.value(inputs, state)

    def __call__(self, inputs: StepInputs, state: Tree = None) -> Any:
        return self._agent(inputs, state)

    def sample_mode(self, itr: int) -> None:
        self._agent.sample_mode(itr)

    def eval_mode(self, itr: int) -> None:
        self._agent.sample_mode(itr)


def run(args: Sequence[str]) -> int:
    """Evaluates as the options say, and prints the results; returns the exit status."""
    # Parse twice, first for the run, whose environment and seed are the defaults.
    asked = parse_options(EvalOptions(), _PROG, args)
    path = Path(asked.checkpoint)
    if not asked.checkpoint and not _is_run(path):
        raise UsageError(
            "give the folder of a run, or a checkpoint in it, for example: headrace eval "
            f"{max(Path('runs').glob('*/'), key=lambda run: run.stat().st_mtime, default='runs/first')}"
        )
    if not path.exists():
        raise no_such_file(path, "give the folder of a run, or a checkpoint in it")
    earlier = _earlier(path)
    trained = earlier.options
    options = parse_options(_defaults(asked.checkpoint, trained), _PROG, args)
    video = Rule(["video-episodes"], options.video is not None, "for videos; add --video FOLDER")
    refuse_idle(args, [*of_place(options), video])
    require_at_least(1, "episodes", options.episodes)
    require_at_least(1, "video-episodes", options.video_episodes)
    require_at_least(1, "torch-threads", options.torch_threads)
    require_at_least(0, "seed", options.seed)
    earlier.require("env", options.env)
    earlier.require("model", options.model)
    if not options.env:
        raise UsageError(f"{path} has no config.json beside it that names the environment of the training; add --env")
    if options.video is not None:
        options = replace(options, video=options.video.absolute())  # an environment may change the working directory
        require_video(_rendering(options), options.start_method)
    try:
        spaces = spaces_of(factory_of(options.env, options.env_kwargs, options.pad), options.start_method)
    except UsageError as error:
        if ":" in options.env or options.env != trained.env:
            raise
        raise UsageError(
            f"{error} (if a module of yours registers the environment of the run, add --env module:{options.env})"
        ) from error
    policy = load_agent(path, ModelCls=None if options.model is None else imported_model(options.model))
    agent = policy.agent
    if agent.spaces != spaces:
        raise CommandFailed(
            f"the agent of {path} is for {agent.spaces}, but {options.env} has {spaces}; give the --env "
            "of the training, or one with the same spaces"
        )
    if options.stochastic:
        agent = _Sampling(agent)
    try:
        evaluation = evaluation_sampler(options, options.device, options.episodes, trained.batch_B)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        with torch_threads(options.torch_threads):
            with evaluation.initialize(agent, seed=options.seed):
                episodes = evaluation.evaluate_agent(policy.itr)
            print(summary_line(episodes))
            if options.video is not None:
                _record(agent, policy.itr, options, options.video)
    except SamplerError as error:
        raise failed(error, Path()) from error
    return 0


def _is_run(folder: Path) -> bool:
    store = CheckpointStore(folder)
    return store.newest.exists() or store.previous.exists()


def _earlier(path: Path) -> EarlierRun:
    """Returns the run at `path`; without an environment if the run left no settings."""
    try:
        return EarlierRun.at(path)
    except FileNotFoundError as error:
        if path.is_dir() and not _is_run(path):
            raise CommandFailed(f"{path} contains no checkpoint; give the folder of a run that saved one") from error
        return EarlierRun(TrainOptions(env=""))
    except (TypeError, ValueError) as error:
        raise CommandFailed(str(error)) from error


def _defaults(checkpoint: str, trained: TrainOptions) -> EvalOptions:
    return EvalOptions(
        checkpoint=checkpoint,
        env=trained.env,
        env_kwargs=trained.env_kwargs,
        pad=trained.pad,
        sampler=trained.sampler,
        n_workers=trained.n_workers,
        start_method=trained.start_method,
        episodes=trained.eval_episodes,
        model=trained.model.model,
        seed=trained.runner.seed or 0,
    )


def _rendering(options: EvalOptions) -> EnvFactory:
    return factory_of(options.env, {**options.env_kwargs, "render_mode": "rgb_array"}, options.pad)


def _record(agent: Agent, itr: int, options: EvalOptions, folder: Path) -> None:
    """Records episodes, and prints the paths of the videos."""
    rendering = _rendering(options)

    def make(record: bool) -> gymnasium.Env[Any, Any]:
        env = rendering()
        return Recorder(env, folder) if record else env

    sampler = SerialSampler(
        make,
        {"record": False},
        batch_T=1,
        batch_B=1,
        max_decorrelation_steps=0,
        eval_n_envs=1,
        eval_env_kwargs={"record": True},
        eval_max_trajectories=options.video_episodes,
    )
    with sampler.initialize(agent, seed=options.seed):
        episodes = sampler.evaluate_agent(itr)
    for number, episode in enumerate(episodes):
        print(f"  video           {folder / f'episode-{number}.mp4'} (return {significant(episode.Return)})")
