"""Whole episodes: batches of episodes of different lengths, and samplers and workers that collect them."""

from headrace.samplers.episodes.policies import Policy as Policy, PolicyAgent as PolicyAgent
from headrace.samplers.episodes.tasks import (
    ConstructEnvsSampler as ConstructEnvsSampler,
    EnvPoolSampler as EnvPoolSampler,
    SetTaskSampler as SetTaskSampler,
    TaskSampler as TaskSampler,
)
from headrace.samplers.episodes.updates import (
    EnvUpdate as EnvUpdate,
    ExistingEnvUpdate as ExistingEnvUpdate,
    NewEnvUpdate as NewEnvUpdate,
    SetTaskUpdate as SetTaskUpdate,
)
