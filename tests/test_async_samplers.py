"""Asynchronous samplers: their batches, how far they collect ahead, and how they fail."""

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.buffers.samples import Samples, SlotSpec
from headrace.buffers.shared import shared
from headrace.buffers.tree import tree_leaves, tree_paths
from headrace.errors import AgentFailed, EnvFailed, SamplerClosed, SamplerError, SinkFailed, WorkerCrashed, WorkerHung
from headrace.samplers import (
    AlternatingSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    SerialSampler,
)
from headrace.samplers.presets import (
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncNoOverlapAlternatingSampler,
    AsyncSamplerBase,
    AsyncSerialSampler,
)
from tests.faulty import BAD_ENV, SEED, FaultyEnv
from tests.leftovers import DEADLINE, all_gone, descriptors
from tests.walk import Walk

ASYNC: list[type[AsyncSamplerBase]] = [
    AsyncSerialSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncAlternatingSampler,
    AsyncNoOverlapAlternatingSampler,
]
SYNCHRONOUS: list[type[BaseSampler]] = [
    SerialSampler,
    CpuSampler,
    GpuSampler,
    AlternatingSampler,
    NoOverlapAlternatingSampler,
]


@pytest.mark.parametrize(("cls", "twin"), [*zip(SYNCHRONOUS, ASYNC, strict=True)])
def test_sampler_process_runs_the_layout_of_the_synchronous_sampler(
    cls: type[BaseSampler], twin: type[BaseSampler]
) -> None:
    assert twin.layout.asynchronous
    assert twin.layout.inner == cls.layout


slow = partial(pytest.param, marks=pytest.mark.slow)
#: Two of them always, and all in the long suite.
SOME = [AsyncAlternatingSampler, AsyncCpuSampler, *map(slow, (AsyncSerialSampler, AsyncGpuSampler, ASYNC[-1]))]
#: For what the processes of the samplers have in common.
ONE = [AsyncCpuSampler, *(slow(cls) for cls in ASYNC if cls is not AsyncCpuSampler)]
T, B = 12, 5
SETTINGS: dict[str, Any] = {"batch_T": T, "batch_B": B, "eval_n_envs": 3, "deterministic": True, "start_method": "fork"}


def sampler_of(cls: type[BaseSampler], **kwargs: Any) -> BaseSampler:
    return cls(Walk, **{**SETTINGS, "n_workers": 2, **kwargs})


