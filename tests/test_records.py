"""Batches keep the values at the time of a step, however environments, agents and statistics reuse memory."""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_paths
from headrace.envs import VectorEnvs
from headrace.samplers import (
    AlternatingSampler,
    AsyncAlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncNoOverlapAlternatingSampler,
    AsyncSerialSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    NoOverlapAlternatingSampler,
    SerialSampler,
    TrajInfo,
)
from tests.aliasing import (
    ACTION_SPACES,
    AGENT_FAULTS,
    ENV_FAULTS,
    Careless,
    CarelessAgent,
    CarelessVector,
    Keeps,
    OverwritesArguments,
    plain,
)
from tests.quick import quick_and_slow

SAMPLERS: list[type[BaseSampler]] = [
    SerialSampler,
    CpuSampler,
    GpuSampler,
    AlternatingSampler,
    NoOverlapAlternatingSampler,
    AsyncSerialSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    AsyncAlternatingSampler,
    AsyncNoOverlapAlternatingSampler,
]
#: Those of the quick suite: one beside the agent, one served, with two groups that share it.
QUICK = [SerialSampler, AlternatingSampler]
MODES = ["scalar", "SAME_STEP", "NEXT_STEP", "DISABLED"]
Run = tuple[list[tuple[Samples, Sequence[TrajInfo]]], list[TrajInfo]]


def run(
    cls: type[BaseSampler],
    mode: str,
    env_fault: str = "",
    agent_fault: str = "",
    action: str = "discrete",
    TrajInfoCls: type[TrajInfo] = Keeps,
    batch_B: int = 5,
    **options: Any,
) -> Run:
    """Some batches, an evaluation, and one batch more."""
    own: dict[str, Any] = {"fault": env_fault, "action_space": ACTION_SPACES[action]}
    make: Any = Careless if mode == "scalar" else VectorEnvs(CarelessVector)
    sampler = cls(
        make,
        own if mode == "scalar" else {**own, "mode": mode},
        batch_T=7,
        batch_B=batch_B,
        n_workers=2,
        eval_n_envs=3,
        eval_max_trajectories=4,
        env_info_keys={"x": ("float32", (2,))},
        TrajInfoCls=TrajInfoCls,
        max_decorrelation_steps=5,
        **options,
    )
    batches: list[tuple[Samples, Sequence[TrajInfo]]] = []
    with sampler.initialize(CarelessAgent(agent_fault), seed=3, bootstrap_value=True):
        for itr in range(3):
            samples, traj_infos = sampler.obtain_samples(itr)
            batches.append((samples.copy(), traj_infos))
            if itr == 1:
                evaluation = sampler.evaluate_agent(itr)
    return batches, evaluation


@cache
def without_faults(cls: type[BaseSampler], mode: str, action: str = "discrete", **options: Any) -> Run:
    return run(cls, mode, action=action, **options)


def assert_same(came: Run, expected: Run) -> None:
    for (samples, traj_infos), (others, other_infos) in zip(came[0], expected[0], strict=True):
        for (path, leaf), (_, other) in zip(tree_paths(samples), tree_paths(others), strict=True):
            assert torch.equal(leaf, other), path
        assert pictures(traj_infos) == pictures(other_infos)
        assert len(samples.final) == len(traj_infos) > 0
    assert pictures(came[1]) == pictures(expected[1])


def pictures(traj_infos: Sequence[TrajInfo]) -> list[Any]:
    return [plain(vars(info)) for info in traj_infos]


def in_quick_suite(cls: type[BaseSampler], *others: bool) -> list[Any]:
    return [] if cls in QUICK and all(others) else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("cls", "mode", "fault"),
    quick_and_slow(
        product(SAMPLERS, MODES, ENV_FAULTS),
        [
            *((SerialSampler, "scalar", fault) for fault in ENV_FAULTS),
            *((SerialSampler, mode, "scribbles") for mode in MODES[1:]),
            (AlternatingSampler, "scalar", "scribbles"),
        ],
    ),
)
def test_environment_may_reuse_its_arrays_and_write_into_its_actions(cls: Any, mode: str, fault: str) -> None:
    assert_same(run(cls, mode, env_fault=fault), without_faults(cls, mode))


@pytest.mark.parametrize(
    ("cls", "action", "mode", "fault"),
    [
        pytest.param(cls, action, mode, fault, marks=in_quick_suite(cls, mode == "scalar"))
        for cls in (SerialSampler, CpuSampler, GpuSampler)
        for action in ACTION_SPACES
        for mode in MODES[:2]
        for fault in ("scribbles", "writes")
    ],
)
def test_actions_are_recorded_unchanged_in_every_space(cls: Any, action: str, mode: str, fault: str) -> None:
    assert_same(run(cls, mode, env_fault=fault, action=action), without_faults(cls, mode, action))


@pytest.mark.parametrize(
    ("cls", "fault"),
    [
        pytest.param(cls, fault, marks=in_quick_suite(cls, cls is SerialSampler or fault == "scribbles"))
        for cls in SAMPLERS
        for fault in AGENT_FAULTS
    ],
)
def test_agent_may_reuse_its_tensors(cls: Any, fault: str) -> None:
    assert_same(run(cls, "scalar", agent_fault=fault, action="dict"), without_faults(cls, "scalar", "dict"))


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[] if fault == "scribbles" else [pytest.mark.slow]) for fault in AGENT_FAULTS]
)
def test_agent_may_reuse_its_tensors_with_deterministic(fault: str) -> None:
    """40 rows are two calls of the agent."""
    options: dict[str, Any] = {"deterministic": True, "batch_B": 40}
    assert_same(
        run(SerialSampler, "scalar", agent_fault=fault, **options), without_faults(SerialSampler, "scalar", **options)
    )


@pytest.mark.parametrize(
    ("cls", "mode"),
    [
        pytest.param(
            cls, mode, marks=in_quick_suite(cls, mode == "scalar" or (cls is SerialSampler and mode == "NEXT_STEP"))
        )
        for cls in SAMPLERS
        for mode in MODES
    ],
)
def test_traj_info_may_write_into_its_arguments(cls: Any, mode: str) -> None:
    assert_same(run(cls, mode, TrajInfoCls=OverwritesArguments), without_faults(cls, mode))
