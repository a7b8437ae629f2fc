"""Workers in Ray actors, on a Ray of two CPUs that the tests start: batches, failures, restarts, and what is left."""

import logging
import os
import pickle
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.tree import tree_leaves
from headrace.errors import EnvContractError, EnvFailed, SamplerClosed, SamplerError, WorkerCrashed, WorkerHung
from headrace.processes.affinity import Affinity
from headrace.processes.ray_group import RayGroup
from headrace.processes.ray_session import RayActors, RaySession
from headrace.samplers import BaseSampler, CpuSampler, RayBatchSampler, SerialSampler
from tests.faulty import BAD_ENV
from tests.group_targets import greeting_echo, nothing
from tests.leftovers import DEADLINE, all_gone, until
from tests.quick import quick_and_slow
from tests.ray_here import NEEDS_RAY, SMALL, require_no_growth, small_ray
from tests.test_faults import HANGS, INVALID_RESULTS, RAISES, WORDS, sampler_of, use
from tests.test_same_batches import assert_equal, reference, run
from tests.walk import Named, Walk, Wide

pytestmark = [pytest.mark.programs, NEEDS_RAY]

#: Three actors on two CPUs.
HALF = RayActors(num_cpus=0.5)
#: The groups of a test.
GROUPS: list[RayGroup] = []


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[Any]:
    """The Ray session of the test program, which samplers borrow."""
    with small_ray() as module:
        yield module


@pytest.fixture(autouse=True)
def session_is_borrowed(ray: Any) -> Iterator[None]:
    """Fails a test after which the session that existed before is gone, or an actor still holds its CPUs."""
    yield
    while GROUPS:  # a test that failed has not stopped its group
        GROUPS.pop().kill()
    assert ray.is_initialized()
    assert until(lambda: ray.available_resources().get("CPU") == SMALL.num_cpus)


def group_of(n: int = 2, target: Any = greeting_echo, **options: Any) -> RayGroup:
    values: dict[str, Any] = {"actors": HALF, "prologue": nothing, "timeout": DEADLINE, "start_timeout": DEADLINE}
    GROUPS.append(
        RayGroup(RaySession(SMALL), target, [f"argument {rank}" for rank in range(n)], **{**values, **options})
    )
    return GROUPS[-1]


def test_commands_reach_the_workers_that_they_are_for_and_large_arrays_are_views() -> None:
    group = group_of(3)
    assert group.replies() == ["ready"] * 3
    group.send("all")
    first = group.replies()
    assert [(argument, command) for argument, command, *_ in first] == [(f"argument {n}", "all") for n in range(3)]
    assert [pid for _, _, pid, _ in first] == group.pids
    assert not any(torch_is_loaded for *_, torch_is_loaded in first)  # none that needs it has been called
    group.send_to(2, "one")
    group.send("some", [0, 1])
    assert [command for _, command, *_ in group.replies(ranks=[2, 0])] == ["one", "some"]
    small, large = np.arange(10), np.arange(100_000)
    assert [command for _, command, *_ in group.replies(ranks=[1])] == ["some"]
    group.send((small, large))
    (_, (one, two), *_), *_ = group.replies()
    np.testing.assert_array_equal(one, small)
    np.testing.assert_array_equal(two, large)
    assert (one.flags.writeable, two.flags.writeable) == (True, False)
    group.stop()
    group.stop()