def learn(agent: Agent) -> None:
    """Changes the parameters of the agent."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.sin(37 * parameter))


def asynchronous(cls: type[BaseSampler], make: Callable[[], Agent], n_itr: int, **kwargs: Any) -> list[Any]:
    """Batches with their statistics, the agent learning between them, and an evaluation after the third."""
    found: list[Any] = []
    agent = make()
    with sampler_of(cls, **kwargs).initialize(agent, seed=5, bootstrap_value=True) as sampler:
        for itr in range(n_itr):
            samples, infos = sampler.obtain_samples(itr)
            found.append((samples.copy(), [vars(info) for info in infos]))
            learn(agent)
            if itr == 2:
                found.append([vars(info) for info in sampler.evaluate_agent(itr)])
    return found


def with_lag(lag: int, make: Callable[[], Agent], n_itr: int, **kwargs: Any) -> list[Any]:
    """The same from a sampler in this process whose agent is always `lag` batches behind, but for evaluations."""
    found: list[Any] = []
    agent, ahead = make(), make()
    with sampler_of(SerialSampler, **kwargs).initialize(agent, seed=5, bootstrap_value=True) as sampler:
        ahead.initialize(agent.spaces, seed=5)  # type: ignore[arg-type]
        versions = []
        for itr in range(n_itr):
            versions.append([tensor.clone() for tensor in ahead.acting_state()])
            put(agent, versions[max(0, itr - lag)])
            samples, infos = sampler.obtain_samples(itr)
            found.append((samples.copy(), [vars(info) for info in infos]))
            learn(ahead)
            if itr == 2:
                put(agent, ahead.acting_state())
                found.append([vars(info) for info in sampler.evaluate_agent(itr)])
    return found


def put(agent: Agent, state: list[torch.Tensor]) -> None:
    for to, value in zip(agent.acting_state(), state, strict=True):
        to.copy_(value)


def differences(ours: Samples, theirs: Samples) -> list[str]:
    pairs = zip(tree_paths(ours), tree_paths(theirs), strict=True)
    return [name for (name, mine), (_, other) in pairs if not torch.equal(mine, other) and "version" not in name]


@pytest.mark.parametrize(
    ("cls", "make", "reset_mode", "n_slots", "start_method"),
    [
        (AsyncSerialSampler, CategoricalPgAgent, "mid_batch", 2, "fork"),
        (AsyncCpuSampler, RecurrentCategoricalPgAgent, "wait", 3, "fork"),
        (AsyncAlternatingSampler, RecurrentCategoricalPgAgent, "mid_batch", 4, "fork"),
        slow(AsyncCpuSampler, RecurrentCategoricalPgAgent, "mid_batch", 2, "fork"),
        slow(AsyncGpuSampler, CategoricalPgAgent, "wait", 2, "fork"),
        slow(AsyncAlternatingSampler, RecurrentCategoricalPgAgent, "wait", 2, "fork"),
        slow(AsyncNoOverlapAlternatingSampler, CategoricalPgAgent, "mid_batch", 2, "fork"),
        slow(AsyncCpuSampler, CategoricalPgAgent, "mid_batch", 3, "fork"),
        slow(AsyncGpuSampler, RecurrentCategoricalPgAgent, "mid_batch", 2, "forkserver"),
        slow(AsyncCpuSampler, CategoricalPgAgent, "wait", 3, "spawn"),
    ],
)
def test_batches_equal_those_of_the_synchronous_sampler_with_a_lag(
    cls: type[BaseSampler], make: Callable[[], Agent], reset_mode: str, n_slots: int, start_method: str
) -> None:
    n_itr = 6
    ours = asynchronous(cls, make, n_itr, reset_mode=reset_mode, n_slots=n_slots, start_method=start_method)
    theirs = with_lag(n_slots - 1, make, n_itr, reset_mode=reset_mode)
    assert len(ours) == len(theirs) == n_itr + 1
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, list):
            assert mine == other
            assert len(mine) == 3
        else:
            assert differences(mine[0], other[0]) == []
            assert mine[1] == other[1]
    versions = [set(batch[0].agent.version.unique().tolist()) for batch in ours if isinstance(batch, tuple)]
    numbers = [0, 1, 2, 4, 5, 6]  # 3 evaluated
    assert versions == [{numbers[max(0, itr - n_slots + 1)]} for itr in range(n_itr)]


class ItrShown(CategoricalPgAgent):
    """Records the itr it was last told."""

    def sample_mode(self, itr: int) -> None:
        super().sample_mode(itr)
        self._itr = itr

    def step(self, inputs: Any, state: Any) -> Any:
        step = super().step(inputs, state)
        step.agent_info = {"itr": torch.full(inputs.is_first.shape, self._itr)}
        return step


@pytest.mark.parametrize("cls", [AsyncCpuSampler, slow(AsyncSerialSampler), slow(AsyncAlternatingSampler)])
def test_batch_has_the_itr_with_which_it_is_requested(cls: type[BaseSampler]) -> None:
    with sampler_of(cls, n_slots=3).initialize(ItrShown(), seed=0) as sampler:
        for itr in range(40, 46):
            samples, _ = sampler.obtain_samples(itr)
            assert samples.agent.agent_info["itr"].unique().tolist() == [itr]


class Counted(Walk):
    """Adds a byte to a file for each step."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def step(self, action: np.int64) -> Any:
        with open(self._path, "ab") as file:
            file.write(b".")
        return super().step(action)


def stands_still(path: Path) -> int:
    """Returns the size of the file once it no longer grows."""
    deadline, size, since = time.monotonic() + DEADLINE, -1, time.monotonic()
    while time.monotonic() < deadline:
        now = path.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > 0.5:
            return size
        time.sleep(0.02)
    raise AssertionError(f"still growing: {size}")


@pytest.mark.parametrize("n_slots", [3, slow(2), slow(4)])
def test_sampler_collects_n_slots_minus_1_batches_ahead(tmp_path: Path, n_slots: int) -> None:
    path = tmp_path / "steps"
    sampler = AsyncCpuSampler(
        Counted, {"path": str(path)}, n_slots=n_slots, max_decorrelation_steps=0, **{**SETTINGS, "eval_n_envs": 0}
    )
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        for itr in range(2):
            samples, _ = sampler.obtain_samples(itr)
            kept = samples.copy()
            assert stands_still(path) == (itr + n_slots) * T * B
            assert differences(samples, kept) == [], "what the caller has was written again"


