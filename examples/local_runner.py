"""VPG or PPO on whole episodes: `python local_runner.py [local|processes|ray] [seed] [epochs] [vpg|ppo]`."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import torch
from typing_extensions import override

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import PPO, VPG
from headrace.runners import EpisodeAlgo, LocalRunner
from headrace.runners.logging import Logger
from headrace.samplers import LocalSampler, MultiprocessingSampler, RaySampler, SerialSampler, VecWorker
from headrace.samplers.episodes import EpisodeBatch

SAMPLERS: dict[str, Any] = {"local": LocalSampler, "processes": MultiprocessingSampler, "ray": RaySampler}
ALGOS: dict[str, Any] = {"vpg": VPG, "ppo": PPO}


class Runner(LocalRunner):
    """Prints what tells whether two runs had the same episodes in their first epoch."""

    @override
    def obtain_episodes(
        self, itr: int | None = None, batch_size: int | None = None, agent_update: Any = None, env_update: Any = None
    ) -> EpisodeBatch:
        episodes = super().obtain_episodes(itr, batch_size, agent_update, env_update)
        if not self.step_itr:
            content = b"".join(leaf.tobytes() for leaf in (episodes.observations, episodes.actions, episodes.lengths))
            print("first epoch:", len(episodes), "episodes,", hashlib.sha256(content).hexdigest()[:16])
        return episodes


def main(sampler: str = "local", seed: str = "0", n_epochs: str = "75", algo: str = "vpg") -> None:
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other
    agent = CategoricalPgAgent(model_kwargs={"separate_value": True})
    runner = Runner(seed=int(seed), logger=Logger())
    runner.setup(
        EpisodeAlgo(ALGOS[algo](), agent),
        "CartPole-v1",
        sampler_cls=SAMPLERS[sampler],
        sampler_args={"deterministic": True},
        n_workers=2,
        worker_class=VecWorker,
    )
    mean_return = runner.train(int(n_epochs), batch_size=3_000)
    print(f"{runner.total_env_steps:,} steps: mean return of the last epoch {mean_return:.1f}")
    evaluation = SerialSampler("CartPole-v1", batch_T=1, batch_B=1, eval_n_envs=50, eval_max_trajectories=100)
    with evaluation.initialize(agent, seed=int(seed)):
        returns = [info.Return for info in evaluation.evaluate_agent(0)]
    print(f"greedy: mean return {sum(returns) / len(returns):.1f} over {len(returns)} episodes")


if __name__ == "__main__":  # workers may start by importing this file
    main(*sys.argv[1:])
