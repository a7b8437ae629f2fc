"""Algorithms with several optimizers: what each updates, learning rates, and exact resuming."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.agents.dqn import DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.base import Algo
from headrace.algos.dqn import DQN, DQNConfig
from headrace.algos.pg import PPO, PPOConfig
from headrace.buffers.samples import Samples
from headrace.runners import MinibatchRl, RunnerConfig, load_checkpoint
from headrace.runners.logging.logger import Logger
from headrace.samplers import SerialSampler
from headrace.types import BatchSpec
from tests.actor_critic import DeterministicAgent, DeterministicPolicyGradient


def sampler_of(env: str = "Pendulum-v1") -> SerialSampler:
    return SerialSampler(env, batch_T=8, batch_B=4, max_decorrelation_steps=0)


def trained(
    n_itr: int, **options: Any
) -> tuple[DeterministicAgent, DeterministicPolicyGradient, list[dict[str, float]]]:
    agent, algo, infos = DeterministicAgent(), DeterministicPolicyGradient(**options), []
    with sampler_of().initialize(agent, seed=0) as sampler:
        algo.initialize(agent, n_itr=4, batch_spec=sampler.batch_spec)
        for itr in range(n_itr):
            infos.append(algo.optimize_agent(itr, sampler.obtain_samples(itr)[0]))
    return agent, algo, infos


def values(module: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in module.parameters()]


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(map(torch.equal, values(one), values(other)))


def test_each_optimizer_updates_its_own_parameters_at_its_own_rate() -> None:
    agent, algo, infos = trained(3)
    assert [info["actorLearningRate"] for info in infos] == pytest.approx([1e-3, 7.5e-4, 5e-4])
    assert [info["criticLearningRate"] for info in infos] == pytest.approx([1e-2, 7.5e-3, 5e-3])
    assert "learningRate" not in infos[0]
    assert all(math.isfinite(value) for info in infos for value in info.values())
    before = DeterministicAgent()
    assert agent.spaces is not None
    before.initialize(agent.spaces, seed=0)
    for name in ("critic.hidden", "critic.encoder", "actor.2"):
        assert not equal(agent.model.get_submodule(name), before.model.get_submodule(name)), name
        assert not equal(algo._target.model.get_submodule(name), before.model.get_submodule(name)), name
    actor = values(agent.model.actor[2])
    loss = agent.q(algo._replay.sample(4).inputs, torch.zeros(4, 1)).mean()
    algo.optimizers["critic"].backward(loss, 1.0)
    algo.optimizers["critic"].step()
    assert all(map(torch.equal, actor, values(agent.model.actor[2])))


def test_non_finite_loss_is_an_error_without_a_step_of_that_optimizer() -> None:
    agent, algo, _ = trained(1)
    samples = collected(agent)
    samples.env.reward[:] = math.nan
    before = values(agent.model)
    with pytest.raises(FloatingPointError, match=r"DeterministicPolicyGradient: loss=nan.*itr 1, update 8"):
        algo.optimize_agent(1, samples)
    assert all(map(torch.equal, before, values(agent.model)))


def collected(agent: Any, env: str = "Pendulum-v1") -> Samples:
    with sampler_of(env).initialize(agent, seed=0) as sampler:
        return sampler.obtain_samples(0)[0].copy()


def test_run_with_two_optimizers_resumes_exactly(tmp_path: Path) -> None:
    def runner(n_steps: int, **options: Any) -> MinibatchRl:
        config = RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=64)
        algo = DeterministicPolicyGradient(linear_lr_schedule=False)
        return MinibatchRl(algo, DeterministicAgent(), sampler_of(), config, logger=Logger(), **options)

    undisturbed = runner(256)
    undisturbed.train()
    runner(128, log_dir=tmp_path).train()
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert saved["algo"]["optimizer"].keys() == {"critic", "actor"}
    assert "critic.head.weight" in saved["agent"]["model"]
    longer = runner(256, resume_from=tmp_path)
    longer.train()
    assert equal(longer.agent.model, undisturbed.agent.model)
    one, other = longer.algo.optim_state_dict(), undisturbed.algo.optim_state_dict()
    for name in ("critic", "actor"):
        assert torch.equal(one[name]["state"][0]["exp_avg_sq"], other[name]["state"][0]["exp_avg_sq"])


# ---- earlier checkpoints ----


@pytest.mark.parametrize(
    ("agent", "algo"),
    [
        (CategoricalPgAgent, lambda: PPO(PPOConfig(epochs=1))),
        (DqnAgent, lambda: DQN(DQNConfig(batch_size=8, replay_ratio=1, min_steps_learn=1, replay_size=500))),
    ],
    ids=["ppo", "dqn"],
)
def test_unnamed_state_of_a_single_optimizer_is_loaded(agent: Any, algo: Any) -> None:
    def made() -> tuple[Any, Algo, Samples]:
        one, of_one = agent(), algo()
        with sampler_of("CartPole-v1").initialize(one, seed=0, bootstrap_value=of_one.bootstrap_value) as sampler:
            of_one.initialize(one, n_itr=4, batch_spec=sampler.batch_spec)
            return one, of_one, sampler.obtain_samples(0)[0].copy()

    _, first, samples = made()
    first.optimize_agent(0, samples)
    state = copy.deepcopy(first.state_dict())
    expected = state["optimizer"]["agent"]
    state["optimizer"] = expected
    _, again, _ = made()
    again.load_state_dict(state)
    found = again.optim_state_dict()["agent"]
    assert found["state"][0]["step"] == expected["state"][0]["step"] > 0
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(found["state"][0][name], expected["state"][0][name])


def test_state_of_other_optimizers_is_refused() -> None:
    agent, algo = DeterministicAgent(), DeterministicPolicyGradient()
    with sampler_of().initialize(agent, seed=0):
        algo.initialize(agent, n_itr=1, batch_spec=BatchSpec(8, 4))
    state = algo.optim_state_dict()
    for wrong in (
        state["actor"],  # without names, of one of two
        {"actor": state["actor"]},
        {**state, "temperature": state["actor"]},
    ):
        with pytest.raises(ValueError, match="optimizer"):
            algo.load_optim_state_dict(wrong)
    trained(2)[1].load_optim_state_dict(trained(1)[1].optim_state_dict())
    moments = trained(1)[1].optim_state_dict()
    moments["actor"], moments["critic"] = moments["critic"], moments["actor"]
    with pytest.raises(ValueError, match="exp_avg"):
        algo.load_optim_state_dict(moments)


@pytest.mark.parametrize("algo", [PPO(), DQN()], ids=repr)
def test_algorithm_without_agent_says_how_to_initialize_it(algo: Any) -> None:
    samples: Any = None
    with pytest.raises(ValueError, match=r"has no agent yet; call initialize\(agent, n_itr=\.\.\."):
        algo.optimize_agent(0, samples)
