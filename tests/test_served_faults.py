"""Workers of an action server fail: what tests/test_faults.py demands of `CpuSampler` holds here too, and the server's
own failures; then random signals at random moments, for every parallel sampler.
"""

import os
import random
import signal
import threading
import time
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.errors import (
    AgentFailed,
    EnvContractError,
    EnvFailed,
    SamplerClosed,
    SamplerError,
    WorkerCrashed,
    WorkerHung,
)
from headrace.samplers import (
    AlternatingSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
)
from headrace.samplers.presets import ParallelSamplerBase
from tests.faulty import BAD_ENV, SEED
from tests.leftovers import DEADLINE, descriptors
from tests.quick import quick_and_slow
from tests.test_faults import (
    DIES,
    FAULTS,
    HANGS,
    INVALID_RESULTS,
    RAISES,
    WORDS,
    AgentThatFailsInWorkers,
    batch_bytes,
    makes_sense,
    sampler_of,
    use,
)
from tests.walk import Walk

SERVED: list[type[BaseSampler]] = [GpuSampler, AlternatingSampler]
OTHERS = [CpuSampler, GpuSampler, NoOverlapAlternatingSampler]
#: One of each kind in a step, and some in an evaluation and under the server of two groups.
QUICK = {
    *((GpuSampler, fault, "step") for fault in ("raise", "SIGKILL", "python loop")),
    (GpuSampler, "SIGKILL", "evaluation"),
    (AlternatingSampler, "SIGKILL", "step"),
    (AlternatingSampler, "raise", "evaluation"),
}
CASES = [
    pytest.param(cls, fault, phase, marks=[] if (cls, fault, phase) in QUICK else [pytest.mark.slow])
    for cls in SERVED
    for fault in FAULTS
    for phase in ("constructor", "step", "evaluation")
    if makes_sense(fault, phase) and not (fault in HANGS and phase == "constructor")
]


def worker_of(sampler: BaseSampler, env_id: int) -> int:
    return next(one.worker for one in sampler._slices if env_id in one.env_ids)


@cache
def well(cls: type[BaseSampler]) -> bytes:
    return batch_bytes(cls)


@pytest.mark.parametrize(("cls", "fault", "phase"), CASES)
def test_failing_environment_is_a_readable_error_and_leaves_nothing(cls: Any, fault: str, phase: str) -> None:
    expected_batch = well(cls)
    before = descriptors()
    sampler = sampler_of(cls, fault, phase)
    with pytest.raises(SamplerError) as caught:
        use(sampler)
    error, where = caught.value, caught.value.where
    kinds = {**dict.fromkeys(RAISES, EnvFailed), **dict.fromkeys(INVALID_RESULTS, EnvContractError)}
    kinds |= {**dict.fromkeys(DIES, WorkerCrashed), **dict.fromkeys(HANGS, WorkerHung)}
    assert type(error) is kinds[fault]
    assert where is not None
    assert where.phase == WORDS[phase]
    assert where.pid is not None
    if phase == "constructor":
        assert where.worker in (0, 1)
    else:
        # In evaluation environment k is dealt out as column k is.
        assert (where.worker, where.env_id) == (worker_of(sampler, BAD_ENV), BAD_ENV)
        assert where.step == (6 if phase == "step" else 2)
    assert f"worker {where.worker}, pid {where.pid}, env {where.env_id}" in str(error)
    if fault in DIES:
        assert DIES[fault] in str(error)
    if fault in ("python loop", "C loop", "SIGSEGV"):
        assert "faulty.py" in error.traceback_text
    with pytest.raises(SamplerClosed) as closed:
        sampler.obtain_samples(2)
    assert closed.value.__cause__ is error
    sampler.shutdown()
    sampler.shutdown()
    assert descriptors() <= before
    assert batch_bytes(cls) == expected_batch


@pytest.mark.parametrize("cls", SERVED)
def test_error_in_close_is_raised_by_shutdown(cls: type[BaseSampler]) -> None:
    sampler = sampler_of(cls, "raise", "close")
    with pytest.raises(EnvFailed, match="unhappy") as caught:
        use(sampler)
    assert caught.value.where is not None
    assert caught.value.where.env_id == BAD_ENV


