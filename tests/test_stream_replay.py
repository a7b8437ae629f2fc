"""A replay and a DQN that are fed by a sample stream become what they become beside the sampler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from headrace.agents.dqn import DqnAgent
from headrace.algos.dqn import DQN, DQNConfig
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_leaves, tree_to_torch
from headrace.replays import ReplayWriter, replay_spec, shared_ring
from headrace.samplers import SerialSampler
from headrace.streams import Appending, IpSampleConsumer, SampleStream, make_consumer, make_producer
from tests.light import Signal
from tests.stream_processes import DEADLINE, process
from tests.test_pg_algos import equal, weights

N = 12
SETTINGS: dict[str, Any] = {
    "batch_size": 32,
    "replay_ratio": 8.0,
    "replay_size": 4000,
    "min_steps_learn": 64,
    "n_step": 1,
    "target_update_interval": 10,
}


def sampler() -> SerialSampler:
    return SerialSampler(Signal, batch_T=8, batch_B=8, max_decorrelation_steps=0)


def batches() -> Iterator[Samples]:
    """Collects with the parameters that an agent begins with, so that the batches do not depend on the learner."""
    with sampler().initialize(DqnAgent(), seed=0) as collecting:
        for itr in range(N):
            yield collecting.obtain_samples(itr)[0]


def act(stream: SampleStream) -> None:
    """The program of the actor."""
    torch.set_num_threads(1)  # first: a fork does not have the threads of its parent
    with make_producer(stream) as producer:
        for version, samples in enumerate(batches()):
            producer.post(samples.numpy(), version)
            producer.flush(DEADLINE)  # before the sampler writes into the memory of the samples again
        assert producer.close(DEADLINE) == 0


class Learner:
    """A DQN; `optimize` takes the next batch."""

    def __init__(self) -> None:
        self._agent = DqnAgent()
        self._algo = DQN(DQNConfig(**SETTINGS))
        with sampler().initialize(self._agent, seed=0) as collecting:
            self._algo.initialize(self._agent, n_itr=N, batch_spec=collecting.batch_spec, seed=0)
        self.infos: list[Any] = []

    def optimize(self, samples: Samples) -> None:
        self.infos.append(self._algo.optimize_agent(len(self.infos), samples))

    def weights(self) -> list[torch.Tensor]:
        return weights(self._agent)


@pytest.mark.parametrize("kind", ["shared_memory", "ip"])
def test_a_replay_and_a_dqn_learn_from_a_stream_what_they_learn_beside_the_sampler(kind: str) -> None:
    if kind == "ip":
        pytest.importorskip("zmq", reason="streams on sockets need pyzmq")
    direct = [samples.copy() for samples in batches()]
    assert sum(int(samples.env.terminated.sum() + samples.env.truncated.sum()) for samples in direct) > 0
    stream = SampleStream(kind, f"dqn-{os.urandom(6).hex()}", address="127.0.0.1:0", example=direct[0].numpy())
    spec = replay_spec(
        direct[0].batch_spec,
        direct[0].numpy().env.observation[0, 0],
        direct[0].numpy().agent.action[0, 0],
        4000,
    )
    (_, of_stream), (_, of_sampler) = shared_ring(spec), shared_ring(spec)
    appending = Appending(ReplayWriter(spec, of_stream).append)
    writer = ReplayWriter(spec, of_sampler)
    streamed, beside = Learner(), Learner()
    before = streamed.weights()
    with make_consumer(stream) as consumer:
        if isinstance(consumer, IpSampleConsumer):
            stream = SampleStream(kind, stream.name, address=consumer.address)
        with process(act, stream) as actor:
            for number in range(N):
                frame: Any = consumer.consume(timeout=DEADLINE)
                assert frame.version == number
                appending.put(frame)
                streamed.optimize(tree_to_torch(frame.tree))
            actor.join(DEADLINE)
            assert actor.exitcode == 0
        assert consumer.counts.lost == consumer.counts.rejected == 0
    for samples in direct:
        writer.append(samples)
        beside.optimize(samples)
    for one, other in zip(tree_leaves(of_stream), tree_leaves(of_sampler), strict=True):
        np.testing.assert_array_equal(one, other)
    assert of_stream.cursor[0] == N * 8
    assert streamed.infos == beside.infos
    assert sum(info != {} for info in streamed.infos) > 0
    assert equal(streamed.weights(), beside.weights())
    assert not equal(before, streamed.weights())
