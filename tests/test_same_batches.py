"""The same seed gives the same batches for every sampler, number of workers and start method."""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_leaves, tree_paths
from headrace.samplers import AsyncCpuSampler, BaseSampler, CpuSampler, SerialSampler, TrajInfo
from headrace.types import EnvSpaces
from tests.quick import quick_and_slow
from tests.walk import Walk

BATCHES = 4
Run = tuple[list[tuple[Samples, Sequence[TrajInfo]]], list[list[TrajInfo]]]


def run(cls: type[BaseSampler], batch_B: int = 7, **options: Any) -> Run:
    """Some batches and evaluations, with parameters that change between them as an optimizer would change them."""
    agent = CategoricalPgAgent()
    sampler = cls(
        Walk,
        batch_T=20,
        batch_B=batch_B,
        eval_n_envs=3,
        eval_max_trajectories=5,
        env_info_keys={"n": ("int32", ())},
        **options,
    )
    batches, evaluations = [], []
    with sampler.initialize(agent, seed=3, bootstrap_value=True, traj_info_kwargs={"discount": 0.9}):
        for itr in range(BATCHES):
            samples, traj_infos = sampler.obtain_samples(itr)
            batches.append((samples.copy(), traj_infos))
            with torch.no_grad():
                for parameter in agent.parameters():
                    wave = torch.sin(torch.arange(parameter.numel()) + float(itr)).reshape(parameter.shape)
                    parameter.add_(0.02 * wave)
            if itr % 2:
                evaluations.append(sampler.evaluate_agent(itr))
    return batches, evaluations


def assert_equal(first: Run, second: Run, tolerance: float = 0.0) -> None:
    for (samples, traj_infos), (others, other_infos) in zip(first[0], second[0], strict=True):
        for (path, leaf), (_, other) in zip(tree_paths(samples), tree_paths(others), strict=True):
            assert leaf.dtype == other.dtype
            assert leaf.shape == other.shape, path
            if tolerance and leaf.dtype.is_floating_point:
                torch.testing.assert_close(leaf, other, rtol=0, atol=tolerance, msg=path)
            else:
                assert torch.equal(leaf, other), path
        assert [info.Length for info in traj_infos] == [info.Length for info in other_infos]
        if not tolerance:
            assert traj_infos == other_infos
    if not tolerance:
        assert first[1] == second[1]


@cache
def reference(reset_mode: str) -> Run:
    result = run(SerialSampler, reset_mode=reset_mode, deterministic=True)
    batches, evaluations = result
    ends = torch.cat([samples.env.done.flatten() for samples, _ in batches]).sum()
    terminated = torch.cat([samples.env.terminated.flatten() for samples, _ in batches]).sum()
    assert ends > terminated > 0  # both kinds of end occur, or the comparison would show little
    assert len(evaluations[0]) == 6
    return result


METHODS = ["fork", "forkserver", "spawn"]
QUICK = [("mid_batch", 3, "fork"), ("wait", 3, "fork")]


@pytest.mark.parametrize(
    ("reset_mode", "n_workers", "start_method"),
    [
        pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow])
        for case in product(["mid_batch", "wait"], [1, 2, 3, 4], METHODS)
    ],
)
def test_deterministic_batches_are_equal_bit_for_bit(reset_mode: str, n_workers: int, start_method: str) -> None:
    result = run(CpuSampler, reset_mode=reset_mode, deterministic=True, n_workers=n_workers, start_method=start_method)
    assert_equal(reference(reset_mode), result)


@pytest.mark.parametrize(
    ("reset_mode", "n_workers"),
    [
        ("mid_batch", 3),
        ("wait", 2),
        pytest.param("mid_batch", 2, marks=pytest.mark.slow),
        pytest.param("wait", 3, marks=pytest.mark.slow),
    ],
)
def test_batches_are_equal_up_to_rounding_of_inference_by_default(reset_mode: str, n_workers: int) -> None:
    assert_equal(
        run(SerialSampler, reset_mode=reset_mode),
        run(CpuSampler, reset_mode=reset_mode, n_workers=n_workers, start_method="fork"),
        tolerance=2e-6,
    )


