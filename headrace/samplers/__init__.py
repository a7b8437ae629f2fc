"""Samplers: they collect batches `[batch_T, batch_B]` with an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.lazy import lazy_exports

if TYPE_CHECKING:
    from headrace.samplers.action_server import (
        ActionServer as ActionServer,
        AlternatingActionServer as AlternatingActionServer,
        NoOverlapAlternatingActionServer as NoOverlapAlternatingActionServer,
    )
    from headrace.samplers.alternating import (
        AlternatingSampler as AlternatingSampler,
        AlternatingSamplerBase as AlternatingSamplerBase,
        NoOverlapAlternatingSampler as NoOverlapAlternatingSampler,
    )
    from headrace.samplers.asynchronous import (
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
    from headrace.samplers.base import BaseSampler as BaseSampler
    from headrace.samplers.cpu import CpuSampler as CpuSampler
    from headrace.samplers.gpu import GpuSampler as GpuSampler, GpuSamplerBase as GpuSamplerBase
    from headrace.samplers.inner import Sink as Sink
    from headrace.samplers.parallel import ParallelSamplerBase as ParallelSamplerBase
    from headrace.samplers.serial import SerialSampler as SerialSampler
    from headrace.samplers.timing import TimingReport as TimingReport
    from headrace.samplers.traj_info import TrajInfo as TrajInfo
    from headrace.samplers.worker import initialize_worker as initialize_worker, sampling_process as sampling_process

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ActionServer": "headrace.samplers.action_server",
        "AlternatingActionServer": "headrace.samplers.action_server",
        "AlternatingSampler": "headrace.samplers.alternating",
        "AlternatingSamplerBase": "headrace.samplers.alternating",
        "AsyncActionServer": "headrace.samplers.asynchronous",
        "AsyncAlternatingActionServer": "headrace.samplers.asynchronous",
        "AsyncAlternatingSampler": "headrace.samplers.asynchronous",
        "AsyncAlternatingSamplerBase": "headrace.samplers.asynchronous",
        "AsyncCpuSampler": "headrace.samplers.asynchronous",
        "AsyncGpuSampler": "headrace.samplers.asynchronous",
        "AsyncGpuSamplerBase": "headrace.samplers.asynchronous",
        "AsyncNoOverlapAlternatingActionServer": "headrace.samplers.asynchronous",
        "AsyncNoOverlapAlternatingSampler": "headrace.samplers.asynchronous",
        "AsyncSamplerBase": "headrace.samplers.asynchronous",
        "AsyncSerialSampler": "headrace.samplers.asynchronous",
        "BaseSampler": "headrace.samplers.base",
        "CpuSampler": "headrace.samplers.cpu",
        "GpuSampler": "headrace.samplers.gpu",
        "GpuSamplerBase": "headrace.samplers.gpu",
        "NoOverlapAlternatingActionServer": "headrace.samplers.action_server",
        "NoOverlapAlternatingSampler": "headrace.samplers.alternating",
        "ParallelSamplerBase": "headrace.samplers.parallel",
        "SerialSampler": "headrace.samplers.serial",
        "Sink": "headrace.samplers.inner",
        "TimingReport": "headrace.samplers.timing",
        "TrajInfo": "headrace.samplers.traj_info",
        "initialize_worker": "headrace.samplers.worker",
        "sampling_process": "headrace.samplers.worker",
    },
)
