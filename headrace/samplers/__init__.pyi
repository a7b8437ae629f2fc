"""Samplers collect batches `[batch_T, batch_B]` with an agent."""

from headrace.samplers.base import BaseSampler as BaseSampler
from headrace.samplers.config import RayOptions as RayOptions, SamplerOptions as SamplerOptions
from headrace.samplers.episodes.base import EpisodeSampler as EpisodeSampler, Sampler as Sampler
from headrace.samplers.episodes.factory import WorkerFactory as WorkerFactory
from headrace.samplers.episodes.local import LocalSampler as LocalSampler
from headrace.samplers.episodes.multiprocessing import MultiprocessingSampler as MultiprocessingSampler
from headrace.samplers.episodes.ray import RaySampler as RaySampler
from headrace.samplers.episodes.updates import (
    EnvUpdate as EnvUpdate,
    ExistingEnvUpdate as ExistingEnvUpdate,
    NewEnvUpdate as NewEnvUpdate,
    SetTaskUpdate as SetTaskUpdate,
)
from headrace.samplers.episodes.worker import (
    DefaultWorker as DefaultWorker,
    FragmentWorker as FragmentWorker,
    VecWorker as VecWorker,
    Worker as Worker,
)
from headrace.samplers.inference.action_server import (
    ActionServer as ActionServer,
    AlternatingActionServer as AlternatingActionServer,
    AsyncActionServer as AsyncActionServer,
    AsyncAlternatingActionServer as AsyncAlternatingActionServer,
    AsyncNoOverlapAlternatingActionServer as AsyncNoOverlapAlternatingActionServer,
    NoOverlapAlternatingActionServer as NoOverlapAlternatingActionServer,
)
from headrace.samplers.presets import (
    AlternatingSampler as AlternatingSampler,
    AlternatingSamplerBase as AlternatingSamplerBase,
    AsyncAlternatingSampler as AsyncAlternatingSampler,
    AsyncAlternatingSamplerBase as AsyncAlternatingSamplerBase,
    AsyncCpuSampler as AsyncCpuSampler,
    AsyncGpuSampler as AsyncGpuSampler,
    AsyncGpuSamplerBase as AsyncGpuSamplerBase,
    AsyncNoOverlapAlternatingSampler as AsyncNoOverlapAlternatingSampler,
    AsyncParallelSamplerMixin as AsyncParallelSamplerMixin,
    AsyncSamplerBase as AsyncSamplerBase,
    AsyncSamplerMixin as AsyncSamplerMixin,
    AsyncSerialSampler as AsyncSerialSampler,
    CpuSampler as CpuSampler,
    GpuSampler as GpuSampler,
    GpuSamplerBase as GpuSamplerBase,
    NoOverlapAlternatingSampler as NoOverlapAlternatingSampler,
    ParallelSamplerBase as ParallelSamplerBase,
    RayBatchSampler as RayBatchSampler,
    SerialSampler as SerialSampler,
)
from headrace.samplers.timing import TimingReport as TimingReport
from headrace.samplers.traj_info import TrajInfo as TrajInfo
from headrace.samplers.workers.main import initialize_worker as initialize_worker, sampling_process as sampling_process
from headrace.samplers.workers.sampler_process import Sink as Sink
