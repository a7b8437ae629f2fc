"""Environments that draw from the global random generators."""

import logging
import random
from typing import Any

import numpy as np
import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_leaves
from headrace.envs.global_rng import GlobalRandomness
from headrace.samplers import (
    AlternatingSampler,
    AsyncCpuSampler,
    AsyncSerialSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    SerialSampler,
)
from headrace.samplers.collection.snapshot import SamplerState
from tests.walk import Walk


class Draws(Walk):
    """Every number of its observations is from a generator that is not its own, from the constructor on."""

    def __init__(self) -> None:
        super().__init__()
        self._draws = draws()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return draws() if seed is None else self._draws, {}

    def step(self, action: Any) -> Any:
        _, _, terminated, truncated, info = super().step(action)
        return draws(), float(np.random.normal()), terminated, truncated, info

    def draw(self) -> list[float]:
        return draws().tolist()


def draws() -> np.ndarray:
    import torch  # by a worker that has none yet, too

    return np.array([np.random.random(), random.random(), float(torch.rand(()))], np.float32)


def options(**more: Any) -> dict[str, Any]:
    return {"batch_T": 8, "batch_B": 4, "n_workers": 2, "max_decorrelation_steps": 3, "start_method": "fork", **more}


def batches(cls: type[BaseSampler], n: int = 2, state: SamplerState | None = None, **more: Any) -> list[Any]:
    """Returns the content of n batches, of an evaluation, and the result of a call."""
    found: list[Any] = []
    sampler = cls(Draws, **options(**more))
    with sampler.initialize(CategoricalPgAgent(), seed=5, resume=state) as sampler:
        for itr in range(n):
            found += content(sampler.obtain_samples(itr)[0])
        if sampler.settings()["eval_n_envs"]:
            found += [torch.tensor(info.Return) for info in sampler.evaluate_agent(n)]
        found.append(torch.tensor(sampler.call_envs("draw")))
    return found


def content(samples: Samples) -> list[Any]:
    """What the environments gave, and the actions."""
    return [leaf.clone() for leaf in (*tree_leaves(samples.env), samples.agent.action)]


