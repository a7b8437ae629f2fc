"""Chunks of actor workers: the same steps as a sampler collects, and the batches that trainers make of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent, RecurrentCategoricalPgAgent
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map, tree_paths
from headrace.envs.factory import EnvFactory
from headrace.processes.status import Status
from headrace.samplers import SerialSampler
from headrace.samplers.inference.spec import slot_spec
from headrace.streams import Frame, decoded, encoded
from headrace.system.acting import Acting, Answer
from headrace.system.chunks import returns_of, samples_of
from headrace.system.policy import Answering
from headrace.system.ring import RemoteSlice, slice_config
from headrace.types import BatchSpec
from tests.environments import Stochastic

T, B, SEED, DISCOUNT = 8, 6, 3, 0.9


def collected(
    env: Any, agent: Agent, widths: int, n_batches: int, bootstrap: bool
) -> list[tuple[Samples, torch.Tensor]]:
    """Returns the batches that a trainer makes of the chunks of B / widths slices, which are answered in turn, and the
    running returns before each.
    """
    factory = EnvFactory.of(env, None)
    slices: list[RemoteSlice] = []
    spec: Any = None
    for first in range(0, B, widths):
        config = slice_config(
            factory,
            range(first, first + widths),
            seed=SEED,
            discount=DISCOUNT,
            env_info_keys={},
            max_decorrelation_steps=20,
        )
        if spec is None:
            with SerialSampler(env, batch_T=T, batch_B=B).initialize(agent, seed=SEED):
                pass
            assert agent.spaces is not None
            spec = slot_spec(agent, agent.spaces, BatchSpec(T, widths), (widths,), {}, bootstrap)
            acting = Acting.of(spec, agent.noise_size, agent.noise_has_env_id)
            answering = Answering(agent, acting)
        slices.append(RemoteSlice(config, acting, Status()))
    agent.sample_mode(0)
    batches = []
    for _ in range(n_batches):
        for one in slices:
            one.begin()
        chunks: dict[int, Any] = {}
        while len(chunks) < len(slices):
            for index, one in enumerate(slices):
                if not one.collecting:
                    continue
                request = tree_map(lambda leaf: np.asarray(leaf)[None].copy(), one.request())
                result: Any = tree_map(lambda leaf: leaf[0], answering.results(request))
                answer = Answer(result["action"], result["agent_info"], result.get("state"), result.get("value"), 0)
                if (complete := one.answer(answer)) is not None:
                    chunk, _ = complete
                    chunks[index] = decoded(
                        [bytes(part) for part in encoded(Frame(chunk))]
                    ).tree  # as the stream transports it
        ordered = [chunks[index] for index in range(len(slices))]
        batches.append((samples_of(ordered, spec.agent_info, spec.state), returns_of(ordered)))
    for one in slices:
        one.close()
    return batches


@pytest.mark.parametrize("widths", [6, 2], ids=["one slice", "three slices"])
@pytest.mark.parametrize(
    ("env", "make", "bootstrap"),
    [
        ("CartPole-v1", CategoricalPgAgent, True),
        (Stochastic, CategoricalPgAgent, False),
        ("Pendulum-v1", GaussianPgAgent, True),
        (Stochastic, RecurrentCategoricalPgAgent, True),
        ("CartPole-v1", lambda: DqnAgent(eps_final_min=0.001), False),
    ],
    ids=["CartPole", "short episodes", "Gaussian", "recurrent", "epsilon of each environment"],
)
def test_chunks_are_the_steps_that_a_serial_sampler_collects(
    env: Any, make: Callable[[], Agent], bootstrap: bool, widths: int
) -> None:
    chunks = collected(env, make(), widths, 3, bootstrap)
    sampler = SerialSampler(env, batch_T=T, batch_B=B, max_decorrelation_steps=20)
    with sampler.initialize(make(), seed=SEED, bootstrap_value=bootstrap):
        running = torch.zeros(B)
        for itr, (batch, returns) in enumerate(chunks):
            torch.testing.assert_close(returns, running)
            for reward, done in zip(batch.env.reward, batch.env.done, strict=True):
                running = (DISCOUNT * running + reward) * ~done
            samples, _ = sampler.obtain_samples(itr)
            expected, found = dict(tree_paths(samples)), dict(tree_paths(batch))
            assert expected.keys() == found.keys()
            for path, leaf in expected.items():
                if path != ".agent.version":
                    torch.testing.assert_close(found[path], leaf, rtol=1e-5, atol=1e-5, msg=path)
