"""Modules that only the learner uses: workers act alike without them, and checkpoints contain them."""

import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from headrace.agents.acting import acting_bytes
from headrace.agents.parameters import ParameterSlots
from headrace.algos.flat import FlatParameters
from headrace.buffers.samples import Samples
from headrace.buffers.shared import measure
from headrace.checkpoints.file import load_checkpoint
from headrace.policy import load_agent
from headrace.samplers import AsyncCpuSampler, BaseSampler, CpuSampler, SerialSampler
from headrace.types import EnvSpaces, StepInputs
from tests.actor_critic import CRITIC_WIDTH, DeterministicAgent

ACTOR_ALONE = 3 * 8 + 8 + 8 + 1
CRITIC_BYTES = 4 * 9 * CRITIC_WIDTH
SPACES = EnvSpaces(gym.spaces.Box(-1, 1, (3,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32))


def built() -> DeterministicAgent:
    agent = DeterministicAgent()
    agent.initialize(SPACES, seed=0)
    return agent


def inputs_of(n: int) -> StepInputs:
    zeros = torch.zeros(n)
    return StepInputs(torch.randn(n, 3), torch.zeros(n, 1), zeros, zeros.bool(), torch.rand(n, 1))


def collected(cls: type[BaseSampler]) -> list[Samples]:
    """Three batches; before each, the learner moves all parameters and a buffer."""
    agent = DeterministicAgent()
    sampler = cls("Pendulum-v1", batch_T=4, batch_B=4, n_workers=2, max_decorrelation_steps=0, deterministic=True)
    batches = []
    with sampler.initialize(agent, seed=0):
        for itr in range(3):
            with torch.no_grad():
                for tensor in (*agent.parameters(), *agent.model.buffers()):
                    tensor.mul_(1.1)
            batches.append(sampler.obtain_samples(itr)[0].copy())
    return batches


@pytest.mark.parametrize(
    ("cls", "n_equal"),
    [(CpuSampler, 3), pytest.param(AsyncCpuSampler, 1, marks=pytest.mark.slow)],  # it lags one version behind
)
def test_workers_act_alike_without_the_critic(cls: type[BaseSampler], n_equal: int) -> None:
    here, there = collected(SerialSampler), collected(cls)
    for batch in there:
        assert (batch.agent.agent_info.parameters == ACTOR_ALONE).all()
    for batch, other in zip(here[:n_equal], there, strict=False):
        assert (batch.agent.agent_info.parameters > CRITIC_WIDTH).all()
        assert torch.equal(batch.agent.action, other.agent.action)
        assert torch.equal(batch.env.observation, other.env.observation)


def test_pickled_agent_and_published_memory_do_not_contain_the_critic() -> None:
    agent = built()
    assert len(acting_bytes(agent)) < CRITIC_BYTES < len(pickle.dumps(agent))
    assert measure(partial(ParameterSlots, agent)) < CRITIC_BYTES
    theirs = pickle.loads(acting_bytes(agent))
    for sent in (theirs, pickle.loads(acting_bytes(theirs))):  # a sampler process, and its workers
        for mine, other in zip(agent.acting_state(), sent.acting_state(), strict=True):
            assert torch.equal(mine, other)


def test_trained_agent_is_sent_without_the_vectors_of_its_optimizer() -> None:
    agent = built()
    before = acting_bytes(agent)
    everything = FlatParameters(agent.parameters())
    sent = pickle.loads(acting_bytes(agent))
    assert len(acting_bytes(agent)) < len(before) + 100 < everything.vector.nbytes
    for mine, other in zip(agent.acting_state(), sent.acting_state(), strict=True):
        assert torch.equal(mine, other)
    assert sent.model.actor[0].weight.requires_grad


def test_agent_without_learner_only_sends_all_modules() -> None:
    class Whole(DeterministicAgent):
        learner_only: Sequence[str] = ()

    agent = Whole()
    agent.initialize(SPACES, seed=0)
    everything = [*agent.model.parameters(), *agent.model.buffers()]
    assert len(agent.acting_state()) == len(everything)
    for mine, tensor in zip(agent.acting_state(), everything, strict=True):
        assert mine.data_ptr() == tensor.data_ptr()


def test_worker_that_calls_the_critic_gets_an_explaining_error() -> None:
    agent = pickle.loads(acting_bytes(built()))
    agent.step(inputs_of(2), None)
    with pytest.raises(RuntimeError, match=r"critic is only in the learner's process.*take 'critic' out"):
        agent.value(inputs_of(2), None)


def test_unknown_module_in_learner_only_is_refused() -> None:
    class Misspelt(DeterministicAgent):
        learner_only = ("critics",)

    with pytest.raises(
        ValueError, match=r"Misspelt\.learner_only names critics, and its Model has the modules critic, actor"
    ):
        Misspelt().initialize(SPACES, seed=0)


def test_files_contain_all_modules(tmp_path: Path) -> None:
    agent = built()
    agent.save(tmp_path / "agent.pt")
    assert "critic.hidden.weight" in load_checkpoint(tmp_path / "agent.pt")["agent"]["model"]
    loaded = load_agent(tmp_path / "agent.pt", agent=DeterministicAgent()).agent
    inputs = inputs_of(3)
    assert torch.equal(loaded.value(inputs, None), agent.value(inputs, None))
