"""Batches and the memory they lie in."""

from headrace.buffers.samples import (
    AgentSamples as AgentSamples,
    EnvSamples as EnvSamples,
    Final as Final,
    Samples as Samples,
)
from headrace.buffers.shared import Arena as Arena
from headrace.buffers.tree import tree_map as tree_map
