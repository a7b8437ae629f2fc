"""A worker's environment fails: the error is readable, nothing is left, and a new sampler works."""

import pickle
import time
from typing import Any

import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.tree import tree_leaves
from headrace.errors import EnvContractError, EnvFailed, SamplerClosed, SamplerError, WorkerCrashed, WorkerHung
from headrace.samplers import BaseSampler, CpuSampler, GpuSampler, SerialSampler
from tests.faulty import BAD_ENV, SEED, FaultyEnv
from tests.leftovers import DEADLINE, descriptors
from tests.quick import quick_and_slow

RAISES = [
    "raise",
    "raise unpicklable",
    "raise odd constructor",
    "SystemExit",
    "raise mutely",
    "fork",
]
DIES = {"_exit": "exit code 3", "SIGKILL": "SIGKILL", "SIGSEGV": "SIGSEGV"}
HANGS = ["SIGSTOP", "python loop", "C loop"]
INVALID_RESULTS = ["NaN", "Inf reward", "shape", "broadcastable shape", "dtype"]
FAULTS = [*RAISES, *DIES, *HANGS, *INVALID_RESULTS]
PHASES = ["constructor", "reset", "step", "late reset", "evaluation", "close"]
WORDS = {
    "constructor": "constructing the environment",
    "reset": "resetting",
    "step": "stepping",
    "late reset": "stepping",
    "evaluation": "evaluating",
    "close": "closing",
}


def makes_sense(fault: str, phase: str) -> bool:
    """Returns whether a fault can occur in a phase: a constructor and close() return no result that could be invalid,
    and a reset returns no reward. Of two processes that return from close(), one may end before the other is noticed,
    and end it too.
    """
    if (fault, phase) == ("fork", "close"):
        return False
    if fault in INVALID_RESULTS:
        return phase in ("reset", "step", "late reset", "evaluation") and not (
            fault == "Inf reward" and phase in ("reset", "late reset")
        )
    return True


CASES = [(fault, phase) for fault in FAULTS for phase in PHASES if makes_sense(fault, phase)]
#: One fault in every phase, each way to die in a step, and what reaches the master in another way. A hang costs its
#: timeout; test-all has all pairs.
QUICK = [
    *(("raise", phase) for phase in PHASES),
    *(("SIGKILL", phase) for phase in ("constructor", "evaluation", "close")),
    *((fault, "step") for fault in ("raise unpicklable", "SystemExit", "fork", *DIES, "SIGSTOP", "python loop", "NaN")),
    *(("python loop", phase) for phase in ("constructor", "close")),
]
#: In one process all of them are told by the same code.
IN_ONE_PROCESS = [case for case in CASES if case[0] in (*RAISES[:4], *INVALID_RESULTS)]
QUICK_IN_ONE_PROCESS = [case for case in IN_ONE_PROCESS if case[1] == "step" or case[0] in ("raise", "NaN")]


def sampler_of(cls: type[BaseSampler], fault: str, phase: str, **kwargs: Any) -> BaseSampler:
    """Makes a sampler with a short timeout only for hangs, because a busy machine could be taken for one."""
    timeout = 1.5 if fault in HANGS else DEADLINE
    start_timeout = 3.0 if fault in HANGS and phase in ("constructor", "reset") else DEADLINE
    options: dict[str, Any] = {
        "batch_T": 8,
        "batch_B": 4,
        "n_workers": 2,
        "max_decorrelation_steps": 0,
        "eval_n_envs": 4,
        "timeout": timeout,
        "start_timeout": start_timeout,
        "start_method": "fork",
    }
    return cls(FaultyEnv, {"fault": fault, "phase": phase}, **{**options, **kwargs})


def use(sampler: BaseSampler) -> None:
    """Everything a sampler can do."""
    sampler.initialize(CategoricalPgAgent(), seed=SEED, bootstrap_value=True)
    sampler.obtain_samples(0)
    sampler.obtain_samples(1)
    sampler.evaluate_agent(1)
    sampler.shutdown()


def batch_bytes(cls: type[BaseSampler] = CpuSampler) -> bytes:
    """Returns one batch of a valid environment."""
    with sampler_of(cls, "none", "none").initialize(CategoricalPgAgent(), seed=SEED) as sampler:
        samples, _ = sampler.obtain_samples(0)
        return pickle.dumps([leaf.numpy().tobytes() for leaf in tree_leaves(samples)])


@pytest.fixture(scope="module")
def reference() -> bytes:
    return batch_bytes()


