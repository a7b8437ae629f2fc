"""Greedy evaluation of a checkpoint: `python evaluate.py [checkpoint.pt]`; without one, it trains a little first."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from headrace import Affinity
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.pg import PPO
from headrace.runners import MinibatchRl, RunnerConfig, load_checkpoint
from headrace.samplers import CpuSampler


def train(log_dir: Path) -> Path:
    sampler = CpuSampler("CartPole-v1", batch_T=32, batch_B=32)
    one_thread = Affinity(master_torch_threads=1)  # with a model this small, more threads only wait for each other
    config = RunnerConfig(n_steps=25_000, seed=0)
    MinibatchRl(PPO(), CategoricalPgAgent(), sampler, config, affinity=one_thread, log_dir=log_dir).train()
    return log_dir / "checkpoint.pt"


def evaluate(checkpoint: Path) -> None:
    sampler = CpuSampler(
        "CartPole-v1",
        batch_T=1,  # no batches are collected here
        batch_B=2,
        max_decorrelation_steps=0,
        eval_n_envs=20,
        eval_max_trajectories=20,  # each environment plays one episode, and all of them count
    )
    agent = CategoricalPgAgent()
    with sampler.initialize(agent, seed=1):  # builds the model
        agent.load_state_dict(load_checkpoint(checkpoint)["agent"])
        traj_infos = sampler.evaluate_agent(0)
    returns = [info.Return for info in traj_infos]
    print(f"{len(returns)} episodes, mean return {sum(returns) / len(returns):.1f}, least {min(returns):.1f}")


if __name__ == "__main__":  # workers may start by importing this file
    if len(sys.argv) > 1:
        evaluate(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            evaluate(train(Path(directory)))
