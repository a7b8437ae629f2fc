"""`state_interval`: recurrent states recorded every k time steps, alike in every sampler."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_paths
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
)
from headrace.types import AgentStep, BatchSpec, EnvSpaces, StepInputs
from tests.environments import Varied
from tests.leftovers import DEADLINE

SPACES = {
    "observation_space": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "action_space": spaces.Discrete(3),
}
OTHERS = [
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


@dataclass
class Entering:
    """The state that the agent was given, recorded in every row."""

    state: Any


class Sums(Agent):
    """Sums what it saw of an episode; does not look at `is_first` itself, and reuses the memory of its state."""

    noise_size = 1

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    def initial_state(self, n: int) -> Any:
        return {"count": torch.zeros(n), "sum": (torch.zeros(n, 3),)}

    def step(self, inputs: StepInputs, state: Any) -> AgentStep:
        info = Entering({"count": state["count"].clone(), "sum": (state["sum"][0].clone(),)})
        state["count"].add_(1)
        state["sum"][0].add_(inputs.observation)
        return AgentStep((inputs.noise[:, 0] * 3).long(), info, state)

    def value(self, inputs: StepInputs, state: Any) -> torch.Tensor:
        return inputs.noise[:, 0] * 0

    def __call__(self, inputs: StepInputs, state: Any = None) -> Any:
        raise NotImplementedError


def batches(
    cls: type[BaseSampler], agent: Callable[[], Agent] = Sums, B: int = 5, itrs: int = 3, **options: Any
) -> list[Samples]:
    sampler = cls(Varied, SPACES, batch_T=12, batch_B=B, max_decorrelation_steps=9, timeout=DEADLINE, **options)
    with sampler.initialize(agent(), seed=5):
        assert sampler.batch_spec == BatchSpec(12, B, options.get("state_interval"))
        return [sampler.obtain_samples(itr)[0].copy() for itr in range(itrs)]


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("k", [1, 3, 4, 12])
def test_states_are_those_that_entered_every_kth_row(k: int, reset_mode: str) -> None:
    remembered = fresh = False
    for samples in batches(SerialSampler, state_interval=k, reset_mode=reset_mode, itrs=6):
        recorded = [leaf for _, leaf in tree_paths(samples.agent.state)]
        entered = [leaf for _, leaf in tree_paths(samples.agent.agent_info.state)]
        for leaf, every_row in zip(recorded, entered, strict=True):
            assert torch.equal(leaf, every_row[::k])
            assert not leaf[samples.env.is_first[::k]].any()
        remembered = remembered or any(bool(leaf.any()) for leaf in recorded)
        fresh = fresh or bool(samples.env.is_first[::k].any())
        assert samples.batch_spec == BatchSpec(12, 5, k)
    assert fresh
    assert remembered or (k, reset_mode) == (12, "wait")  # every batch begins with new episodes


@pytest.mark.parametrize("cls", OTHERS)
def test_every_sampler_records_the_same_states(cls: type[BaseSampler]) -> None:
    own: dict[str, Any] = {} if "Serial" in cls.__name__ else {"n_workers": 2}
    expected, found = batches(SerialSampler, state_interval=4), batches(cls, state_interval=4, **own)
    for samples, others in zip(expected, found, strict=True):
        assert [path for path, _ in tree_paths(samples)] == [path for path, _ in tree_paths(others)]
        for (path, leaf), (_, other) in zip(tree_paths(samples), tree_paths(others), strict=True):
            assert torch.equal(leaf, other) or path == ".agent.version", path  # of async ones, it lags by a batch


def test_columns_of_samples_have_their_states() -> None:
    (samples,) = batches(SerialSampler, state_interval=4, itrs=1)
    part = samples[:, 1:3]
    assert torch.equal(part.agent.state["count"], samples.agent.state["count"][:, 1:3])
    assert torch.equal(samples.agent[2].state["count"], samples.agent.state["count"]), "they have no row of their own"
    assert np.shares_memory(samples.numpy().agent.state["count"], samples.agent.state["count"].numpy())


def test_without_the_option_or_a_memory_there_are_no_states() -> None:
    (samples,) = batches(SerialSampler, itrs=1)
    assert samples.agent.state is None
    assert samples.batch_spec.n_states == 0
    (samples,) = batches(SerialSampler, CategoricalPgAgent, state_interval=4, itrs=1)
    assert samples.agent.state is None


@pytest.mark.parametrize("cls", [SerialSampler, AsyncGpuSampler])
@pytest.mark.parametrize(
    ("k", "error", "says"),
    [
        (5, ValueError, "state_interval must divide batch_T.*state_interval=5 and batch_T=12"),
        (24, ValueError, "state_interval=24 and batch_T=12"),
        (0, ValueError, "state_interval must be at least 1, got 0"),
        (2.5, TypeError, "state_interval must be a whole number, got float 2.5"),
    ],
)
def test_other_intervals_are_refused_at_construction(
    cls: type[BaseSampler], k: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        cls(Varied, batch_T=12, batch_B=5, state_interval=k)
