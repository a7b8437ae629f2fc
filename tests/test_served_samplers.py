"""What is particular to samplers with an action server: groups, waiting, timing, devices."""

import time
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.buffers.tree import tree_leaves, tree_paths
from headrace.processes.affinity import Affinity, usable_cores
from headrace.samplers import (
    ActionServer,
    AlternatingActionServer,
    AlternatingSampler,
    AlternatingSamplerBase,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    GpuSamplerBase,
    NoOverlapAlternatingActionServer,
    NoOverlapAlternatingSampler,
    ParallelSamplerBase,
    SerialSampler,
)
from headrace.samplers.layout import slices_of, spread_like
from headrace.types import Timing
from tests.leftovers import DEADLINE
from tests.quick import quick_and_slow
from tests.walk import Walk

SERVED = [GpuSampler, AlternatingSampler, pytest.param(NoOverlapAlternatingSampler, marks=pytest.mark.slow)]


def sampler_of(cls: type[BaseSampler], **options: Any) -> Any:
    return cls(Walk, **{"batch_T": 12, "batch_B": 5, "n_workers": 2, "timeout": DEADLINE, **options})


# ---- names ----


def test_class_hierarchy_follows_the_names() -> None:
    assert issubclass(GpuSampler, GpuSamplerBase)
    assert issubclass(AlternatingSampler, AlternatingSamplerBase)
    assert issubclass(NoOverlapAlternatingSampler, AlternatingSamplerBase)
    assert issubclass(AlternatingSamplerBase, GpuSamplerBase)
    assert issubclass(GpuSamplerBase, ParallelSamplerBase)
    assert issubclass(NoOverlapAlternatingActionServer, AlternatingActionServer)
    assert issubclass(AlternatingActionServer, ActionServer)


# ---- columns ----


def test_columns_are_split_by_group_and_every_worker_gets_some() -> None:
    for B, W, n_groups in product([1, 2, 3, 5, 8, 11], [1, 2, 3, 4, 8], [1, 2]):
        assert_dealt_out(B, min(W, B), n_groups)


def assert_dealt_out(B: int, W: int, n_groups: int) -> None:
    slices = slices_of(range(100, 100 + B), W, n_groups)
    assert [env_id for one in slices for env_id in one.env_ids] == list(range(100, 100 + B))
    assert {one.worker for one in slices} == set(range(W))
    groups = [one.group for one in slices]
    assert groups == sorted(groups)
    sizes = [sum(len(one.env_ids) for one in slices if one.worker == worker) for worker in range(W)]
    assert max(sizes) - min(sizes) <= 1
    halves = [sum(len(one.env_ids) for one in slices if one.group == group) for group in range(n_groups)]
    assert max(halves) - min(halves) <= 1
    for worker in range(W):
        own = [one.group for one in slices if one.worker == worker]
        assert len(own) == len(set(own)), "at most one slice of each group"
    parts = spread_like(range(7), slices)
    assert [item for part in parts for item in part] == list(range(7))
    assert len(parts) == len(slices)


# ---- who does what ----


@pytest.mark.parametrize("cls", [GpuSampler, AlternatingSampler])
def test_workers_do_not_load_torch(cls: type[GpuSamplerBase]) -> None:
    sampler = cls("tests.light:Light", batch_T=4, batch_B=4, n_workers=2, eval_n_envs=2, start_method="forkserver")
    with sampler.initialize(RecurrentCategoricalPgAgent(), seed=0, bootstrap_value=True):
        sampler.obtain_samples(0)
        sampler.evaluate_agent(0)
        assert sampler.call_envs("torch_is_loaded") == [False] * 4


