"""Learns from the samples of all actors, and pushes parameters to a database. Start it first, in a terminal of its own.

python examples/streams/learner.py [--over zmq]
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import ENV, MAX_STALENESS, NAME, B, Run, T

from headrace import BatchSpec
from headrace.agents.pg import CategoricalPgAgent, PgInfo
from headrace.algos.pg import IMPALA, IMPALAConfig
from headrace.buffers import AgentSamples, EnvSamples, Final, Samples
from headrace.distributions import Categorical
from headrace.samplers import SerialSampler
from headrace.streams import Admission, AdmissionServer, SampleBatch
from headrace.types import EnvSpaces

REWARD_SCALE = 0.05  # values of up to 100 / 20 are learned faster


def samples_of(batch: SampleBatch) -> Samples:
    """Returns what the algorithm learns from; the columns are samples of different environments."""
    tree: Any = {key: torch.from_numpy(leaf) for key, leaf in batch.tree.items()}
    done = tree["terminated"] | tree["truncated"]
    none = torch.zeros(1, B, dtype=torch.bool)
    is_first = torch.cat([none, done[:-1]])
    reward = tree["reward"] * REWARD_SCALE
    nothing = torch.zeros(T, B)
    ends = done.nonzero().T
    env = EnvSamples(
        observation=tree["observation"][:-1],
        is_first=is_first,
        prev_reward=nothing,
        reward=reward,
        terminated=tree["terminated"],
        truncated=tree["truncated"],
        valid=torch.ones_like(done),
        env_info=None,
        last_observation=tree["observation"][-1:],
    )
    agent = AgentSamples(
        action=tree["action"],
        prev_action=torch.zeros_like(tree["action"]),
        agent_info=PgInfo(Categorical(tree["logits"]), tree["value"]),
        version=torch.from_numpy(batch.versions.astype(np.int32)).expand(T, B),
        bootstrap_value=None,
        first_state=None,
        last_state=None,
    )
    final = Final(
        time=ends[0],
        column=ends[1],
        observation=tree["final_observation"][done],
        prev_action=tree["action"][done],
        prev_reward=reward[done],
        state=None,
    )
    return Samples(agent, env, final)


def main() -> None:
    run = Run.from_arguments("learner", __doc__)
    n_updates = run.n_steps // (T * B)
    torch.set_num_threads(1)
    env = gym.make(ENV)
    agent = CategoricalPgAgent(model_kwargs={"separate_value": True})
    agent.initialize(EnvSpaces(env.observation_space, env.action_space), seed=0)
    algo = IMPALA(IMPALAConfig(normalize_reward=False))
    algo.initialize(agent, n_itr=n_updates, batch_spec=BatchSpec(T, B))
    with ExitStack() as stack:
        database = stack.enter_context(run.parameters())
        database.clear(NAME)
        consumer = stack.enter_context(run.consumer())
        admission = stack.enter_context(
            Admission(MAX_STALENESS, B, name=run.name if run.over == "shared_memory" else None)
        )
        if run.over == "zmq":
            server = stack.enter_context(AdmissionServer(admission, keys=run.keys("learner"), allowed=run.allowed()))
            names = stack.enter_context(run.names())
            names.add(f"{run.name}/admission", server.address, keepalive_ttl=5, replace=True)
        database.push(NAME, agent.state_dict(), 0)
        begin = time.monotonic()
        for itr in range(n_updates):
            batch = consumer.consume(timeout=300)
            assert isinstance(batch, SampleBatch)
            admission.used(batch)
            algo.optimize_agent(itr, samples_of(batch))
            database.push(NAME, agent.state_dict(), itr + 1)
            database.gc(NAME, 3)
            admission.advance(itr + 1)
            if (itr + 1) % 200 == 0:
                seconds = time.monotonic() - begin
                print(f"{(itr + 1) * T * B:,} steps, {(itr + 1) * T * B / seconds:,.0f} steps/s, {admission.counts}")
        database.tag(NAME, n_updates, "finished")
        print("ages of the samples:", dict(sorted(admission.ages.items())))
    evaluation = SerialSampler(ENV, batch_T=1, batch_B=1, eval_n_envs=50, eval_max_trajectories=100)
    with evaluation.initialize(agent, seed=0):
        returns = [info.Return for info in evaluation.evaluate_agent(0)]
    print(f"greedy: mean return {np.mean(returns):.1f} over {len(returns)} episodes")


if __name__ == "__main__":
    main()