def test_the_rank_shifts_the_environments() -> None:
    """Two samplers with four environments each equal one with eight."""
    whole = one_batch(batch_B=8)
    parts = [one_batch(batch_B=4, rank=rank, world_size=2) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        columns = whole[:, 4 * rank : 4 * rank + 4]
        for (path, leaf), (_, other) in zip(tree_paths(columns), tree_paths(part), strict=True):
            assert torch.equal(leaf, other), path


def one_batch(batch_B: int, **options: Any) -> Samples:
    sampler = SerialSampler(Walk, batch_T=20, batch_B=batch_B, deterministic=True)
    with sampler.initialize(CategoricalPgAgent(), seed=3, **options):
        samples, _ = sampler.obtain_samples(0)
        return samples.copy()


@pytest.mark.parametrize(
    ("cls", "reset_mode"),
    quick_and_slow(
        product([SerialSampler, CpuSampler], ["mid_batch", "wait"]),
        [(SerialSampler, "mid_batch"), (CpuSampler, "wait")],
    ),
)
def test_every_cell_is_written_in_every_batch(cls: type[BaseSampler], reset_mode: str) -> None:
    """Slots are reused: a cell that is not written has the value of an earlier batch."""
    expected = run(cls, reset_mode=reset_mode, n_workers=2, deterministic=True)[0]
    sampler = cls(
        Walk,
        batch_T=20,
        batch_B=7,
        eval_n_envs=3,
        eval_max_trajectories=5,
        env_info_keys={"n": ("int32", ())},
        reset_mode=reset_mode,
        n_workers=2,
        deterministic=True,
    )
    agent = CategoricalPgAgent()
    with sampler.initialize(agent, seed=3, bootstrap_value=True, traj_info_kwargs={"discount": 0.9}):
        assert sampler._slots is not None
        for leaf in tree_leaves(sampler._slots.all[0]):
            leaf.view(np.uint8)[...] = 0xAB
        samples, _ = sampler.obtain_samples(0)
        for (path, leaf), (_, other) in zip(tree_paths(expected[0][0]), tree_paths(samples), strict=True):
            assert torch.equal(leaf, other), path


def test_two_samplers_at_once_do_not_affect_each_other() -> None:
    alone = one_batch(batch_B=4)
    options: dict[str, Any] = {"batch_T": 20, "batch_B": 4, "deterministic": True, "n_workers": 2}
    with (
        CpuSampler(Walk, **options).initialize(CategoricalPgAgent(), seed=3) as first,
        CpuSampler(Walk, **options).initialize(CategoricalPgAgent(), seed=3) as second,
    ):
        for sampler in (first, second):
            samples, _ = sampler.obtain_samples(0)
            for (path, leaf), (_, other) in zip(tree_paths(alone), tree_paths(samples), strict=True):
                assert torch.equal(leaf, other), path


# ---- what a model has besides parameters ----


class Warmed(torch.nn.Module):
    """A model with weights that two layers share, a non-persistent buffer, and a state that is not a tensor."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.heads = torch.nn.Linear(3, n_outputs + 1)
        self.register_buffer("temperature", torch.ones(()), persistent=False)

    def get_extra_state(self) -> dict[str, int]:
        return {"day": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"day": 3}

    def forward(self, observation: Any, prev_action: Any, prev_reward: Any) -> Any:
        out = self.heads(torch.tanh(self.second(torch.tanh(self.first(observation.float())))))
        return out[..., :-1] / self.temperature, out[..., -1]


@pytest.mark.parametrize(("cls", "lag"), [(CpuSampler, 0), (AsyncCpuSampler, 1)])
def test_workers_get_all_parameters_and_buffers_that_affect_actions(cls: type[BaseSampler], lag: int) -> None:
    found = []
    cases: list[tuple[type[BaseSampler], int, dict[str, Any]]] = [(SerialSampler, lag, {}), (cls, 0, {"n_workers": 2})]
    for one, later, options in cases:
        agent = CategoricalPgAgent(ModelCls=Warmed)
        sampler = one(Walk, batch_T=6, batch_B=4, deterministic=True, **options)
        with sampler.initialize(agent, seed=3):
            batches = []
            for itr in range(4):
                agent.model.get_buffer("temperature").fill_(3.0 ** max(itr - later, 0))
                batches.append(sampler.obtain_samples(itr)[0].copy())
            found.append(batches)
    for mine, theirs in zip(*found, strict=True):
        for (path, leaf), (_, other) in zip(
            tree_paths(mine.agent.agent_info), tree_paths(theirs.agent.agent_info), strict=True
        ):
            assert torch.equal(leaf, other), path