@pytest.mark.parametrize(("fault", "phase"), quick_and_slow(CASES, QUICK))
def test_failing_environment_is_a_readable_error_and_leaves_nothing(fault: str, phase: str, reference: bytes) -> None:
    before = descriptors()
    sampler = sampler_of(CpuSampler, fault, phase)
    with pytest.raises(SamplerError) as caught:
        use(sampler)
    error = caught.value
    expected = (
        EnvFailed
        if fault in RAISES
        else EnvContractError
        if fault in INVALID_RESULTS
        else WorkerHung
        if fault in HANGS
        else WorkerCrashed
    )
    assert type(error) is expected
    where = error.where
    assert where is not None
    assert where.worker in ((0, 1) if phase == "constructor" else (1,))
    assert where.pid is not None
    assert where.phase == WORDS[phase]
    if phase == "constructor":
        assert where.env_id in ((0, 1, 2, 3) if fault == "fork" else (0, 2))  # the original goes on to the next
    else:
        assert where.env_id == BAD_ENV
    text = str(error)
    assert f"worker {where.worker}, pid {where.pid}, env {where.env_id}" in text
    if phase in ("step", "evaluation"):
        assert where.step == (6 if phase == "step" else 2)
    if fault in DIES:
        assert DIES[fault] in text
    if fault == "SIGSEGV":
        assert "faulty.py" in error.traceback_text  # where in the environment
    if fault in ("python loop", "C loop"):
        assert "faulty.py" in error.traceback_text
    if fault == "fork":
        assert "returned in both processes" in text
        assert "faulty.py" in error.traceback_text
    if fault == "raise":
        assert "ValueError: the simulator is unhappy" in text
        assert "faulty.py" in error.traceback_text
    if phase != "close":  # closing is what the user asked for: nothing is left to refuse
        with pytest.raises(SamplerClosed) as closed:
            sampler.obtain_samples(2)
        assert closed.value.__cause__ is error
    sampler.shutdown()
    sampler.shutdown()
    assert descriptors() <= before
    assert batch_bytes() == reference


@pytest.mark.parametrize(("fault", "phase"), quick_and_slow(IN_ONE_PROCESS, QUICK_IN_ONE_PROCESS))
def test_the_serial_sampler_reports_failures_in_the_same_words(fault: str, phase: str) -> None:
    sampler = sampler_of(SerialSampler, fault, phase)
    with pytest.raises(EnvContractError if fault in INVALID_RESULTS else EnvFailed) as caught:
        use(sampler)
    where = caught.value.where
    assert where is not None
    assert where.worker is None
    assert where.phase == WORDS[phase]
    assert where.env_id == (0 if phase == "constructor" else BAD_ENV)
    sampler.shutdown()
    if phase != "close":
        with pytest.raises(SamplerClosed):
            sampler.evaluate_agent(0)


@pytest.mark.parametrize(
    ("fault", "start_method"),
    [
        ("raise unpicklable", "forkserver"),
        pytest.param("SIGKILL", "spawn", marks=pytest.mark.slow),
        pytest.param("python loop", "forkserver", marks=pytest.mark.slow),
        pytest.param("raise unpicklable", "spawn", marks=pytest.mark.slow),
        pytest.param("SIGKILL", "forkserver", marks=pytest.mark.slow),
        pytest.param("python loop", "spawn", marks=pytest.mark.slow),
    ],
)
def test_failures_are_reported_alike_under_other_start_methods(fault: str, start_method: str) -> None:
    sampler = sampler_of(CpuSampler, fault, "step", start_method=start_method, start_timeout=DEADLINE)
    with pytest.raises(SamplerError) as caught:
        use(sampler)
    where = caught.value.where
    assert where is not None
    assert (where.worker, where.env_id, where.step) == (1, BAD_ENV, 6)
    sampler.shutdown()


@pytest.mark.parametrize("cls", [CpuSampler, GpuSampler])
def test_dead_worker_is_noticed_although_its_child_lives(cls: type[BaseSampler]) -> None:
    sampler = sampler_of(cls, "SIGKILL beside a child", "step")
    with pytest.raises(WorkerCrashed, match="killed by SIGKILL"):
        use(sampler)
    sampler.shutdown()


def test_failing_agent_raises_agent_failed() -> None:
    from headrace.errors import AgentFailed

    sampler = sampler_of(CpuSampler, "none", "none")
    sampler.initialize(AgentThatFailsInWorkers(), seed=0)
    with pytest.raises(AgentFailed, match="NotReady: the agent is not ready") as caught:
        sampler.obtain_samples(0)
    assert caught.value.where is not None
    assert caught.value.where.phase == "choosing actions"
    assert caught.value.where.step == 3


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
def test_failing_bootstrap_value_raises_agent_failed(cls: type[BaseSampler]) -> None:
    from headrace.errors import AgentFailed

    sampler = sampler_of(cls, "none", "none")
    sampler.initialize(AgentWithoutValue(), seed=0, bootstrap_value=True)
    with pytest.raises(AgentFailed, match="NotReady: no value") as caught:
        sampler.obtain_samples(0)
    assert caught.value.where is not None
    assert (caught.value.where.phase, caught.value.where.step) == ("choosing actions", 8)


class NotReady(Exception):
    pass


class AgentWithoutValue(CategoricalPgAgent):
    def value(self, inputs, state):  # type: ignore[no-untyped-def]
        raise NotReady("no value")


class AgentThatFailsInWorkers(CategoricalPgAgent):
    calls = 0

    def step(self, inputs, state):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls == 5:  # one was the example step in the master
            raise NotReady("the agent is not ready")
        return super().step(inputs, state)


def test_slow_environment_does_not_end_sampling() -> None:
    """Slow is not hung: the batch takes longer than the timeout, each row a tenth of it."""
    sampler = CpuSampler(slow_env, batch_T=16, batch_B=1, n_workers=1, max_decorrelation_steps=0, timeout=1.0)
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        samples, _ = sampler.obtain_samples(0)
    assert torch.equal(samples.env.valid, torch.ones(16, 1, dtype=torch.bool))


class SlowEnv(FaultyEnv):
    def step(self, action):  # type: ignore[no-untyped-def]

        time.sleep(0.1)
        return super().step(action)


def slow_env() -> SlowEnv:
    return SlowEnv("none", "none")
