"""What a runner is given is checked before anything starts, and the error says what stands where."""

from collections.abc import Callable
from typing import Any

import pytest

from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.dqn import DQN, CategoricalDQN
from headrace.algos.pg import A2C, IMPALA, PPO, VPG
from headrace.runners import AsyncRl, MinibatchRl, MinibatchRlEval, RunnerConfig
from headrace.samplers import SerialSampler
from tests.walk import Walk

SAMPLER = SerialSampler(Walk, batch_T=2, batch_B=2)
CONFIG = RunnerConfig(n_steps=8, seed=0)


def refused(runner: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    with pytest.raises(TypeError) as caught:
        runner(*arguments, **more)
    return str(caught.value)


@pytest.mark.parametrize("algo", [PPO(), A2C(), IMPALA(), VPG()], ids=repr)
@pytest.mark.parametrize("agent", [DqnAgent(), CategoricalDqnAgent()], ids=repr)
def test_an_algorithm_with_a_policy_names_the_agents_that_have_one(algo: Any, agent: Any) -> None:
    says = refused(MinibatchRl, algo, agent, SAMPLER, CONFIG)
    assert f"{type(algo).__name__} trains an agent with a policy and a value, got a {type(agent).__name__}" in says
    assert "use a CategoricalPgAgent (GaussianPgAgent for Box actions), or DQN" in says
    with pytest.raises(TypeError, match="with a policy and a value"):
        algo.initialize(agent, n_itr=1, batch_spec=SAMPLER.batch_spec)


@pytest.mark.parametrize("runner", [MinibatchRl, MinibatchRlEval, AsyncRl])
def test_dqn_names_the_agent_that_it_trains(runner: Callable[..., Any]) -> None:
    says = refused(runner, DQN(), CategoricalPgAgent(), SAMPLER, CONFIG)
    assert says.startswith(
        "DQN trains a DqnAgent, got a CategoricalPgAgent; give the runner and the sampler a DqnAgent"
    )
    assert "CategoricalDQN trains a CategoricalDqnAgent" in refused(
        runner, CategoricalDQN(), DqnAgent(), SAMPLER, CONFIG
    )


@pytest.mark.parametrize("algo", [PPO(), DQN()], ids=repr)
def test_what_is_no_agent_is_named(algo: Any) -> None:
    for agent, says in ((SAMPLER, "got a SerialSampler"), (DqnAgent, "got the class DqnAgent")):
        with pytest.raises(TypeError, match=f"trains an Agent object, {says}"):
            algo.initialize(agent, n_itr=1, batch_spec=SAMPLER.batch_spec)


def test_algorithms_take_the_agents_that_fit() -> None:
    MinibatchRl(DQN(), CategoricalDqnAgent(), SAMPLER, CONFIG)
    MinibatchRl(config=CONFIG, sampler=SAMPLER, agent=CategoricalPgAgent(), algo=PPO())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            (CategoricalPgAgent(), PPO(), SAMPLER, CONFIG),
            "got a CategoricalPgAgent as algo and a PPO as agent; give them in this order, or by name: "
            "MinibatchRl(algo=..., agent=..., sampler=..., config=...)",
        ),
        (
            (SAMPLER, PPO(), CategoricalPgAgent(), CONFIG),
            "got a SerialSampler as algo and a PPO as agent and a CategoricalPgAgent as sampler; give them in this",
        ),
        ((PPO(), CategoricalPgAgent(), CONFIG, SAMPLER), "a RunnerConfig as sampler and a SerialSampler as config"),
        ((PPO, CategoricalPgAgent(), SAMPLER, CONFIG), "got the class PPO as algo; make an object of the class: PPO("),
        ((PPO(), CategoricalPgAgent(), SAMPLER, 8), "got int 8 as config; config must be a RunnerConfig(n_steps=...)"),
        ((PPO(), None, SAMPLER, CONFIG), "got NoneType None as agent; agent must be an object of class Agent"),
    ],
    ids=str,
)
def test_arguments_in_another_order_are_named(given: Any, says: str) -> None:
    text = refused(MinibatchRl, *given)
    assert text.startswith("MinibatchRl(algo, agent, sampler, config) got ")
    assert says in text


@pytest.mark.parametrize("runner", [MinibatchRl, MinibatchRlEval, AsyncRl])
def test_settings_as_arguments_belong_into_the_config(runner: Callable[..., Any]) -> None:
    """As rlpyt's runners take them."""
    says = refused(runner, algo=PPO(), agent=CategoricalPgAgent(), sampler=SAMPLER, n_steps=8, seed=0)
    name = runner.__name__
    assert says == f"{name} has no setting 'n_steps'; settings are given as {name}(..., RunnerConfig(n_steps=...))"
