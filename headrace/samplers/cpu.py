"""`CpuSampler`: worker processes, an agent in each."""

from __future__ import annotations

from headrace.samplers.layout import Layout
from headrace.samplers.parallel import ParallelSamplerBase

__all__ = ["CpuSampler"]


class CpuSampler(ParallelSamplerBase):
    """Each worker steps its environments and computes their actions: one synchronisation per batch.

    The fastest for small models on CPU cores. `n_workers` defaults to the usable cores.
    """

    layout = Layout(processes=True)