@pytest.mark.parametrize(
    "cls", [AlternatingSampler, *(pytest.param(cls, marks=pytest.mark.slow) for cls in OTHERS[1:])]
)
def test_failing_agent_in_the_server_raises_agent_failed(cls: type[BaseSampler]) -> None:
    before = descriptors()
    sampler = sampler_of(cls, "none", "none")
    sampler.initialize(AgentThatFailsInWorkers(), seed=SEED)
    with pytest.raises(AgentFailed, match="NotReady: the agent is not ready") as caught:
        sampler.obtain_samples(0)
    where = caught.value.where
    assert where is not None
    assert where.worker is None
    assert where.phase == "choosing actions"
    assert where.step == (3 if cls is GpuSampler else 1)  # two groups: two calls a row
    with pytest.raises(SamplerClosed):
        sampler.obtain_samples(1)
    sampler.shutdown()
    del sampler, caught, where  # the agent's own frames, for a debugger, show it the rows it failed at
    assert descriptors() <= before


PARALLEL = [AlternatingSampler, CpuSampler, *(pytest.param(cls, marks=pytest.mark.slow) for cls in OTHERS[1:])]


class Assassin:
    """Sends a signal to a random worker after a random time."""

    def __init__(self, sampler: Any, what: int, rng: random.Random) -> None:
        processes = sampler._engine.workers._members.processes
        self.rank = rng.randrange(len(processes))
        self._pid, self._what = processes[self.rank].pid, what
        self._thread = threading.Timer(rng.random() * 0.08, self._strike)
        self._thread.start()

    def _strike(self) -> None:
        assert self._pid is not None
        os.kill(self._pid, self._what)

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


def struck(cls: type[ParallelSamplerBase], what: int, seed: int, **options: Any) -> tuple[SamplerError, int]:
    """Samples until a signal to one of the workers ends it; returns the error and the worker."""
    rng = random.Random(seed)
    sampler = cls(
        Walk,
        batch_T=rng.choice([1, 4, 32]),
        batch_B=rng.choice([4, 7]),
        n_workers=rng.randint(1, 4),
        eval_n_envs=3,
        start_method="fork",
        **options,
    )
    sampler.initialize(CategoricalPgAgent(), seed=seed)
    assassin = Assassin(sampler, what, rng)
    with pytest.raises(SamplerError) as caught:
        sample_for_long(sampler, rng)
    assassin.join()
    sampler.shutdown()
    return caught.value, assassin.rank


def sample_for_long(sampler: BaseSampler, rng: random.Random) -> None:
    deadline = time.monotonic() + DEADLINE
    itr = 0
    while time.monotonic() < deadline:
        sampler.obtain_samples(itr)
        itr += 1
        if rng.random() < 0.2:
            sampler.evaluate_agent(itr)
        if rng.random() < 0.05:
            sampler.call_envs("np_random_seed")


@pytest.mark.parametrize("cls", PARALLEL)
@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 17), marks=pytest.mark.slow)], ids=["few", "many"])
def test_kills_at_random_moments_are_reported(cls: type[ParallelSamplerBase], seeds: range) -> None:
    before = descriptors()
    for seed in seeds:
        error, rank = struck(cls, signal.SIGKILL, seed)
        assert type(error) is WorkerCrashed, error
        assert "SIGKILL" in str(error)
        assert error.where is not None
        assert error.where.worker == rank
        del error
    assert descriptors() <= before
    sampler = cls(Walk, batch_T=8, batch_B=4, n_workers=2)
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        assert torch.all(sampler.obtain_samples(0)[0].env.valid)


@pytest.mark.parametrize(
    ("cls", "seed"), quick_and_slow(product([AlternatingSampler, *OTHERS], [100, 101]), [(AlternatingSampler, 100)])
)
def test_worker_stopped_at_a_random_moment_is_reported_as_hung(cls: type[ParallelSamplerBase], seed: int) -> None:
    error, rank = struck(cls, signal.SIGSTOP, seed, timeout=1.0)
    assert type(error) is WorkerHung
    assert "SIGSTOP" in str(error)
    assert error.where is not None
    assert error.where.worker == rank