def test_returning_a_batch_copies_nothing() -> None:
    with sampler_of(AsyncCpuSampler).initialize(CategoricalPgAgent(), seed=0) as sampler:
        assert sampler._slots is not None
        places = [
            {sampler.obtain_samples(itr)[0].env.observation.data_ptr() for itr in range(start, 8, 2)}
            for start in (0, 1)
        ]
        own = [{leaf.ctypes.data for leaf in tree_leaves(slot.observation)} for slot in sampler._slots.all]
        assert places[0] | places[1] == own[0] | own[1]


@pytest.mark.usefixtures("copies_tried_here")
def test_call_envs_and_state_run_between_batches() -> None:
    agent = CategoricalPgAgent()
    sampler = sampler_of(AsyncCpuSampler).initialize(agent, seed=3, resumable=True)
    with sampler:
        first = [sampler.obtain_samples(itr)[0].copy() for itr in range(3)]
        assert len(sampler.call_envs("np_random_seed")) == B
        state = sampler.state()
        assert state.batches == 4, "three were asked for, one more is collected"
        assert not state.why_not
        ahead = sampler.obtain_samples(3)[0].copy()
        fifth = sampler.obtain_samples(4)[0].copy()
    assert len(first) == 3
    assert not torch.equal(ahead.env.reward, fifth.env.reward)
    with sampler_of(AsyncCpuSampler).initialize(agent, seed=3, resume=state) as again:
        assert differences(again.obtain_samples(4)[0], fifth) == []


@pytest.mark.parametrize("cls", [AsyncSerialSampler, slow(AsyncAlternatingSampler)])
def test_timing_starts_at_the_first_command(cls: type[BaseSampler]) -> None:
    with sampler_of(cls).initialize(CategoricalPgAgent(), seed=0) as sampler:
        assert sampler.timing().steps == 0
        sampler.obtain_samples(0)
        time.sleep(0.3)
        sampler.obtain_samples(1)
        report = sampler.timing()
    assert report.steps >= 2 * T * B
    assert report.seconds > 0.3  # as long as it slept
    assert report.idle > 0


def test_wrong_settings_are_refused_by_the_constructor() -> None:
    with pytest.raises(ValueError, match="n_slots of AsyncCpuSampler must be at least 2, got 1"):
        sampler_of(AsyncCpuSampler, n_slots=1)
    with pytest.raises(ValueError, match="samples_device"):
        sampler_of(AsyncGpuSampler, samples_device="cpu")
    with pytest.raises(ValueError, match="n_slots must be 1 with samples_device"):
        sampler_of(SerialSampler, n_slots=2, samples_device="cpu")
    with pytest.raises(TypeError, match="n_slots must be a whole number"):
        sampler_of(SerialSampler, n_slots=1.5)


def test_views_of_a_synchronous_sampler_stay_valid_for_n_slots_calls() -> None:
    with sampler_of(SerialSampler, n_slots=3).initialize(CategoricalPgAgent(), seed=0) as sampler:
        batches = [sampler.obtain_samples(itr)[0] for itr in range(2)]
        kept = [batch.copy() for batch in batches]
        sampler.obtain_samples(2)
        assert [differences(batch, copy) for batch, copy in zip(batches, kept, strict=True)] == [[], []]
        sampler.obtain_samples(3)
        assert differences(batches[0], kept[0]) != []


@pytest.mark.parametrize(
    ("cls", "n_workers", "make", "n_devices"),
    [
        (AsyncGpuSampler, 2, CategoricalPgAgent, 2),
        slow(AsyncAlternatingSampler, 3, RecurrentCategoricalPgAgent, 3),
        slow(AsyncGpuSampler, 2, CategoricalPgAgent, 3),
        slow(AsyncGpuSampler, 1, RecurrentCategoricalPgAgent, 2),
        slow(AsyncGpuSampler, 1, RecurrentCategoricalPgAgent, 3),
        slow(AsyncAlternatingSampler, 3, RecurrentCategoricalPgAgent, 2),
    ],
)
def test_columns_are_split_over_several_devices(
    cls: type[BaseSampler], n_workers: int, make: Callable[[], Agent], n_devices: int
) -> None:
    ours = asynchronous(cls, make, 4, n_workers=n_workers, device=["cpu"] * n_devices)
    theirs = with_lag(1, make, 4)
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, list):
            assert mine == other
        else:
            assert differences(mine[0], other[0]) == []
            assert mine[1] == other[1]
    opened: Any = sampler_of(cls, n_workers=n_workers, device=["cpu"] * n_devices).initialize(make(), seed=0)
    with opened as sampler:
        assert len(sampler._engine.workers) == n_devices
        assert len(sampler.call_envs("np_random_seed")) == B


