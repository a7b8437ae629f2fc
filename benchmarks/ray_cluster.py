"""PPO on CartPole-v1 with a `RayBatchSampler` on a cluster of two nodes, both of this machine, of one CPU each.

    python benchmarks/ray_cluster.py [seed] [steps]

Each node has room for one actor, so both are used. Several machines differ only in how the cluster is started; see
docs/howto/ray.md.
"""

from __future__ import annotations

import os
import sys
from typing import Any

STORE = 80 * 2**20


def main(seed: int = 0, n_steps: int = 100_000) -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    from headrace.agents.pg import CategoricalPgAgent
    from headrace.algos.pg import PPO
    from headrace.processes import RayActors, RayCluster
    from headrace.runners import MinibatchRl, RunnerConfig
    from headrace.runners.logging import Logger
    from headrace.samplers import RayBatchSampler, SerialSampler

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        agent = CategoricalPgAgent()
        sampler = RayBatchSampler(
            "CartPole-v1",
            batch_T=128,
            batch_B=16,
            cluster=RayCluster(address=cluster.address),
            actors=RayActors(placement="SPREAD"),
        )
        config = RunnerConfig(n_steps=n_steps, seed=seed, log_interval_steps=n_steps // 10)
        MinibatchRl(PPO(), agent, sampler, config, logger=Logger()).train()
    finally:
        cluster.shutdown()
    evaluation = SerialSampler("CartPole-v1", batch_T=1, batch_B=1, eval_n_envs=50, eval_max_trajectories=100)
    with evaluation.initialize(agent, seed=seed):
        returns = [info.Return for info in evaluation.evaluate_agent(0)]
    print(f"greedy: mean return {sum(returns) / len(returns):.1f} over {len(returns)} episodes")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
