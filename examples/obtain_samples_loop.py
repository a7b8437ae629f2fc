"""The plain loop: batches from obtain_samples(), the loss and the optimizer written out."""

from __future__ import annotations

import sys

import torch

from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.returns import final_values, generalized_advantages
from headrace.samplers import CpuSampler
from headrace.types import StepInputs


def main(n_itr: int = 120) -> None:
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other
    sampler = CpuSampler("CartPole-v1", batch_T=16, batch_B=32)
    agent = CategoricalPgAgent()
    with sampler.initialize(agent, seed=0, bootstrap_value=True):  # starts the workers, builds the model
        optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
        for itr in range(n_itr):
            samples, traj_infos = sampler.obtain_samples(itr)  # views [T, B], good until the next call
            env, acted = samples.env, samples.agent
            assert acted.bootstrap_value is not None  # was asked for above

            advantage, returns = generalized_advantages(
                env.reward,
                acted.agent_info.value,
                env.terminated,  # nothing follows: 0
                env.truncated,  # cut short: V of the true final observation
                acted.bootstrap_value,  # goes on in the next batch: V of row T
                final_values(agent, samples),
                discount=0.99,
                gae_lambda=0.95,
            )
            advantage = (advantage - advantage.mean()) / advantage.std()

            agent.train_mode(itr)
            outputs = agent(StepInputs(env.observation, acted.prev_action, env.prev_reward, env.is_first))
            policy_loss = -(outputs.dist.log_prob(acted.action) * advantage).mean()
            value_loss = (outputs.value - returns).square().mean()
            loss = policy_loss + 0.01 * value_loss - 0.01 * outputs.dist.entropy().mean()

            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()

            if itr % 40 == 39 and traj_infos:
                mean = sum(info.Return for info in traj_infos) / len(traj_infos)
                print(f"itr {itr + 1}: {len(traj_infos)} episodes ended, mean return {mean:.1f}")
        print(sampler.timing())


if __name__ == "__main__":  # workers may start by importing this file
    main(*map(int, sys.argv[1:]))
