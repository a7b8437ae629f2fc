"""REINFORCE with a baseline on batches of whole episodes: `python whole_episodes.py [seed] [number of batches]`."""

from __future__ import annotations

import sys

import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import VPG
from headrace.samplers import CpuSampler


def main(seed: int = 0, n_itr: int = 75) -> None:
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other
    agent, algo = CategoricalPgAgent(model_kwargs={"separate_value": True}), VPG()
    sampler = CpuSampler(
        "CartPole-v1",
        batch_T=500,  # no episode is longer, so each of the 8 environments plays one from start to end
        batch_B=8,
        reset_mode="wait",  # what follows an episode is padding, `samples.env.valid` is False there
        max_decorrelation_steps=0,  # the first batch begins at the start of episodes, too
        eval_n_envs=50,
        eval_max_trajectories=100,
    )
    steps = 0
    with sampler.initialize(agent, seed=seed, bootstrap_value=True):
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec, seed=seed)
        for itr in range(n_itr):
            samples, traj_infos = sampler.obtain_samples(itr)
            opt_info = algo.optimize_agent(itr, samples)
            steps += sum(info.Length for info in traj_infos)
            if itr % 5 == 4:
                mean = sum(info.Return for info in traj_infos) / len(traj_infos)
                print(f"{steps:7,} steps: mean return {mean:5.1f}, entropy {opt_info['entropy']:.2f}")
        returns = [info.Return for info in sampler.evaluate_agent(n_itr)]
    print(f"greedy: mean return {sum(returns) / len(returns):.1f} over {len(returns)} episodes")


if __name__ == "__main__":  # workers may start by importing this file
    main(*map(int, sys.argv[1:]))