class Notes(CategoricalPgAgent):
    """Records the number of rows of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def step(self, inputs: Any, state: Any) -> Any:
        self.rows.append(len(inputs.is_first))
        return super().step(inputs, state)


@pytest.mark.parametrize(
    ("cls", "calls"),
    [(GpuSampler, [5] * 12), (AlternatingSampler, [3, 2] * 12), (NoOverlapAlternatingSampler, [3, 2] * 12)],
)
def test_one_inference_serves_a_whole_group(cls: type[GpuSamplerBase], calls: list[int]) -> None:
    agent = Notes()
    with sampler_of(cls).initialize(agent, seed=0) as sampler:
        agent.rows.clear()
        sampler.obtain_samples(0)
        assert agent.rows == calls


class Clocked(Walk):
    """Its info says when a step began and ended."""

    def step(self, action: Any) -> Any:
        import time

        begin = time.monotonic()
        *answer, info = super().step(action)
        time.sleep(0.003)
        return (*answer, {**info, "begin": begin, "end": time.monotonic()})


@pytest.mark.parametrize(("cls", "at_once"), [(AlternatingSampler, True), (NoOverlapAlternatingSampler, False)])
def test_groups_step_at_once_only_with_overlap(cls: type[GpuSamplerBase], at_once: bool) -> None:
    keys = {"begin": ("float64", ()), "end": ("float64", ())}
    # Two workers of one column each: the first has the first group, the second the other.
    sampler = cls(Clocked, batch_T=20, batch_B=2, n_workers=2, env_info_keys=keys, max_decorrelation_steps=0)
    with sampler.initialize(CategoricalPgAgent(), seed=0):
        samples, _ = sampler.obtain_samples(0)
    begin, end = samples.env.env_info["begin"], samples.env.env_info["end"]
    overlap = (torch.minimum(end[:, :1], end[:, 1].reshape(1, -1)) - torch.maximum(begin[:, :1], begin[:, 1])).max()
    assert (float(overlap) > 0) == at_once


@pytest.mark.parametrize("cls", SERVED)
def test_timing_has_the_shares_of_the_server(cls: type[GpuSamplerBase]) -> None:
    with sampler_of(cls).initialize(CategoricalPgAgent(), seed=0) as sampler:
        assert sampler.timing().steps == 0
        for itr in range(3):
            sampler.obtain_samples(itr)
        report = sampler.timing()
        assert report.steps == 3 * 12 * 5
        assert 0 < report.server_acting < 1
        assert 0 < report.server_waiting < 1
        assert "server: acting" in str(report)
        assert sampler._engine.server.late == 0
    with sampler_of(CpuSampler).initialize(CategoricalPgAgent(), seed=0) as sampler:
        sampler.obtain_samples(0)
        assert sampler.timing().server_acting is None


def test_timing_of_a_loop_excludes_time_spent_on_another_group() -> None:
    timing = Timing()
    with sampler_of(SerialSampler).initialize(CategoricalPgAgent(), seed=0) as sampler:
        loop = sampler._engine._collector._environments._loop
        loop.timing = timing
        for t in loop.collect(sampler._engine._collector._environments._views[0], 1):
            assert t == 0
            time.sleep(1.0)
            timing.turned_to_ns = time.perf_counter_ns()
    assert timing.detailed_rows == 1
    assert 0 < timing.acting_ns <= timing.row_ns < 0.9e9
    with sampler_of(AlternatingSampler).initialize(CategoricalPgAgent(), seed=0) as sampler:
        sampler.obtain_samples(0)
        assert all(timing.turned_to_ns for timing in sampler._timings)


def test_default_n_workers_leaves_a_core_for_the_server() -> None:
    cores = usable_cores()
    for cls, expected in (
        (CpuSampler, cores),
        (GpuSampler, max(1, cores - 1)),
        (AlternatingSampler, max(1, cores - 1)),
    ):
        sampler: Any = cls(Walk, batch_T=2, batch_B=16)
        assert sampler._engine.n_workers(Affinity()) == min(expected, 16)


def test_more_workers_than_columns_are_not_started() -> None:
    with sampler_of(AlternatingSampler, batch_B=3, n_workers=8).initialize(CategoricalPgAgent(), seed=0) as sampler:
        assert len(sampler._engine.workers) == 3
        samples, _ = sampler.obtain_samples(0)
    assert samples.env.reward.shape == (12, 3)


@pytest.mark.parametrize("cls", SERVED)
def test_batch_of_one_column_works(cls: type[GpuSamplerBase]) -> None:
    options: dict[str, Any] = {"batch_B": 1, "n_workers": 4, "deterministic": True, "eval_n_envs": 1}
    found = []
    for kind in (SerialSampler, cls):
        with sampler_of(kind, **options).initialize(CategoricalPgAgent(), seed=4, bootstrap_value=True) as sampler:
            samples, _ = sampler.obtain_samples(0)
            found.append(([leaf.clone() for leaf in tree_leaves(samples)], sampler.evaluate_agent(0)))
    assert all(map(torch.equal, found[0][0], found[1][0]))
    assert found[0][1] == found[1][1]


# ---- cells, states, finals ----


@pytest.mark.parametrize(
    ("cls", "reset_mode"),
    quick_and_slow(
        product([GpuSampler, AlternatingSampler, NoOverlapAlternatingSampler], ["mid_batch", "wait"]),
        [(GpuSampler, "mid_batch"), (AlternatingSampler, "wait")],
    ),
)
def test_every_cell_is_written_in_every_batch(cls: type[GpuSamplerBase], reset_mode: str) -> None:
    def batch(poison: bool) -> list[tuple[str, torch.Tensor]]:
        sampler = sampler_of(cls, reset_mode=reset_mode, env_info_keys={"n": ("int32", ())}, deterministic=True)
        agent = RecurrentCategoricalPgAgent(model_kwargs={"hidden_size": 8})
        with sampler.initialize(agent, seed=3, bootstrap_value=True):
            if poison:
                for leaf in tree_leaves(sampler._slots.all[0]):
                    leaf.view(np.uint8)[...] = 0xAB
            samples, _ = sampler.obtain_samples(0)
            return [(path, leaf.clone()) for path, leaf in tree_paths(samples)]

    for (path, leaf), (_, other) in zip(batch(False), batch(True), strict=True):
        assert torch.equal(leaf, other), path


class Short(gym.Env[np.ndarray, np.int64]):
    """Every step ends the episode."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        return self.np_random.normal(size=2).astype(np.float32), 1.0, False, True, {}


