"""The samplers, which differ in their layouts, and the base classes that group them."""

from __future__ import annotations

from typing_extensions import override

from headrace.errors import SamplerError
from headrace.processes.exclusive import exclusive
from headrace.processes.ray_session import loaded_ray
from headrace.processes.status import Status
from headrace.samplers.base import BaseSampler
from headrace.samplers.config import RayOptions, takes_options
from headrace.samplers.engines.asynchronous import AsynchronousEngine
from headrace.samplers.engines.ray import RayEngine
from headrace.samplers.layout import Layout
from headrace.samplers.traj_info import TrajInfo
from headrace.samplers.validate import checked_arguments
from headrace.samplers.workers.main import sampling_process
from headrace.samplers.workers.sampler_process import Sink

__all__ = [
    "AlternatingSampler",
    "AlternatingSamplerBase",
    "AsyncAlternatingSampler",
    "AsyncAlternatingSamplerBase",
    "AsyncCpuSampler",
    "AsyncGpuSampler",
    "AsyncGpuSamplerBase",
    "AsyncNoOverlapAlternatingSampler",
    "AsyncParallelSamplerMixin",
    "AsyncSamplerBase",
    "AsyncSamplerMixin",
    "AsyncSerialSampler",
    "CpuSampler",
    "GpuSampler",
    "GpuSamplerBase",
    "NoOverlapAlternatingSampler",
    "ParallelSamplerBase",
    "RayBatchSampler",
    "SerialSampler",
]


class SerialSampler(BaseSampler):
    """Runs environments and agent in the calling process: for debugging, cheap environments on one core, and reference.

    This sampler cannot detect a hanging environment: it hangs the caller. It ignores `n_workers`, `start_method` and
    the timeouts.
    """

    layout = Layout(processes=False)


class ParallelSamplerBase(BaseSampler):
    """Base of samplers with worker processes, which fill their columns of one shared batch."""


class CpuSampler(ParallelSamplerBase):
    """Runs environments and the agent in each worker: one synchronization per batch.

    This sampler is the fastest for small models on CPU cores. `n_workers` defaults to the number of usable cores.
    """

    layout = Layout(processes=True)


class GpuSamplerBase(ParallelSamplerBase):
    """Base of samplers whose workers step environments while an `ActionServer` in this process acts for all of them.

    The server runs on any torch device. The agent stays in this process, and workers do not load torch. `n_workers`
    defaults to the number of usable cores minus one, because the server keeps one core busy.
    """


class GpuSampler(GpuSamplerBase):
    """Steps all environments, then computes all actions in one forward pass.

    Use it for slow inference and fast environments, on a GPU or a CPU core of its own.
    """

    layout = Layout(processes=True, served=True)


class AlternatingSamplerBase(GpuSamplerBase):
    """Base of samplers whose workers have environments of two groups and step the groups in turn.

    Any agent works, including recurrent ones, because recurrent state belongs to columns. The groups and workers need
    not divide the batch evenly.
    """


class AlternatingSampler(AlternatingSamplerBase):
    """Computes actions for one group while the other steps, so neither the cores nor the device wait for each other."""

    layout = Layout(processes=True, served=True, groups=2)


class NoOverlapAlternatingSampler(AlternatingSamplerBase):
    """Never steps both groups at once: a group starts stepping only after the other has finished.

    Use it for environments that would slow each other down, such as two groups that share their cores.
    """

    layout = Layout(processes=True, served=True, groups=2, overlap=False)


class RayBatchSampler(BaseSampler):
    """Runs environments and the agent in Ray actors, on any machine of a cluster; otherwise like `CpuSampler`.

    The parameters are stored in Ray once per batch, and the workers' columns are copied into the batch. `n_workers` is
    the number of actors; it defaults to the CPUs of the cluster. `start_method` is ignored. An actor that died and is
    restarted (`RayActors.max_restarts`) makes new environments and collects its columns of the batch again; without
    restarts its death is an error.
    """

    layout = Layout(processes=True)

    @takes_options(RayOptions)
    def __init__(self, options: RayOptions) -> None:
        loaded_ray()
        self._construct(options)

    @override
    def _made_engine(self, status: Status) -> RayEngine:
        return RayEngine(type(self).__name__, self.layout, self._config, status)


