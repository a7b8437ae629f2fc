"""Whole episodes: batches of episodes of different lengths, and samplers and workers that collect them."""

from headrace.samplers.episodes.batch import EpisodeBatch as EpisodeBatch, TrajectoryBatch as TrajectoryBatch
from headrace.samplers.episodes.minari import to_minari as to_minari
from headrace.samplers.episodes.steps import EnvSpec as EnvSpec, StepType as StepType, TimeStepBatch as TimeStepBatch
