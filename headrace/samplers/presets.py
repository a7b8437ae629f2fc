"""The ten samplers: one face, ten layouts. And the bases by which they are told apart."""

from __future__ import annotations

from typing_extensions import override

from headrace.errors import SamplerError
from headrace.processes.status import Status
from headrace.samplers.base import BaseSampler
from headrace.samplers.engines.asynchronous import AsynchronousEngine
from headrace.samplers.exclusive import exclusive
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
    "SerialSampler",
]


class SerialSampler(BaseSampler):
    """Environments and agent in this process: for debugging, for cheap environments on one core, and as the reference.

    A hanging environment cannot be noticed here: it hangs the caller. `n_workers`, `start_method` and the timeouts mean
    nothing to this sampler.
    """

    layout = Layout(processes=False)


class ParallelSamplerBase(BaseSampler):
    """Samplers with worker processes, which fill their columns of one shared batch."""


class CpuSampler(ParallelSamplerBase):
    """Each worker steps its environments and computes their actions: one synchronisation per batch.

    The fastest for small models on CPU cores. `n_workers` defaults to the usable cores.
    """

    layout = Layout(processes=True)


class GpuSamplerBase(ParallelSamplerBase):
    """Workers step environments, an `ActionServer` in this process acts for all of them at once, on any torch device.

    The agent never leaves this process, and workers do not load torch. `n_workers` defaults to the usable cores but
    one, which the server keeps busy.
    """


class GpuSampler(GpuSamplerBase):
    """All environments step, then one inference chooses all actions: for slow inference and fast environments, on a GPU
    or a CPU core of its own.
    """

    layout = Layout(processes=True, served=True)


class AlternatingSamplerBase(GpuSamplerBase):
    """Each worker has environments of two groups and steps them in turn.

    Any agent will do, recurrent ones too: states belong to rows. Nothing need be even.
    """


class AlternatingSampler(AlternatingSamplerBase):
    """The server computes for one group while the other steps, so neither cores nor device wait for each other."""

    layout = Layout(processes=True, served=True, groups=2)


class NoOverlapAlternatingSampler(AlternatingSamplerBase):
    """The two groups never step at once: a group may step when the other has come back.

    For environments that would get in each other's way, such as two groups that share their cores.
    """

    layout = Layout(processes=True, served=True, groups=2, overlap=False)


class AsyncSamplerBase(ParallelSamplerBase):
    """Collects while the caller learns: a process of its own runs a sampler that is up to `n_slots` − 1 batches ahead.

    The same calls as of every sampler. `obtain_samples(itr)` publishes the agent's parameters, commands the next batch,
    to be collected with them into the slot that is given back by this call, and returns the batch that was commanded
    before. So batch n was collected with the parameters of call n − (n_slots − 1), whichever process was faster (the
    first call's batches with those of the first call), `samples.agent.version` records it, and a run is reproducible.
    A batch that is commanded ahead is told the itr it will be asked for with: one more for each batch.

    Evaluations, `state()` and `call_envs()` take place between batches, after those that were commanded. With
    `eval_process=True` a process of its own has the evaluation environments and an agent: `begin_evaluation` sends it
    the parameters and returns, batches go on, `evaluation` has the episodes. They are those that `evaluate_agent` would
    have had at this place.
    """

    _engine: AsynchronousEngine

    #: rlpyt's name for `initialize` here.
    async_initialize = BaseSampler.initialize

    @override
    def _made_engine(self, status: Status) -> AsynchronousEngine:
        return AsynchronousEngine(type(self).__name__, self.layout, self._config, status)

    def feed(self, sink: Sink) -> None:
        """Has the sampler process give every batch that it collects to `sink`, in their order.

        Raises:
            SamplerError: after `initialize`.
        """
        if self._state != "new":
            raise SamplerError("feed() comes before initialize(): the sampler process is told where to put its batches")
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
        """Whether evaluation has a process of its own."""
        return self._engine.evaluates_beside

    @exclusive
    def begin_evaluation(self, itr: int) -> None:
        """Has the agent as it is now evaluated beside training; `evaluation` is to be called before the next one.

        Raises:
            SamplerError: without `eval_process=True` and evaluation environments.
        """
        self._require_open()
        if not self.evaluates_beside:
            raise SamplerError(
                "begin_evaluation() needs a process for it; give the sampler eval_process and eval_n_envs"
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
        """The episodes of the evaluation that was begun, as `evaluate_agent` gives them.

        Args:
            wait: for its end; else None is returned while it lasts.

        Raises:
            SamplerError: if none was begun; and what ended it.
        """
        self._require_open()
        if not self._engine.evaluating:
            raise SamplerError("evaluation() has nothing to wait for; call begin_evaluation(itr) first")
        try:
            if not wait and not self._engine.evaluation_ended():
                return None
            infos = self._traj_infos(self._engine.evaluation())
        except BaseException as error:
            raise self._abandon(error) from error.__cause__
        self._say_notes()
        return infos

    def _require_none_begun(self) -> None:
        if self._engine.evaluating:
            raise SamplerError("an evaluation was begun before; take its episodes with evaluation() first")

    def _say_notes(self) -> None:
        notes, self._engine.notes = self._engine.notes, []
        self._say(notes)


class AsyncSerialSampler(AsyncSamplerBase):
    """`SerialSampler` in a process of its own: one core samples, this one learns."""

    layout = SerialSampler.layout.ahead


class AsyncCpuSampler(AsyncSamplerBase):
    """`CpuSampler` beside the learner, which keeps a core busy: `n_workers` defaults to the usable ones but that."""

    layout = CpuSampler.layout.ahead


class AsyncGpuSamplerBase(AsyncSamplerBase):
    """Samplers with an action server, which serves in the sampler process, beside the learner.

    device may be several, `["cuda:0", "cuda:1"]`: a sampler process for each, with its share of columns and workers.
    """

    #: What runs there.
    action_server_process = staticmethod(sampling_process)


class AsyncGpuSampler(AsyncGpuSamplerBase):
    """`GpuSampler` beside the learner."""

    layout = GpuSampler.layout.ahead


class AsyncAlternatingSamplerBase(AsyncGpuSamplerBase):
    """Two groups of environments, of which one steps while actions are computed for the other; beside the learner."""


class AsyncAlternatingSampler(AsyncAlternatingSamplerBase):
    """`AlternatingSampler` beside the learner."""

    layout = AlternatingSampler.layout.ahead


class AsyncNoOverlapAlternatingSampler(AsyncAlternatingSamplerBase):
    """`NoOverlapAlternatingSampler` beside the learner."""

    layout = NoOverlapAlternatingSampler.layout.ahead


#: rlpyt builds asynchronous samplers from mixins; here these are the base of all of them.
AsyncSamplerMixin = AsyncSamplerBase
AsyncParallelSamplerMixin = AsyncSamplerBase