class AsyncSamplerBase(ParallelSamplerBase):
    """Base of asynchronous samplers: a separate process collects up to `n_slots` − 1 batches ahead of the learner.

    The methods are those of every sampler. `obtain_samples(itr)` publishes the agent's parameters, commands the next
    batch (to be collected with these parameters into the slot that this call frees), and returns the batch that was
    commanded earlier. Batch n was therefore collected with the parameters of call n − (n_slots − 1), whichever process
    was faster; the batches commanded in the first call use the parameters of the first call. `samples.agent.version`
    records the version, and a run is reproducible. A batch that is commanded ahead gets the itr with which it will be
    requested: one more for each batch.

    Evaluations, `state()` and `call_envs()` run between batches, after the batches that were already commanded. With
    `eval_process=True` a separate process holds the evaluation environments and a copy of the agent: `begin_evaluation`
    sends it the parameters and returns, batches continue meanwhile, and `evaluation` returns the episodes. They are the
    same episodes that `evaluate_agent` would have returned at this point.
    """

    _engine: AsynchronousEngine

    #: rlpyt's name for `initialize` of an asynchronous sampler.
    async_initialize = BaseSampler.initialize

    @override
    def _made_engine(self, status: Status) -> AsynchronousEngine:
        return AsynchronousEngine(type(self).__name__, self.layout, self._config, status)

    def feed(self, sink: Sink) -> None:
        """Makes the sampler process pass every batch that it collects to `sink`, in order.

        Args:
            sink: receives the batches, for example a replay buffer.

        Raises:
            SamplerError: if `initialize` was called before.
        """
        if self._state != "new":
            raise SamplerError("feed() must be called before initialize(), which sends the sink to the sampler process")
        self._engine.sink = sink

    @exclusive
    def evaluate_agent(self, itr: int) -> list[TrajInfo]:
        """See `BaseSampler.evaluate_agent`."""
        self._require_none_begun()
        infos = super().evaluate_agent(itr)
        self._say_notes()
        return infos

    @property
    def evaluates_beside(self) -> bool:
        """Whether a separate process evaluates."""
        return self._engine.evaluates_beside

    @exclusive
    def begin_evaluation(self, itr: int) -> None:
        """Starts an evaluation of the agent's current parameters beside training.

        Call `evaluation` to collect its episodes before the next evaluation.

        Args:
            itr: number of the batch, for the agent's schedules.

        Raises:
            SamplerError: without `eval_process=True` and evaluation environments, or if the episodes of the previous
                evaluation were not collected.
        """
        self._require_open()
        if not self.evaluates_beside:
            raise SamplerError(
                "begin_evaluation() needs an evaluation process; pass eval_process=True and eval_n_envs to the sampler"
            )
        self._require_none_begun()
        checked_arguments(itr=itr)
        try:
            self._engine.begin_evaluation(itr, self._next_version(), self._n_evaluations)
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        self._n_evaluations += 1

    @exclusive
    def evaluation(self, wait: bool = True) -> list[TrajInfo] | None:
        """Returns the episodes of the evaluation that was begun, in the form of `evaluate_agent`.

        Args:
            wait: whether to wait until the evaluation ends.

        Returns:
            The `TrajInfo`s; None if `wait` is False and the evaluation is still running.

        Raises:
            SamplerError: if no evaluation was begun, or the evaluation failed.
        """
        self._require_open()
        if not self._engine.evaluating:
            raise SamplerError("evaluation() needs a running evaluation; call begin_evaluation(itr) first")
        try:
            if not wait and not self._engine.evaluation_ended():
                return None
            infos = list(self._traj_infos(self._engine.evaluation()))
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        self._say_notes()
        return infos

    def _require_none_begun(self) -> None:
        if self._engine.evaluating:
            raise SamplerError("the episodes of the last evaluation were not collected; call evaluation() first")

    def _say_notes(self) -> None:
        notes, self._engine.notes = self._engine.notes, []
        self._say(notes)


class AsyncSerialSampler(AsyncSamplerBase):
    """Runs a `SerialSampler` in a separate process: one core samples while the calling process learns."""

    layout = SerialSampler.layout.ahead


class AsyncCpuSampler(AsyncSamplerBase):
    """Runs a `CpuSampler` beside the learner.

    `n_workers` defaults to the number of usable cores minus one, because the learner keeps one core busy.
    """

    layout = CpuSampler.layout.ahead


class AsyncGpuSamplerBase(AsyncSamplerBase):
    """Base of asynchronous samplers with an action server, which runs in the sampler process beside the learner.

    `device` may name several devices, such as `["cuda:0", "cuda:1"]`: each gets a sampler process with its share of the
    columns and workers.
    """

    #: The function that the sampler process runs.
    action_server_process = staticmethod(sampling_process)


class AsyncGpuSampler(AsyncGpuSamplerBase):
    """Runs a `GpuSampler` beside the learner."""

    layout = GpuSampler.layout.ahead


class AsyncAlternatingSamplerBase(AsyncGpuSamplerBase):
    """Base of asynchronous samplers with two groups: one group steps while actions are computed for the other."""


class AsyncAlternatingSampler(AsyncAlternatingSamplerBase):
    """Runs an `AlternatingSampler` beside the learner."""

    layout = AlternatingSampler.layout.ahead


class AsyncNoOverlapAlternatingSampler(AsyncAlternatingSamplerBase):
    """Runs a `NoOverlapAlternatingSampler` beside the learner."""

    layout = NoOverlapAlternatingSampler.layout.ahead


#: rlpyt builds asynchronous samplers from mixins; here both names refer to the base of all asynchronous samplers.
AsyncSamplerMixin = AsyncSamplerBase
AsyncParallelSamplerMixin = AsyncSamplerBase
