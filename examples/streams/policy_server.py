"""Computes the actions of all actors, with the latest parameters that the learner has pushed.

python examples/streams/policy_server.py [--over zmq]
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from common import ENV, NAME, Run

from headrace.agents.pg import CategoricalPgAgent
from headrace.types import EnvSpaces, StepInputs


def main() -> None:
    run = Run.from_arguments("policy", __doc__)
    torch.set_num_threads(1)
    env = gym.make(ENV)
    agent = CategoricalPgAgent(model_kwargs={"separate_value": True})
    agent.initialize(EnvSpaces(env.observation_space, env.action_space), seed=0)
    agent.sample_mode(0)
    noise = np.random.default_rng()
    with run.parameters() as database, run.server() as server:
        version = -1
        while True:
            if version < 0 or database.version_of(NAME, "latest") != version:
                entry = database.entry(NAME, block=True, timeout=300, mode="torch")
                agent.load_state_dict(entry.parameters)
                version = entry.version
            batch = server.poll_requests(timeout=1.0)
            if not len(batch):
                if database.has_tag(NAME, "finished"):
                    break
                continue
            n = len(batch)
            inputs = StepInputs(
                observation=torch.from_numpy(batch.requests["observation"]),
                prev_action=torch.zeros(n, dtype=torch.int64),  # this model does not read them
                prev_reward=torch.zeros(n),
                is_first=torch.zeros(n, dtype=torch.bool),
                noise=torch.from_numpy(noise.uniform(1e-7, 1 - 1e-7, (n, agent.noise_size)).astype(np.float32)),
            )
            with torch.no_grad():
                step = agent.step(inputs, None)
            results = {
                "action": step.action.numpy(),
                "logits": step.agent_info.dist.logits.numpy(),
                "value": step.agent_info.value.numpy(),
            }
            server.respond(batch, results, NAME, version)


if __name__ == "__main__":
    main()
