"""Whole episodes: batches of episodes of different lengths, and what samplers and workers of them are given."""

from headrace.samplers.episodes.batch import EpisodeBatch as EpisodeBatch, TrajectoryBatch as TrajectoryBatch
from headrace.samplers.episodes.minari import to_minari as to_minari
from headrace.samplers.episodes.options import EpisodeOptions as EpisodeOptions, RayEpisodeOptions as RayEpisodeOptions
from headrace.samplers.episodes.policies import Policy as Policy, PolicyAgent as PolicyAgent
from headrace.samplers.episodes.steps import EnvSpec as EnvSpec, StepType as StepType, TimeStepBatch as TimeStepBatch
from headrace.samplers.episodes.tasks import (
    ConstructEnvsSampler as ConstructEnvsSampler,
    EnvPoolSampler as EnvPoolSampler,
    SetTaskSampler as SetTaskSampler,
    TaskSampler as TaskSampler,
)