def test_dead_shard_is_named_in_the_error() -> None:
    sampler: Any = sampler_of(AsyncGpuSampler, device=["cpu", "cpu"]).initialize(CategoricalPgAgent(), seed=0)
    os.kill(sampler._engine.workers.pids[1], signal.SIGKILL)
    with pytest.raises(WorkerCrashed, match="sampler process 1 was killed by SIGKILL"):
        sample_for_long(sampler, random.Random(0))
    sampler.shutdown()


def test_devices_are_checked() -> None:
    with pytest.raises(ValueError, match="AsyncCpuSampler acts on one device"):
        sampler_of(AsyncCpuSampler, device=["cpu", "cpu"])
    with pytest.raises(ValueError, match="GpuSampler acts on one device"):
        sampler_of(GpuSampler, device=["cpu", "cpu"])
    with pytest.raises(ValueError, match="at least one entry"):
        sampler_of(AsyncGpuSampler, device=[])
    sampler = AsyncGpuSampler(Walk, device=["cpu", "cpu"], **SETTINGS)
    sampler.feed(RewardSink())
    with pytest.raises(SamplerError, match="needs a single sampler process"):
        sampler.initialize(CategoricalPgAgent(), seed=0)


class RewardSink:
    """Keeps the sum of rewards of each batch, and how many episodes ended in it."""

    N = 64

    def open(self, spec: SlotSpec) -> int:
        self.arena, self.kept = shared(self._build)
        assert self.arena.fd is not None
        return os.dup(self.arena.fd)

    def attach(self, spec: SlotSpec, fd: int) -> Callable[[Samples], None]:
        arena, kept = shared(self._build, fd)
        arena.close_fd()

        def append(samples: Samples) -> None:
            place = int(kept[0, 0]) + 1
            kept[place] = samples.env.reward.sum(), len(samples.final)
            kept[0, 0] = place

        return append

    def __reduce__(self) -> Any:
        return RewardSink, ()

    def _build(self, allocate: Any) -> np.ndarray:
        kept: np.ndarray = allocate((self.N, 2), np.dtype(np.float64))
        return kept


@pytest.mark.parametrize("cls", SOME)
@pytest.mark.parametrize("start_method", ["fork", slow("forkserver")])
def test_sink_gets_every_batch_before_the_learner(cls: type[AsyncSamplerBase], start_method: str) -> None:
    sink = RewardSink()
    sampler = cls(Walk, n_workers=2, **{**SETTINGS, "start_method": start_method})
    sampler.feed(sink)
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        for itr in range(5):
            samples, _ = sampler.obtain_samples(itr)
            assert sink.kept[0, 0] >= itr + 1
            assert sink.kept[itr + 1].tolist() == [float(samples.env.reward.sum()), len(samples.final)]
        with pytest.raises(SamplerError, match="feed\\(\\) must be called before initialize"):
            sampler.feed(sink)
    sink.arena.close_fd()
    assert sink.kept[0, 0] == 6, "shutdown loses no batch"


def batches(sampler: BaseSampler, n: int) -> None:
    if sampler._state == "new":
        sampler.initialize(CategoricalPgAgent(), seed=0)
    for itr in range(n):
        sampler.obtain_samples(itr)


class BrokenSink(RewardSink):
    def __init__(self, when: str = "append") -> None:
        self.when = when

    def attach(self, spec: SlotSpec, fd: int) -> Callable[[Samples], None]:
        super().attach(spec, fd)

        def append(samples: Samples | None) -> None:
            raise ValueError("the replay is full")

        if self.when == "attach":
            append(None)
        return append

    def __reduce__(self) -> Any:
        return BrokenSink, (self.when,)


@pytest.mark.parametrize(
    ("cls", "when"),
    [
        (AsyncSerialSampler, "append"),
        (AsyncCpuSampler, "attach"),
        slow(AsyncSerialSampler, "attach"),
        slow(AsyncCpuSampler, "append"),
    ],
)
def test_failing_sink_raises_in_the_learner(cls: type[AsyncSamplerBase], when: str) -> None:
    sink = BrokenSink(when)
    sampler = cls(Walk, **SETTINGS)
    sampler.feed(sink)
    with pytest.raises(SinkFailed, match="raised ValueError: the replay is full") as caught:
        batches(sampler, 1)
    assert caught.value.where is not None
    assert caught.value.where.env_id is None
    assert caught.value.where.phase == "passing a batch to the sink"
    assert "in append" in caught.value.traceback_text
    sampler.shutdown()
    sink.arena.close_fd()


