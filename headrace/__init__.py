"""headrace: experience for reinforcement learning, collected in parallel, fast and exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.errors import SamplerError as SamplerError
    from headrace.policy import load_agent as load_agent
    from headrace.processes.affinity import Affinity as Affinity
    from headrace.types import BatchSpec as BatchSpec

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Affinity": "headrace.processes.affinity",
        "BatchSpec": "headrace.types",
        "SamplerError": "headrace.errors",
        "load_agent": "headrace.policy",
    },
)
