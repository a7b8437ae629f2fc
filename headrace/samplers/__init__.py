"""Samplers: they collect batches `[batch_T, batch_B]` with an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.samplers.alternating import (
        AlternatingSampler as AlternatingSampler,
        AlternatingSamplerBase as AlternatingSamplerBase,
        NoOverlapAlternatingSampler as NoOverlapAlternatingSampler,
    )
    from headrace.samplers.base import BaseSampler as BaseSampler
    from headrace.samplers.cpu import CpuSampler as CpuSampler
    from headrace.samplers.engines.asynchronous import (
        AsyncActionServer as AsyncActionServer,
        AsyncAlternatingActionServer as AsyncAlternatingActionServer,
        AsyncAlternatingSampler as AsyncAlternatingSampler,
        AsyncAlternatingSamplerBase as AsyncAlternatingSamplerBase,
        AsyncCpuSampler as AsyncCpuSampler,
        AsyncGpuSampler as AsyncGpuSampler,
        AsyncGpuSamplerBase as AsyncGpuSamplerBase,
        AsyncNoOverlapAlternatingActionServer as AsyncNoOverlapAlternatingActionServer,
        AsyncNoOverlapAlternatingSampler as AsyncNoOverlapAlternatingSampler,
        AsyncSamplerBase as AsyncSamplerBase,
        AsyncSerialSampler as AsyncSerialSampler,
    )
    from headrace.samplers.engines.parallel import ParallelSamplerBase as ParallelSamplerBase
    from headrace.samplers.engines.serial import SerialSampler as SerialSampler
    from headrace.samplers.engines.served import GpuSampler as GpuSampler, GpuSamplerBase as GpuSamplerBase
    from headrace.samplers.inference.action_server import (
        ActionServer as ActionServer,
        AlternatingActionServer as AlternatingActionServer,
        NoOverlapAlternatingActionServer as NoOverlapAlternatingActionServer,
    )
    from headrace.samplers.timing import TimingReport as TimingReport
    from headrace.samplers.traj_info import TrajInfo as TrajInfo
    from headrace.samplers.workers.main import (
        initialize_worker as initialize_worker,
        sampling_process as sampling_process,
    )
    from headrace.samplers.workers.sampler_process import Sink as Sink

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ActionServer": "headrace.samplers.inference.action_server",
        "AlternatingActionServer": "headrace.samplers.inference.action_server",
        "AlternatingSampler": "headrace.samplers.alternating",
        "AlternatingSamplerBase": "headrace.samplers.alternating",
        "AsyncActionServer": "headrace.samplers.engines.asynchronous",
        "AsyncAlternatingActionServer": "headrace.samplers.engines.asynchronous",
        "AsyncAlternatingSampler": "headrace.samplers.engines.asynchronous",
        "AsyncAlternatingSamplerBase": "headrace.samplers.engines.asynchronous",
        "AsyncCpuSampler": "headrace.samplers.engines.asynchronous",
        "AsyncGpuSampler": "headrace.samplers.engines.asynchronous",
        "AsyncGpuSamplerBase": "headrace.samplers.engines.asynchronous",
        "AsyncNoOverlapAlternatingActionServer": "headrace.samplers.engines.asynchronous",
        "AsyncNoOverlapAlternatingSampler": "headrace.samplers.engines.asynchronous",
        "AsyncSamplerBase": "headrace.samplers.engines.asynchronous",
        "AsyncSerialSampler": "headrace.samplers.engines.asynchronous",
        "BaseSampler": "headrace.samplers.base",
        "CpuSampler": "headrace.samplers.cpu",
        "GpuSampler": "headrace.samplers.engines.served",
        "GpuSamplerBase": "headrace.samplers.engines.served",
        "NoOverlapAlternatingActionServer": "headrace.samplers.inference.action_server",
        "NoOverlapAlternatingSampler": "headrace.samplers.alternating",
        "ParallelSamplerBase": "headrace.samplers.engines.parallel",
        "SerialSampler": "headrace.samplers.engines.serial",
        "Sink": "headrace.samplers.workers.sampler_process",
        "TimingReport": "headrace.samplers.timing",
        "TrajInfo": "headrace.samplers.traj_info",
        "initialize_worker": "headrace.samplers.workers.main",
        "sampling_process": "headrace.samplers.workers.main",
    },
)