def test_a_large_message_is_stored_once_for_all_workers(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[Any] = []
    put = ray.put

    def counted(value: Any) -> Any:
        stored.append(value)
        return put(value)

    monkeypatch.setattr(ray, "put", counted)
    group = group_of(3)
    group.replies()
    group.send(np.zeros(10**6))
    group.replies()
    group.send("small")
    group.replies()
    group.stop()
    assert len(stored) == 1


@pytest.mark.parametrize("reset_mode", ["mid_batch", pytest.param("wait", marks=pytest.mark.slow)])
def test_batches_and_evaluations_equal_those_of_the_serial_sampler(reset_mode: str) -> None:
    found = run(RayBatchSampler, reset_mode=reset_mode, deterministic=True, n_workers=3, actors=HALF)
    assert_equal(found, reference(reset_mode))


def test_state_of_the_environments_continues_in_another_sampler(copies_tried_here: None) -> None:
    def batches(first: type[BaseSampler], then: type[BaseSampler]) -> list[bytes]:
        agent, found = CategoricalPgAgent(), []
        options: dict[str, Any] = {"batch_T": 12, "batch_B": 4, "n_workers": 2, "deterministic": True}
        with first(Walk, **options).initialize(agent, seed=5, resumable=True) as sampler:
            found.append(sampler.obtain_samples(0)[0].copy())
            state = sampler.state()
        assert state.train, state.why_not
        with then(Walk, **options).initialize(agent, seed=5, resume=state) as sampler:
            found.append(sampler.obtain_samples(1)[0].copy())
        return [pickle.dumps([leaf.numpy() for leaf in tree_leaves(samples)]) for samples in found]

    expected = batches(SerialSampler, SerialSampler)
    assert batches(RayBatchSampler, SerialSampler) == expected
    assert batches(CpuSampler, RayBatchSampler) == expected


class Tuned(Walk):
    """Has an attribute that can be set."""

    level = 0

    def set_level(self, level: int) -> int:
        self.level, before = level, self.level
        return before


def test_environments_can_be_called() -> None:
    with RayBatchSampler(Tuned, batch_T=4, batch_B=4, n_workers=2).initialize(CategoricalPgAgent(), seed=0) as sampler:
        assert sampler.call_envs("set_level", 3, env_ids=[3, 0]) == [0, 0]
        sampler.obtain_samples(0)
        assert sampler.call_envs("level") == [3, 0, 0, 3]
        with pytest.raises(TypeError, match="args of call_envs cannot be pickled"):
            sampler.call_envs("set_level", lambda: 0)


DIES = ("_exit", "SIGKILL", "SIGSEGV")
QUICK = [
    ("raise", "constructor"),
    ("raise unpicklable", "step"),
    ("NaN", "evaluation"),
    ("SIGKILL", "step"),
    ("python loop", "step"),
    ("SIGSTOP", "step"),
]
CASES = [
    (fault, phase)
    for fault in (*(fault for fault in RAISES if fault != "fork"), *DIES, *HANGS, "NaN", "shape")
    for phase in ("constructor", "reset", "step", "evaluation", "close")
    if not (fault in INVALID_RESULTS and phase in ("constructor", "close"))
]


@pytest.mark.parametrize(("fault", "phase"), quick_and_slow(CASES, QUICK))
def test_failing_environment_is_the_same_error_as_in_a_worker_process(fault: str, phase: str) -> None:
    # An actor starts an interpreter and loads torch before it makes an environment, within the same time.
    start_timeout = 30.0 if fault in HANGS and phase in ("constructor", "reset") else DEADLINE
    sampler = sampler_of(RayBatchSampler, fault, phase, start_timeout=start_timeout)
    with pytest.raises(SamplerError) as caught:
        use(sampler)
    error, where = caught.value, caught.value.where
    assert where is not None
    assert where.worker in ((0, 1) if phase == "constructor" else (1,))
    if fault in DIES:
        assert type(error) is WorkerCrashed
        assert "its process ended: killed by a signal" in error.message
    elif fault in HANGS:
        assert type(error) is WorkerHung
        assert "made no progress for" in error.message
        if fault == "python loop":
            assert "faulty.py" in error.traceback_text
            # Of two workers that hang in a constructor, either is found first; this is the first environment of one.
            bad = 0 if phase == "constructor" and where.worker == 0 else BAD_ENV
            assert (where.phase, where.env_id) == (WORDS[phase], bad)
    else:
        assert type(error) is (EnvContractError if fault in INVALID_RESULTS else EnvFailed)
        with pytest.raises(SamplerError) as other:
            use(sampler_of(CpuSampler, fault, phase))
        expected = other.value
        assert error.message == expected.message
        assert expected.where is not None
        if phase != "constructor":  # the first to report of two that fail
            assert (where.worker, where.env_id, where.phase, where.step) == (
                expected.where.worker,
                expected.where.env_id,
                expected.where.phase,
                expected.where.step,
            )
    if phase != "close":
        with pytest.raises(SamplerClosed) as closed:
            sampler.obtain_samples(2)
        assert closed.value.__cause__ is error
    sampler.shutdown()


def workers_of(sampler: BaseSampler) -> list[psutil.Process]:
    """Returns the processes of a sampler's workers, in their order."""
    pids = sampler.call_envs("pid")
    return [psutil.Process(pid) for pid in dict.fromkeys(pids)]


def test_killed_actor_is_an_error_and_leaves_nothing() -> None:
    sampler = RayBatchSampler(Named, batch_T=8, batch_B=4, n_workers=2).initialize(CategoricalPgAgent(), seed=0)
    sampler.obtain_samples(0)
    workers = workers_of(sampler)
    programs = [psutil.Process(pid) for pid in sampler.call_envs("start_program")]
    workers[1].kill()
    with pytest.raises(WorkerCrashed, match=rf"worker 1 \(a Ray actor, pid {workers[1].pid} on .*its process ended"):
        sampler.obtain_samples(1)
    with pytest.raises(SamplerClosed):
        sampler.obtain_samples(2)
    assert all_gone([*workers, *programs])


def test_shutdown_ends_what_environments_started() -> None:
    with RayBatchSampler(Named, batch_T=8, batch_B=4, n_workers=2).initialize(CategoricalPgAgent(), seed=0) as sampler:
        programs = [psutil.Process(pid) for pid in sampler.call_envs("start_program")]
        workers = workers_of(sampler)
    assert all_gone([*programs, *workers])


def test_restarted_actor_continues_with_new_environments(caplog: pytest.LogCaptureFixture) -> None:
    def batches(kill: bool) -> list[Any]:
        actors = RayActors(max_restarts=1)
        sampler = RayBatchSampler(Named, batch_T=8, batch_B=4, n_workers=2, deterministic=True, actors=actors)
        with sampler.initialize(CategoricalPgAgent(), seed=0) as sampler:
            found = [sampler.obtain_samples(0)[0].copy()]
            if kill:
                workers_of(sampler)[1].kill()
            found += [sampler.obtain_samples(itr)[0].copy() for itr in (1, 2)]
            if kill:
                workers_of(sampler)[1].kill()
                with pytest.raises(WorkerCrashed, match="it was restarted 1 times"):
                    sampler.obtain_samples(3)
        return found

    disturbed = batches(kill=True)
    assert len([record for record in caplog.records if "it is started again" in record.getMessage()]) == 1
    undisturbed = batches(kill=False)
    for itr, (one, other) in enumerate(zip(disturbed, undisturbed, strict=True)):
        left = [tree_leaves((samples.env[:, :2], samples.agent[:, :2])) for samples in (one, other)]
        assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))
        same = torch.equal(one.env.observation[:, 2:], other.env.observation[:, 2:])
        assert same == (itr == 0)
    assert disturbed[1].env.is_first[0, 2:].all()
    assert torch.equal(disturbed[1].env.last_observation, disturbed[2].env.observation[:1])
    # What it makes anew is not what it made at first: that would be the same experience twice.
    assert not torch.equal(disturbed[1].env.observation[0, 2:], disturbed[0].env.observation[0, 2:])


