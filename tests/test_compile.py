"""Losses that are compiled with torch.compile: the same updates, and nothing imported unless they are asked for."""

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.base import Algo
from headrace.algos.dqn import DQN, CategoricalDQN, CategoricalDQNConfig, DQNConfig
from headrace.algos.pg import A2C, IMPALA, PPO, VPG, A2CConfig, IMPALAConfig, PPOConfig, VPGConfig
from headrace.samplers import SerialSampler

_REPLAY: dict[str, Any] = {"min_steps_learn": 64, "batch_size": 32, "replay_ratio": 2.0, "replay_size": 1000}


def made(name: str, on: bool) -> tuple[Algo, Agent]:
    """Returns an algorithm with compiled losses, or not, and its agent."""
    match name:
        case "ppo":
            return PPO(PPOConfig(compile=on, epochs=2, minibatches=2)), CategoricalPgAgent()
        case "recurrent ppo":
            return PPO(PPOConfig(compile=on, epochs=1)), RecurrentCategoricalPgAgent()
        case "a2c":
            return A2C(A2CConfig(compile=on)), CategoricalPgAgent()
        case "impala":
            return IMPALA(IMPALAConfig(compile=on)), CategoricalPgAgent()
        case "vpg":
            return VPG(VPGConfig(compile=on)), CategoricalPgAgent()
        case "dqn":
            return DQN(DQNConfig(compile=on, **_REPLAY)), DqnAgent()
    return CategoricalDQN(CategoricalDQNConfig(compile=on, **_REPLAY)), CategoricalDqnAgent()


def learned(name: str, on: bool) -> torch.Tensor:
    """Trains for three batches; returns all parameters."""
    algo, agent = made(name, on)
    sampler = SerialSampler("CartPole-v1", batch_T=16, batch_B=8)
    with sampler.initialize(agent, seed=0, bootstrap_value=True):
        algo.initialize(agent, n_itr=3, batch_spec=sampler.batch_spec)
        for itr in range(3):
            samples, _ = sampler.obtain_samples(itr)
            algo.optimize_agent(itr, samples)
    return torch.cat([parameter.detach().flatten() for parameter in agent.parameters()])


@pytest.mark.parametrize(
    "name",
    [
        "ppo",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("a2c", "dqn", "recurrent ppo", "impala", "vpg", "cdqn")),
    ],
)
def test_compiled_losses_give_the_same_parameters(name: str) -> None:
    """In an interpreter of its own, because the compiler leaves processes and threads."""
    done = subprocess.run([sys.executable, __file__, name], check=False, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    difference, n_compiled = done.stdout.split()
    assert float(difference) < 1e-5
    assert int(n_compiled) > 0


def test_dynamo_is_not_imported_unless_losses_are_compiled() -> None:
    program = (
        "import sys\nfrom headrace.runners import MinibatchRl, RunnerConfig, SyncRl\n"
        "from headrace.runners.logging.logger import Logger\nfrom headrace.agents.pg import CategoricalPgAgent\n"
        "from headrace.algos.pg import A2C\nfrom headrace.samplers import SerialSampler\n"
        "sampler = SerialSampler('CartPole-v1', batch_T=4, batch_B=2)\n"
        "SyncRl(A2C(), CategoricalPgAgent(), sampler, RunnerConfig(n_steps=16, seed=0), logger=Logger()).train()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=180)


if __name__ == "__main__":
    plain = learned(sys.argv[1], on=False)
    assert "torch._dynamo" not in sys.modules
    gap = float((learned(sys.argv[1], on=True) - plain).abs().max())
    counters = importlib.import_module("torch._dynamo.utils").counters
    print(gap, counters["stats"]["unique_graphs"])
