"""Batches and the memory they lie in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.buffers.samples import (
        AgentSamples as AgentSamples,
        EnvSamples as EnvSamples,
        Final as Final,
        Samples as Samples,
    )
    from headrace.buffers.shared import Arena as Arena
    from headrace.buffers.tree import tree_map as tree_map

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AgentSamples": "headrace.buffers.samples",
        "Arena": "headrace.buffers.shared",
        "EnvSamples": "headrace.buffers.samples",
        "Final": "headrace.buffers.samples",
        "Samples": "headrace.buffers.samples",
        "tree_map": "headrace.buffers.tree",
    },
)