class DiesOnce(Named):
    """Kills its process within the third batch, unless a file shows that it did so before."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self._mark, self._steps = mark, 0

    def step(self, action: np.int64) -> Any:
        self._steps += 1
        if self._steps == 20 and not os.path.exists(self._mark):
            with suppress(FileExistsError), open(self._mark, "x"):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def test_actor_that_dies_within_a_batch_collects_it_again(tmp_path: Any) -> None:
    sampler = RayBatchSampler(
        DiesOnce,
        {"mark": str(tmp_path / "died")},
        batch_T=8,
        batch_B=4,
        n_workers=2,
        max_decorrelation_steps=0,
        eval_n_envs=2,
        actors=RayActors(max_restarts=3),
    )
    with sampler.initialize(CategoricalPgAgent(), seed=0, bootstrap_value=True):
        for itr in range(5):
            samples, _ = sampler.obtain_samples(itr)
            assert samples.env.valid.all()
            assert (samples.agent.version == itr).all()
        assert (tmp_path / "died").exists()
        assert len(sampler.evaluate_agent(5)) == 2


def test_resources_that_nobody_has_are_said_and_then_an_error(caplog: pytest.LogCaptureFixture) -> None:
    sampler = RayBatchSampler(
        Walk, batch_T=8, batch_B=4, n_workers=2, start_timeout=4.0, actors=RayActors(resources={"simulator": 1})
    )
    with pytest.raises(
        SamplerError, match=r"2 of 2 Ray actors have not started in 4 s.*'simulator': 1.*the cluster has"
    ) as e:
        sampler.initialize(CategoricalPgAgent(), seed=0)
    assert "start fewer workers" in e.value.message
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in said if "2 of 2 Ray actors have not started in 1 s" in text]) == 1


def test_class_that_the_actors_machine_lacks_is_named() -> None:
    group = group_of(1)
    group.replies()
    group.send(Missing())
    with pytest.raises(EnvFailed, match="the module of this class is missing"):
        group.replies()
    group.kill()


def _missing() -> None:
    raise ModuleNotFoundError("the module of this class is missing")


class Missing:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return _missing, ()


def test_pinned_cpus_are_refused_because_ray_places_the_actors() -> None:
    sampler = RayBatchSampler(Walk, batch_T=8, batch_B=4)
    with pytest.raises(ValueError, match="affinity has workers_cpus, but Ray places the actors"):
        sampler.initialize(CategoricalPgAgent(), affinity=Affinity(workers_cpus=((0,), (1,))))


def test_actor_has_one_thread_for_torch_and_ctrl_c_leaves_it(ray: Any) -> None:
    class Threads(Walk):
        def torch_threads(self) -> int:
            return torch.get_num_threads()

    with RayBatchSampler(Threads, batch_T=8, batch_B=2, n_workers=1).initialize(CategoricalPgAgent()) as sampler:
        assert sampler.call_envs("torch_threads") == [1, 1]


def test_interrupted_batch_leaves_nothing(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = RayBatchSampler(Named, batch_T=8, batch_B=2, n_workers=1).initialize(CategoricalPgAgent(), seed=0)
    workers, wait = workers_of(sampler), ray.wait

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(ray, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sampler.obtain_samples(0)
    with pytest.raises(SamplerClosed):
        sampler.obtain_samples(1)
    assert all_gone(workers)


@pytest.mark.slow
def test_five_hundred_batches_take_no_more_memory(ray: Any) -> None:
    kept: deque[Any] = deque(maxlen=100)  # as in a runner's logger
    with RayBatchSampler(Wide, batch_T=32, batch_B=16, n_workers=2).initialize(CategoricalPgAgent()) as sampler:
        require_no_growth(ray, lambda itr: kept.extend(sampler.obtain_samples(itr)[1]), workers_of(sampler))