@pytest.mark.parametrize("cls", SERVED)
def test_states_of_overflowing_final_entries_equal_those_of_the_serial_sampler(cls: type[GpuSamplerBase]) -> None:
    found = []
    for kind in (SerialSampler, cls):
        agent = RecurrentCategoricalPgAgent(model_kwargs={"hidden_size": 8})
        sampler = kind(Short, batch_T=40, batch_B=5, n_workers=2, deterministic=True, max_decorrelation_steps=0)
        with sampler.initialize(agent, seed=1, bootstrap_value=True):
            samples, _ = sampler.obtain_samples(0)
            found.append([(path, leaf.clone()) for path, leaf in tree_paths(samples.final)])
    assert any("state" in path for path, _ in found[0])
    for (path, leaf), (_, other) in zip(*found, strict=True):
        assert len(leaf) == 200
        assert torch.equal(leaf, other), path


# ---- devices ----


def test_batches_on_a_samples_device_have_their_own_memory() -> None:
    with sampler_of(GpuSampler, samples_device="cpu").initialize(CategoricalPgAgent(), seed=0) as sampler:
        samples, _ = sampler.obtain_samples(0)
        before = samples.env.reward.clone()
        for leaf in tree_leaves(sampler._slots.all[0]):
            leaf.view(np.uint8)[...] = 0xAB  # what the next batch will do to the host's memory
        assert torch.equal(samples.env.reward, before)
        assert torch.isfinite(samples.env.observation).all()


def test_samples_device_other_than_the_acting_device_is_refused() -> None:
    with pytest.raises(ValueError, match="samples_device='cpu' must be the device on which the agent acts"):
        sampler_of(GpuSampler, device="cuda:0", samples_device="cpu")
    with pytest.raises(ValueError, match="CpuSampler acts in its workers"):
        sampler_of(CpuSampler, samples_device="cpu")


@pytest.mark.gpu
def test_default_device_is_the_first_gpu() -> None:
    agent = CategoricalPgAgent()
    with sampler_of(GpuSampler, samples_device="cuda:0").initialize(agent, seed=0) as sampler:
        samples, _ = sampler.obtain_samples(0)
        assert samples.env.observation.is_cuda
        assert sampler._engine._pinned is not None
    agent = CategoricalPgAgent()
    with sampler_of(AlternatingSampler).initialize(agent, seed=0):
        assert agent.device.type == "cuda"


def test_load_of_other_programs_is_measured_before_each_batch_and_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.processes.patience import Patience

    decisions: list[None] = []
    monkeypatch.setattr(Patience, "decide", lambda self: decisions.append(None))
    with sampler_of(GpuSampler, eval_n_envs=2).initialize(CategoricalPgAgent(), seed=0) as sampler:
        sampler.obtain_samples(0)
        assert len(decisions) == 1
        sampler.evaluate_agent(0)
        assert len(decisions) == 2
