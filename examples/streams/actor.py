"""Steps CartPole environments: asks the policy server for actions, and posts samples to the learner.

    python examples/streams/actor.py [--over zmq]

Start it in a terminal of its own, as many times as you like; see policy_server.py and learner.py.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Any

import gymnasium as gym
import numpy as np
from common import ENV, Run, T, example_sample

from headrace.buffers import tree_map
from headrace.errors import StreamError
from headrace.streams import Lease

N_ENVS = 32
EXAMPLE = example_sample()


class Actor:
    """One environment, and the sample that it is collecting."""

    def __init__(self, number: int) -> None:
        self.env = gym.make(ENV)
        self.observation, _ = self.env.reset(seed=os.getpid() * N_ENVS + number)
        self.lease: Lease | None = None
        self.version = 0

    def start(self, lease: Lease) -> None:
        self.lease, self.t, self.sample = lease, 0, tree_map(np.zeros_like, EXAMPLE)
        self.sample["observation"][0] = self.observation

    def step(self, result: Any, version: int) -> bool:
        """Takes one step; returns whether the sample is complete."""
        sample, t = self.sample, self.t
        observation, reward, terminated, truncated, _ = self.env.step(result["action"])
        for key in ("action", "logits", "value"):
            sample[key][t] = result[key]
        sample["reward"][t], sample["terminated"][t], sample["truncated"][t] = reward, terminated, truncated
        if terminated or truncated:
            sample["final_observation"][t] = observation
            observation, _ = self.env.reset()
        self.version = version if t == 0 else min(self.version, version)
        self.observation = sample["observation"][t + 1] = observation
        self.t += 1
        return self.t == T


def main() -> None:
    run = Run.from_arguments("actor", __doc__)
    actors = [Actor(number) for number in range(N_ENVS)]
    with ExitStack() as stack:
        client, producer = stack.enter_context(run.client()), stack.enter_context(run.producer())
        gate = run.gate()
        stack.enter_context(gate)
        indices = [client.register_agent() for _ in actors]
        while True:
            for actor in actors:
                if actor.lease is None and (lease := gate.may_start()) is not None:
                    actor.start(lease)
            running = [index for index, actor in enumerate(actors) if actor.lease is not None]
            ids = [client.post_request({"observation": actors[index].observation}, indices[index]) for index in running]
            client.flush()
            client.wait(ids)
            for index, result in zip(running, client.consume_result(ids), strict=True):
                actor = actors[index]
                if actor.step(result.value, result.policy_version):
                    assert actor.lease is not None
                    if gate.finish(actor.lease):  # else it took too long, and another sample was started in its place
                        producer.post(actor.sample, actor.version)
                    actor.lease = None
            producer.flush()
            if not running:  # samples enough wait for the learner
                time.sleep(0.002)


if __name__ == "__main__":
    try:
        main()
    except StreamError as error:  # the learner has finished
        print(f"actor: {error}")
