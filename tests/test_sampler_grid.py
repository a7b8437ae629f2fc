"""The promise over all synchronous samplers: the same seed gives the same batches, every field bit for bit.

The pairs of some settings run always, the full grid in the long suite.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace import compiled
from headrace.agents.base import Agent
from headrace.agents.pg import (
    CategoricalPgAgent,
    GaussianPgAgent,
    RecurrentCategoricalPgAgent,
    RecurrentGaussianPgAgent,
)
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_paths
from headrace.samplers import (
    AlternatingSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    SerialSampler,
    TrajInfo,
)
from tests.environments import Varied
from tests.leftovers import DEADLINE

SAMPLERS = [CpuSampler, GpuSampler, AlternatingSampler, NoOverlapAlternatingSampler]
WORKERS = [1, 2, 3, 4, 8]
MODELS = ["MLP", "CNN", "LSTM"]
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "continuous": spaces.Box(np.array([-1, 0], np.float32), np.array([3, 1], np.float32)),
}
RESETS = ["mid_batch", "wait"]
COLUMNS = [5, 11]  # neither divides by a number of workers or groups
AXES = (SAMPLERS, WORKERS, MODELS, list(ACTIONS), RESETS, COLUMNS)
Case = tuple[type[BaseSampler], int, str, str, str, int]
Run = tuple[list[tuple[Samples, Sequence[TrajInfo]]], list[TrajInfo]]


def pairwise(cases: list[Case]) -> list[Case]:
    """Returns a subset of the cases in which every pair of settings occurs."""

    def pairs(case: Case) -> set[Any]:
        return set(combinations(enumerate(case), 2))

    missing = set().union(*map(pairs, cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


GRID: list[Case] = list(product(*AXES))
ALWAYS = pairwise([case for case in GRID if case[1] in (2, 3)])


def observation_space(model: str) -> spaces.Space[Any]:
    if model == "CNN":
        return spaces.Box(0, 255, (1, 36, 36), np.uint8)
    return spaces.Box(-np.inf, np.inf, (3,), np.float32)


def agent_of(model: str, action: str) -> Agent:
    kinds: dict[tuple[bool, str], Callable[..., Agent]] = {
        (False, "discrete"): CategoricalPgAgent,
        (False, "continuous"): GaussianPgAgent,
        (True, "discrete"): RecurrentCategoricalPgAgent,
        (True, "continuous"): RecurrentGaussianPgAgent,
    }
    model_kwargs = {"cell": "lstm", "input_size": 16, "hidden_size": 12} if model == "LSTM" else {}
    return kinds[model == "LSTM", action](model_kwargs=model_kwargs)


def run(cls: type[BaseSampler], model: str, action: str, reset_mode: str, B: int, **options: Any) -> Run:
    """Three batches, of which the parameters change after the first, and an evaluation."""
    agent = agent_of(model, action)
    env_kwargs = {"observation_space": observation_space(model), "action_space": ACTIONS[action]}
    sampler = cls(
        Varied,
        env_kwargs,
        batch_T=12,
        batch_B=B,
        max_decorrelation_steps=9,
        eval_n_envs=3,
        eval_max_trajectories=6,
        reset_mode=reset_mode,
        state_interval=4,
        deterministic=True,
        timeout=DEADLINE,
        **options,
    )
    batches = []
    with sampler.initialize(agent, seed=5, bootstrap_value=True, traj_info_kwargs={"discount": 0.9}):
        for itr in range(3):
            samples, traj_infos = sampler.obtain_samples(itr)
            batches.append((samples.copy(), traj_infos))
            with torch.no_grad():
                for parameter in agent.parameters():
                    parameter.add_(0.02 * torch.sin(torch.arange(parameter.numel()) + itr).reshape(parameter.shape))
        return batches, sampler.evaluate_agent(2)


@cache
def reference(model: str, action: str, reset_mode: str, B: int) -> Run:
    result = run(SerialSampler, model, action, reset_mode, B)
    ends = sum(int(samples.env.terminated.sum()) for samples, _ in result[0])
    cuts = sum(int(samples.env.truncated.sum()) for samples, _ in result[0])
    assert ends
    assert cuts
    return result


def assert_same(expected: Run, came: Run) -> None:
    for (samples, traj_infos), (others, other_infos) in zip(expected[0], came[0], strict=True):
        for (path, leaf), (_, other) in zip(tree_paths(samples), tree_paths(others), strict=True):
            assert leaf.dtype == other.dtype
            assert leaf.shape == other.shape, path
            assert torch.equal(leaf, other), path
        assert traj_infos == other_infos
    assert len(expected[1]) == 6
    assert expected[1] == came[1]


@pytest.mark.parametrize(
    ("cls", "n_workers", "model", "action", "reset_mode", "B"),
    [pytest.param(*case, marks=[] if case in ALWAYS else [pytest.mark.slow]) for case in GRID],
)
def test_batches_equal_those_of_the_serial_sampler(
    cls: type[BaseSampler], n_workers: int, model: str, action: str, reset_mode: str, B: int
) -> None:
    assert_same(reference(model, action, reset_mode, B), run(cls, model, action, reset_mode, B, n_workers=n_workers))


def test_quick_cases_pair_every_sampler_with_every_setting() -> None:
    wanted = {pair for case in GRID for pair in combinations(enumerate(case), 2) if case[1] in (2, 3)}
    assert {pair for case in ALWAYS for pair in combinations(enumerate(case), 2)} == wanted
    assert len(ALWAYS) < 16


@pytest.mark.parametrize(
    ("cls", "start_method"),
    [
        (AlternatingSampler, "forkserver"),
        pytest.param(GpuSampler, "spawn", marks=pytest.mark.slow),
        pytest.param(GpuSampler, "forkserver", marks=pytest.mark.slow),
        pytest.param(AlternatingSampler, "spawn", marks=pytest.mark.slow),
    ],
)
def test_start_methods_do_not_change_batches(cls: type[BaseSampler], start_method: str) -> None:
    setting = ("LSTM", "discrete", "mid_batch", 5)
    assert_same(reference(*setting), run(cls, *setting, n_workers=2, start_method=start_method))


PASSING = [(SerialSampler, "LSTM", True), (GpuSampler, "MLP", True), (AlternatingSampler, "LSTM", False)]


@pytest.mark.parametrize(
    ("cls", "model", "kept"),
    [
        pytest.param(*case, marks=[] if case in PASSING else [pytest.mark.slow])
        for case in product([SerialSampler, GpuSampler, AlternatingSampler], MODELS, [False, True])
    ],
)
def test_batches_on_a_samples_device_are_equal(
    cls: type[BaseSampler], model: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, `samples_device` uses the same code as on a GPU, without acting plans, which round differently."""
    monkeypatch.setattr(compiled, "acting", SimpleNamespace(LARGEST_PRODUCT=0, ROWS_ARE_INDEPENDENT=False))
    setting = (model, "discrete", "mid_batch", 5)
    options: dict[str, Any] = {"samples_device": "cpu"} if kept else {"device": "cpu"}
    assert_same(run(SerialSampler, *setting), run(cls, *setting, n_workers=2, start_method="fork", **options))


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("cls", [SerialSampler, GpuSampler, AlternatingSampler, NoOverlapAlternatingSampler])
@pytest.mark.parametrize("model", MODELS)
def test_gpu_batches_equal_cpu_batches_up_to_rounding(cls: type[BaseSampler], model: str, kept: bool) -> None:
    setting = (model, "discrete", "mid_batch", 11)
    options: dict[str, Any] = {"samples_device": "cuda:0"} if kept else {"device": "cuda:0"}
    expected = reference(*setting)[0][0][0]
    samples = run(cls, *setting, n_workers=2, **options)[0][0][0]
    for (path, leaf), (_, other) in zip(tree_paths(expected), tree_paths(samples), strict=True):
        assert other.is_cuda == kept, path
        torch.testing.assert_close(leaf, other.cpu(), rtol=1e-3, atol=1e-3, msg=path)
