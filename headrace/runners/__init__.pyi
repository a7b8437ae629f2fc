"""Runners: the training loop, written for you."""

from headrace.checkpoints.file import load_checkpoint as load_checkpoint, save_checkpoint as save_checkpoint
from headrace.checkpoints.snapshots import SnapshotConfig as SnapshotConfig
from headrace.runners.asynchronous import AsyncRl as AsyncRl, AsyncRlEval as AsyncRlEval
from headrace.runners.base import Runner as Runner
from headrace.runners.callbacks import Callback as Callback, EarlyStop as EarlyStop, StopAtReturn as StopAtReturn
from headrace.runners.config import RunnerConfig as RunnerConfig
from headrace.runners.episode_algo import EpisodeAlgo as EpisodeAlgo
from headrace.runners.local import (
    EpisodeLearner as EpisodeLearner,
    LocalRunner as LocalRunner,
    NotSetupError as NotSetupError,
    TrainArgs as TrainArgs,
    Trainer as Trainer,
)
from headrace.runners.minibatch import MinibatchRl as MinibatchRl, MinibatchRlEval as MinibatchRlEval
from headrace.runners.run_folder import RunFolder as RunFolder, RunRecord as RunRecord
from headrace.runners.synchronous import SyncRl as SyncRl, SyncRlEval as SyncRlEval
from headrace.runners.team import SyncConfig as SyncConfig