# ---- failures ----


def inner_workers(sampler: Any) -> list[psutil.Process]:
    """The sampler process first, then its workers."""
    processes = sampler._engine.workers._members.processes
    process = psutil.Process(processes[0].pid)
    return [process, *process.children(recursive=True)]


def faulty(
    cls: type[BaseSampler], fault: str, phase: str, timeout: float = DEADLINE, n_slots: int | None = None
) -> BaseSampler:
    return cls(
        FaultyEnv,
        {"fault": fault, "phase": phase},
        batch_T=8,
        batch_B=4,
        n_workers=2,
        max_decorrelation_steps=0,
        eval_n_envs=4,
        timeout=timeout,
        start_timeout=DEADLINE,
        start_method="fork",
        n_slots=n_slots,
    )


def use(sampler: BaseSampler) -> None:
    sampler.initialize(CategoricalPgAgent(), seed=SEED)
    for itr in range(3):
        sampler.obtain_samples(itr)
        sampler.evaluate_agent(itr)


@pytest.mark.parametrize("cls", SOME)
@pytest.mark.parametrize("phase", ["step", "evaluation", slow("reset")])
def test_failing_environment_is_named_across_two_processes(cls: type[BaseSampler], phase: str) -> None:
    sampler = faulty(cls, "raise", phase)
    with pytest.raises(EnvFailed, match="the simulator is unhappy") as caught:
        use(sampler)
    where = caught.value.where
    assert where is not None
    assert where.env_id == BAD_ENV
    if cls is AsyncCpuSampler:
        assert where.worker == 1, "the worker's number, not that of the sampler process"
    if phase == "step":
        assert where.step == 6
    assert "faulty.py" in caught.value.traceback_text
    with pytest.raises(SamplerClosed):
        sampler.obtain_samples(9)
    sampler.shutdown()


@pytest.mark.parametrize("rank", [1, slow(0)])
def test_process_killed_while_idle_is_reported_as_waiting(rank: int) -> None:
    """The error must not say that it was constructing the environment, which it did long before."""
    sampler = AsyncCpuSampler(Walk, **SETTINGS, eval_process=True)
    batches(sampler, 1)
    assert sampler._engine.workers._members.pipes[0].poll(20), "the next batch is collected"
    psutil.Process(sampler._engine.workers.pids[rank]).kill()
    assert connection.wait([sampler._engine.workers._members.processes[rank].sentinel], 20)
    with pytest.raises(WorkerCrashed) as caught:
        batches(sampler, 1)
    assert caught.value.where is not None
    assert (caught.value.where.phase, caught.value.where.env_id) == ("waiting for a command", None)


@pytest.mark.parametrize("cls", [AsyncCpuSampler, slow(AsyncGpuSampler)])
@pytest.mark.parametrize(("fault", "words"), [("SIGKILL", "killed by SIGKILL"), slow("_exit", "exit code 3")])
def test_dead_worker_is_named_in_the_error(cls: type[BaseSampler], fault: str, words: str) -> None:
    sampler = faulty(cls, fault, "step")
    with pytest.raises(WorkerCrashed, match=words) as caught:
        use(sampler)
    assert caught.value.where is not None
    assert (caught.value.where.worker, caught.value.where.env_id) == (1, BAD_ENV)
    sampler.shutdown()


@pytest.mark.parametrize("cls", ONE)
@pytest.mark.parametrize("fault", ["python loop", slow("SIGSTOP")])
def test_hanging_worker_is_named_in_the_error(cls: type[BaseSampler], fault: str) -> None:
    sampler = faulty(cls, fault, "step", timeout=1.5)
    with pytest.raises(WorkerHung, match=r"made no progress for 1\.5 s") as caught:
        use(sampler)
    assert caught.value.where is not None
    assert caught.value.where.env_id == BAD_ENV
    sampler.shutdown()


@pytest.mark.parametrize("cls", [AsyncCpuSampler, slow(AsyncSerialSampler), slow(AsyncGpuSampler)])
def test_slow_environments_do_not_make_the_sampler_process_look_hung(cls: type[BaseSampler]) -> None:
    """A batch takes longer than the timeout, a row an eighth of it."""
    sampler = cls(Slow, batch_T=10, batch_B=2, n_workers=1, timeout=1.0, max_decorrelation_steps=0)
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        sampler.obtain_samples(0)