def equal(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def first_observations(sampler: BaseSampler) -> np.ndarray:
    with sampler.initialize(CategoricalPgAgent(), seed=5):
        return sampler.obtain_samples(0)[0].env.observation[0].numpy().copy()


@pytest.mark.parametrize(
    ("cls", "start_method"),
    [
        (CpuSampler, "fork"),
        (GpuSampler, "fork"),
        (AsyncCpuSampler, "fork"),
        pytest.param(
            GpuSampler, "forkserver", marks=pytest.mark.slow
        ),  # whose workers load torch when the environment does
        pytest.param(CpuSampler, "spawn", marks=pytest.mark.slow),
    ],
)
def test_workers_draw_different_numbers(cls: type[BaseSampler], start_method: str) -> None:
    # Without decorrelation, in which equal generators would draw another number of times.
    own = options(start_method=start_method, max_decorrelation_steps=0)
    rows = [first_observations(cls(Draws, **own)) for _ in range(2)]
    assert len({tuple(row) for row in rows[0]}) == 4
    assert all(len(set(column)) == 4 for column in rows[0].T), "each of the three generators"
    assert (rows[0] == rows[1]).all(), "a matter of seed and worker"


def test_processes_of_async_samplers_draw_different_numbers() -> None:
    """The sampler process's are not the evaluation process's, and neither are the learner's."""
    torch.manual_seed(0)
    mine = draws()
    torch.manual_seed(0)
    sampler = AsyncSerialSampler(Draws, **options(eval_n_envs=1, eval_process=True, max_decorrelation_steps=0))
    assert mine[2] not in first_observations(sampler)[:, 2]


def test_samplers_do_not_seed_the_generators_of_the_caller() -> None:
    for cls in (SerialSampler, CpuSampler):
        randomness = GlobalRandomness()
        with cls(Walk, **options()).initialize(CategoricalPgAgent(), seed=0) as sampler:
            sampler.obtain_samples(0)
        assert "numpy.random" not in randomness.touched()


@pytest.fixture(scope="module")
def reference() -> list[Any]:
    return batches(SerialSampler, isolate_rng=True, eval_n_envs=2)


@pytest.mark.parametrize(
    ("cls", "more"),
    [
        (CpuSampler, {}),
        (GpuSampler, {"n_workers": 3}),
        pytest.param(GpuSampler, {"start_method": "forkserver"}, marks=pytest.mark.slow),
        (AlternatingSampler, {"n_workers": 1}),
        (AsyncCpuSampler, {"eval_process": True}),
        pytest.param(CpuSampler, {"start_method": "spawn"}, marks=pytest.mark.slow),
    ],
)
def test_isolate_rng_gives_equal_batches_in_every_sampler(
    cls: type[BaseSampler], more: dict[str, Any], reference: list[Any]
) -> None:
    more = {"eval_n_envs": 2, "isolate_rng": True, **more}
    if issubclass(cls, AsyncCpuSampler):  # calls take place behind the batch that was commanded ahead
        assert equal(batches(cls, **more)[:-1], reference[:-1])
    else:
        assert equal(batches(cls, **more), reference)


def test_without_isolate_rng_batches_differ() -> None:
    assert not equal(batches(SerialSampler), batches(CpuSampler))


def test_isolate_rng_restores_the_generators_of_the_caller() -> None:
    np.random.seed(0)
    np.random.normal()  # of two, the second is in reserve
    randomness = GlobalRandomness()
    with SerialSampler(Draws, **options(isolate_rng=True)).initialize(CategoricalPgAgent(), seed=0) as sampler:
        sampler.obtain_samples(0)
        sampler.call_envs("draw")
        touched = randomness.touched()
    assert not [name for name in touched if name != "torch"]  # the agent's first weights are drawn from torch's
    randomness.touched()
    with SerialSampler(Draws, **options(isolate_rng=True)).initialize(built_agent(), seed=0) as sampler:
        randomness.touched()
        sampler.obtain_samples(0)
    assert not randomness.touched()


def built_agent() -> CategoricalPgAgent:
    agent = CategoricalPgAgent()
    with SerialSampler(Walk, **options()).initialize(agent, seed=0):
        return agent


@pytest.mark.usefixtures("copies_tried_here")
def test_resumed_run_restores_the_generators() -> None:
    sampler: BaseSampler = CpuSampler(Draws, **options(isolate_rng=True))
    with sampler.initialize(CategoricalPgAgent(), seed=5, resumable=True):
        sampler.obtain_samples(0)
        state = sampler.state()
        expected = content(sampler.obtain_samples(1)[0])
    assert not state.why_not
    sampler = GpuSampler(Draws, **options(isolate_rng=True, n_workers=1))
    with sampler.initialize(CategoricalPgAgent(), seed=5, resume=state):
        came = content(sampler.obtain_samples(1)[0])
    assert equal(came, expected)


@pytest.mark.parametrize(
    "cls",
    [SerialSampler, GpuSampler, *(pytest.param(cls, marks=pytest.mark.slow) for cls in (CpuSampler, AsyncCpuSampler))],
)
def test_log_names_environments_that_use_global_generators_once(
    cls: type[BaseSampler], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for env_cls, more in ((Draws, {}), (Draws, {"isolate_rng": True}), (Walk, {})):
            with cls(env_cls, **options(**more)).initialize(CategoricalPgAgent(), seed=0) as sampler:
                for itr in range(3):
                    sampler.obtain_samples(itr)
    lines = [record.message for record in caplog.records if "global generators" in record.message]
    assert len(lines) == 1
    assert lines[0].startswith("Draws ")
    assert "isolate_rng=True" in lines[0]


def test_isolate_rng_refuses_vector_environments() -> None:
    from headrace.envs import VectorEnvs

    with pytest.raises(ValueError, match="isolate_rng is for single environments"):
        SerialSampler(VectorEnvs("CartPole-v1"), batch_T=2, batch_B=2, isolate_rng=True)
