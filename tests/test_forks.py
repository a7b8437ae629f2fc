"""Environments that fork their worker: harmless if the forked process ends, an error if it returns."""

import multiprocessing
import os
import subprocess
from typing import Any

import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.tree import tree_leaves
from headrace.envs import check_env
from headrace.errors import EnvFailed, SamplerError
from headrace.samplers import (
    AlternatingSampler,
    AsyncCpuSampler,
    AsyncSerialSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    SerialSampler,
)
from tests.leftovers import other_processes
from tests.walk import Walk


class ForksAndGoesOn(Walk):
    """Forks in its third step and returns in both processes; the reward shows which process returned."""

    def __init__(self) -> None:
        super().__init__()
        self._n_steps = 0

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        self._n_steps += 1
        pid = os.fork() if self._n_steps == 3 else os.getpid()
        return observation, float(pid > 0), terminated, truncated, info


class HasWorkers(Walk):
    """Uses processes of its own, forked in every way; none of them returns from the environment's methods."""

    def step(self, action: Any) -> Any:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        helper = multiprocessing.get_context("fork").Process(target=abs, args=(1,))
        helper.start()
        helper.join(20)
        assert helper.exitcode == 0
        assert subprocess.run(["true"], check=False).returncode == 0
        return super().step(action)


def options(**more: Any) -> dict[str, Any]:
    return {"batch_T": 8, "batch_B": 2, "n_workers": 1, "max_decorrelation_steps": 0, "start_method": "fork", **more}


@pytest.mark.parametrize(
    "cls",
    [
        CpuSampler,
        GpuSampler,
        AsyncSerialSampler,
        *(pytest.param(cls, marks=pytest.mark.slow) for cls in (AlternatingSampler, AsyncCpuSampler)),
    ],
)
def test_environment_that_forks_and_returns_twice_is_an_error_in_every_sampler(cls: type[BaseSampler]) -> None:
    """Batches before the error have only the data of the process that was not forked."""
    sampler = cls(ForksAndGoesOn, **options())
    sampler.initialize(CategoricalPgAgent(), seed=0)
    with pytest.raises(EnvFailed, match=r"returned in both processes[\s\S]*ForksAndGoesOn|os\.fork") as caught:  # noqa: PT012
        for itr in range(1000):
            samples, _ = sampler.obtain_samples(itr)
            assert (samples.env.reward == 1).all()
    where = caught.value.where
    assert where is not None
    assert where.env_id in (0, 1)
    assert (where.phase, where.step) == ("stepping", 2)
    assert "in step" in caught.value.traceback_text
    assert "test_forks.py" in caught.value.traceback_text
    assert other_processes() == set()


def test_processes_of_an_environment_do_not_change_batches() -> None:
    batches = []
    for env_cls in (HasWorkers, Walk):
        with CpuSampler(env_cls, **options(batch_T=3)).initialize(CategoricalPgAgent(), seed=0) as sampler:
            batches.append(sampler.obtain_samples(0)[0].copy())
    for one, other in zip(*map(tree_leaves, batches), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_check_env_reports_an_environment_that_forks_and_returns_twice() -> None:
    def found() -> bool:
        violations = check_env(ForksAndGoesOn, n_steps=20)
        return any("returned in both processes" in str(violation) for violation in violations)

    # The forked copy has a second to report; where it starts slowly, as under coverage, one try may miss it.
    assert any(found() for _ in range(5))


def test_sampler_in_a_forked_copy_of_its_program_is_refused() -> None:
    sampler = SerialSampler(Walk, **options())
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                sampler.obtain_samples(0)
            except SamplerError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert "was forked from" in pipe.read()
        sampler.obtain_samples(0)