class Slow(Walk):
    def step(self, action: np.int64) -> Any:
        time.sleep(0.06)
        return super().step(action)


class FailsWhenTold(CategoricalPgAgent):
    def step(self, inputs: Any, state: Any) -> Any:
        if self.model.training is False and inputs.prev_reward.abs().sum() > 0:
            raise RuntimeError("the agent is tired")
        return super().step(inputs, state)


@pytest.mark.parametrize("cls", ONE)
def test_failing_agent_in_the_sampler_process_raises_agent_failed(cls: type[BaseSampler]) -> None:
    sampler = sampler_of(cls)
    sampler.initialize(FailsWhenTold(), seed=0)
    with pytest.raises(AgentFailed, match="the agent is tired"):
        sampler.obtain_samples(0)
    sampler.shutdown()


def sample_for_long(sampler: BaseSampler, rng: random.Random) -> None:
    deadline, itr = time.monotonic() + DEADLINE, 0
    while time.monotonic() < deadline:
        sampler.obtain_samples(itr)
        itr += 1
        if rng.random() < 0.2:
            sampler.evaluate_agent(itr)


@pytest.mark.parametrize(
    ("cls", "n_kills"), [(AsyncCpuSampler, 2), (AsyncAlternatingSampler, 1), *(slow(cls, 10) for cls in ASYNC)]
)
def test_kills_at_random_moments_are_reported_and_leave_nothing(cls: type[BaseSampler], n_kills: int) -> None:
    before = descriptors()
    for seed in range(n_kills):
        rng = random.Random(seed)
        sampler = cls(Walk, batch_T=rng.choice([2, 16]), batch_B=5, n_workers=2, eval_n_envs=2, start_method="fork")
        sampler.initialize(CategoricalPgAgent(), seed=seed)
        processes = inner_workers(sampler)
        victim = rng.randrange(len(processes))
        assassin = threading.Timer(rng.random() * 0.1, processes[victim].kill)
        assassin.start()
        with pytest.raises(WorkerCrashed, match="killed by SIGKILL") as caught:
            sample_for_long(sampler, rng)
        assassin.join(10)
        assert ("sampler process" in str(caught.value)) == (victim == 0)
        assert all_gone(processes)
        sampler.shutdown()
        del caught, sampler
    assert descriptors() <= before


def test_stopped_sampler_process_is_reported_as_hung() -> None:
    sampler = sampler_of(AsyncCpuSampler, timeout=1.5)
    sampler.initialize(CategoricalPgAgent(), seed=0)
    sampler.obtain_samples(0)
    processes = inner_workers(sampler)
    processes[0].send_signal(signal.SIGSTOP)
    with pytest.raises(WorkerHung, match=r"sampler process 0 made no progress for 1\.5 s \(it is stopped"):
        sample_for_long(sampler, random.Random(0))
    assert all_gone(processes)
    sampler.shutdown()


def test_processes_of_a_garbage_collected_sampler_end() -> None:
    sampler = sampler_of(AsyncGpuSampler).initialize(CategoricalPgAgent(), seed=0)
    processes = inner_workers(sampler)
    assert len(processes) == 3
    del sampler
    gc.collect()
    assert all_gone(processes)


class ClosesLoudly(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self, path: str) -> None:
        super().__init__(Walk())
        self._path = path

    def close(self) -> None:
        with open(self._path, "ab") as file:
            file.write(b"x")
        super().close()


@pytest.mark.parametrize("cls", SOME)
def test_shutdown_closes_every_environment_of_an_async_sampler(cls: type[BaseSampler], tmp_path: Path) -> None:
    path = tmp_path / "closed"
    sampler = cls(ClosesLoudly, {"path": str(path)}, batch_T=4, batch_B=5, n_workers=2, eval_n_envs=2)
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        sampler.obtain_samples(0)
    assert path.stat().st_size == 7


@pytest.mark.parametrize("n_slots", [3, slow(2)])
def test_error_in_close_is_raised_by_shutdown_after_pending_batches(n_slots: int) -> None:
    sampler = faulty(AsyncCpuSampler, "raise", "close", n_slots=n_slots)
    sampler.initialize(CategoricalPgAgent(), seed=SEED)
    sampler.obtain_samples(0)
    with pytest.raises(EnvFailed, match="the simulator is unhappy"):
        sampler.shutdown()
