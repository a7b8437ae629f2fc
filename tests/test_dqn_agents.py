"""DQN agents: exploration, masks, and equal exploration in every sampler."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings, strategies as st

from headrace.agents.base import Agent
from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent, DqnInfo, EpsilonSchedule
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_paths
from headrace.distributions import EpsilonGreedy
from headrace.models import DuelingHead, QNetwork
from headrace.samplers import (
    AlternatingSampler,
    AsyncCpuSampler,
    AsyncGpuSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    SerialSampler,
)
from headrace.types import EnvSpaces, StepInputs
from tests.environments import SEED, Varied
from tests.tasks import Masked, close
from tests.walk import Walk

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
MAKE: dict[str, Any] = {
    "dqn": DqnAgent,
    "dueling": lambda **settings: DqnAgent(model_kwargs={"dueling": True}, **settings),
    "categorical": lambda **settings: CategoricalDqnAgent(n_atoms=11, V_min=-3, V_max=5, **settings),
    "dueling categorical": lambda **settings: CategoricalDqnAgent(model_kwargs={"dueling": True}, **settings),
}
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "discrete": spaces.Discrete(5, start=2),
    "dict": spaces.Dict({"x": spaces.Box(-1, 1, (2, 2), np.float32), "gear": spaces.Discrete(3)}),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
}


def built(agent: Agent, n_actions: int = 4, **options: Any) -> Agent:
    agent.initialize(EnvSpaces(BOX, spaces.Discrete(n_actions)), seed=0, **options)
    return agent


def inputs_of(n: int, noise_size: int = 2, seed: int = 0) -> StepInputs:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, noise_size, generator=generator)
    observation = torch.randn(n, 3, generator=generator)
    return StepInputs(observation, torch.zeros(n), torch.zeros(n), torch.zeros(n, dtype=torch.bool), noise)


# ---- the choice ----


@pytest.mark.parametrize("route", ["torch", "numpy"])
def test_exploration_is_uniform_over_actions(route: str) -> None:
    n = 40_000
    q, noise = torch.tensor([[0.0, 3.0, -torch.inf, 1.0, 2.0]]).repeat(n, 1), torch.rand(n, 2)
    with torch.inference_mode(route == "numpy"):
        actions = EpsilonGreedy(q).sample(noise, 0.4)
    assert actions.dtype == torch.int64
    shares = np.bincount(actions.numpy(), minlength=5) / n
    # Four actions are possible: 0.1 each by exploration, and the best one 0.6 more.
    np.testing.assert_allclose(shares, [0.1, 0.7, 0.0, 0.1, 0.1], atol=0.01)
    assert torch.equal(EpsilonGreedy(q).mode(), torch.ones(n, dtype=torch.int64))


@pytest.mark.parametrize("u", [1e-45, 2.0**-24, 0.5, 1 - 2.0**-24])
@pytest.mark.parametrize("impossible", [[0], [6], [0, 1, 2, 4, 5, 6], []])
@pytest.mark.parametrize("route", ["torch", "numpy"])
def test_masked_action_is_never_chosen_for_any_noise(impossible: list[int], u: float, route: str) -> None:
    q = torch.randn(50, 7)
    q[:, impossible] = -torch.inf
    with torch.inference_mode(route == "numpy"):
        actions = EpsilonGreedy(q).sample(torch.full((50, 2), u), 1.0)
    assert not set(actions.tolist()) & set(impossible)
    assert int(actions.min()) >= 0
    assert int(actions.max()) <= 6


@given(n=st.integers(1, 9), n_actions=st.integers(1, 40), seed=st.integers(0, 999), rows=st.booleans())
@settings(max_examples=60, deadline=None)
def test_numpy_and_torch_choose_the_same_actions(n: int, n_actions: int, seed: int, rows: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, noise = torch.randn(n, n_actions, generator=generator), torch.rand(n, 2, generator=generator)
    epsilon: Any = torch.rand(n, generator=generator) if rows else 0.5
    q[:, 1:] = q[:, 1:].masked_fill(q[:, 1:] < -1, -torch.inf)
    slow = EpsilonGreedy(q).sample(noise, epsilon)
    with torch.inference_mode():
        assert torch.equal(EpsilonGreedy(q).sample(noise, epsilon), slow)
        one = EpsilonGreedy(q[0]).sample(noise[0], epsilon[0] if rows else epsilon)
        assert torch.equal(one, slow[0])


# ---- how much ----


def test_epsilon_falls_linearly_between_two_batches() -> None:
    schedule = EpsilonSchedule(eps_init=1.0, eps_final=0.2, eps_itr_min=10, eps_itr_max=30)
    values = [float(schedule.at(itr, 1)) for itr in (0, 10, 15, 20, 30, 999)]
    assert values == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.2, 0.2])
    at_once = EpsilonSchedule(eps_final=0.1, eps_itr_max=0)
    assert float(at_once.at(0, 1)) == pytest.approx(0.1)


def test_each_environment_can_have_its_own_epsilon() -> None:
    schedule = EpsilonSchedule(eps_final=0.1, eps_final_min=0.001, eps_itr_max=10)
    np.testing.assert_allclose(schedule.at(10, 5), [0.1, 10**-1.5, 0.01, 10**-2.5, 0.001], rtol=1e-5)
    np.testing.assert_allclose(schedule.at(0, 5), np.ones(5))
    np.testing.assert_allclose(schedule.at(5, 2), [0.55, 0.5005], rtol=1e-5)
    np.testing.assert_allclose(schedule.at(10, 1), [0.1], rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eps_init": 1.5}, "eps_init must be between 0 and 1, got 1.5"),
        ({"eps_final": -0.1}, "eps_final must be between"),
        ({"eps_eval": 2}, "eps_eval must be between"),
        ({"eps_final_min": 0.5}, "eps_final_min must be above 0 and at most eps_final, 0.01, got 0.5"),
        ({"eps_final_min": 0.0}, "eps_final_min must be above 0"),
        ({"eps_itr_min": 20, "eps_itr_max": 10}, "at most eps_itr_max, 10, got 20"),
    ],
)
def test_invalid_exploration_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DqnAgent(**wrong)


@pytest.mark.parametrize("name", MAKE)
def test_agent_explores_by_its_schedule_but_not_in_evaluations(name: str) -> None:
    agent = built(MAKE[name](eps_final=0.2, eps_itr_max=10))
    n = 4000
    inputs = inputs_of(n)
    with torch.inference_mode():
        agent.eval_mode(0)
        greedy = agent.step(inputs, None)
        assert torch.equal(greedy.action, greedy.agent_info.q.argmax(dim=-1))
        for itr, epsilon in ((0, 1.0), (5, 0.6), (10, 0.2)):
            agent.sample_mode(itr)
            other = (agent.step(inputs, None).action != greedy.action).float().mean()
            assert float(other) == pytest.approx(epsilon * 3 / 4, abs=0.03)


def test_evaluations_explore_with_eps_eval() -> None:
    agent = built(DqnAgent(eps_eval=0.5))
    agent.eval_mode(0)
    with torch.inference_mode():
        step = agent.step(inputs_of(4000), None)
    assert float((step.action != step.agent_info.q.argmax(-1)).float().mean()) == pytest.approx(0.375, abs=0.03)


@pytest.mark.parametrize("route", ["torch", "numpy"])
def test_columns_explore_with_the_epsilon_of_their_environment(route: str) -> None:
    agent = built(DqnAgent(eps_final=0.5, eps_final_min=0.05, eps_itr_max=0), global_B=3)
    assert (agent.noise_size, agent.noise_has_env_id) == (3, True)
    n = 30_000
    inputs = inputs_of(n, 3)
    inputs.noise[:, 2] = torch.arange(n) % 3
    agent.sample_mode(0)
    with torch.inference_mode(route == "numpy"):
        step = agent.step(inputs, None)
        other = (step.action != step.agent_info.q.argmax(-1)).float()
    shares = [float(other[env::3].mean()) for env in range(3)]
    np.testing.assert_allclose(shares, 0.75 * np.geomspace(0.5, 0.05, 3), atol=0.015)


# ---- in samplers ----


def batches(cls: type[BaseSampler], make: Any, learns: bool = True, **options: Any) -> list[Samples]:
    agent = make()
    sampler = cls(Walk, batch_T=20, batch_B=7, eval_n_envs=2, deterministic=True, **options)
    collected = []
    with sampler.initialize(agent, seed=3, bootstrap_value=True):
        for itr in range(3):
            collected.append(sampler.obtain_samples(itr)[0].copy())
            with torch.no_grad():
                for parameter in agent.parameters() if learns else ():
                    wave = torch.sin(torch.arange(parameter.numel()) + float(itr)).reshape(parameter.shape)
                    parameter.add_(0.05 * wave)
            sampler.evaluate_agent(itr)  # greedy in between, with environments of other numbers
    return collected


@pytest.mark.parametrize(
    ("make", "classes"), [(DqnAgent, [CpuSampler, AlternatingSampler]), (CategoricalDqnAgent, [GpuSampler])]
)
def test_all_samplers_explore_alike_with_epsilon_per_environment(make: Any, classes: list[type[BaseSampler]]) -> None:
    def new() -> DqnAgent:
        agent: DqnAgent = make(eps_init=0.9, eps_final=0.8, eps_final_min=0.01, eps_itr_max=2)
        return agent

    expected = batches(SerialSampler, new)
    for cls in classes:
        for samples, others in zip(expected, batches(cls, new, n_workers=3), strict=True):
            for (path, leaf), (_, other) in zip(tree_paths(samples), tree_paths(others), strict=True):
                assert torch.equal(leaf, other), (cls.__name__, path)
    last = expected[-1].agent
    explored = (last.action != last.agent_info.q.argmax(dim=-1)).float().mean(dim=0)
    assert explored[0] > explored[-1], "environment 0 explores most"
    assert explored[-1] < 0.1


@pytest.mark.parametrize("cls", [AsyncCpuSampler, AsyncGpuSampler])
def test_async_samplers_explore_alike(cls: type[BaseSampler]) -> None:
    """Without learning, because they act with the parameters of an earlier call."""

    def new() -> DqnAgent:
        return DqnAgent(eps_init=0.9, eps_final=0.8, eps_final_min=0.01, eps_itr_max=2)

    expected = batches(SerialSampler, new, learns=False)
    for samples, others in zip(expected, batches(cls, new, learns=False, n_workers=2), strict=True):
        assert torch.equal(samples.agent.action, others.agent.action)
        assert torch.equal(samples.env.observation, others.env.observation)


def test_the_rank_shifts_the_epsilons() -> None:
    def batch(batch_B: int, **options: Any) -> torch.Tensor:
        agent = DqnAgent(eps_final=1.0, eps_final_min=0.001, eps_itr_max=0)
        sampler = SerialSampler(Walk, batch_T=20, batch_B=batch_B, deterministic=True)
        with sampler.initialize(agent, seed=3, **options):
            action: torch.Tensor = sampler.obtain_samples(0)[0].copy().agent.action
            return action

    whole = batch(8)
    for rank in (0, 1):
        assert torch.equal(whole[:, 4 * rank : 4 * rank + 4], batch(4, rank=rank, world_size=2))


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("name", MAKE)
def test_training_forward_reproduces_recorded_values(name: str, observation: str, reset_mode: str) -> None:
    agent = MAKE[name]()
    env_kwargs = {"observation_space": OBSERVATIONS[observation], "action_space": spaces.Discrete(4, start=-2)}
    sampler = SerialSampler(Varied, env_kwargs, batch_T=6, batch_B=3, reset_mode=reset_mode)
    with sampler.initialize(agent, seed=SEED, bootstrap_value=True):
        samples, _ = sampler.obtain_samples(0)
        env, acted = samples.env, samples.agent
        inputs = StepInputs(env.observation, acted.prev_action, env.prev_reward, env.is_first)
        outputs = agent(inputs)
        assert isinstance(acted.agent_info, DqnInfo)
        close(outputs.q, acted.agent_info.q)
        assert outputs.q.shape == (6, 3, 4)
        assert outputs.q.requires_grad
        last = StepInputs(env.last_observation, acted.prev_action[:1], env.prev_reward[:1], env.is_first[:1])
        assert acted.bootstrap_value is not None
        close(agent(last).q.max(dim=-1).values, acted.bootstrap_value)


@pytest.mark.parametrize("name", MAKE)
def test_masked_actions_are_never_taken_and_have_no_value(name: str) -> None:
    """The environment raises if it is told to do what is forbidden."""
    agent = MAKE[name](eps_final=0.5, eps_itr_max=0)
    with SerialSampler(Masked, {"action_space": spaces.Discrete(6)}, batch_T=40, batch_B=8, eval_n_envs=4).initialize(
        agent, seed=0
    ) as sampler:
        samples, _ = sampler.obtain_samples(0)
        sampler.evaluate_agent(0)
        forbidden = samples.env.observation["action_mask"] == 0
        q = samples.agent.agent_info.q
        assert torch.equal(q == -torch.inf, forbidden)
        assert torch.isfinite(q.gather(-1, samples.agent.action[..., None])).all()


@pytest.mark.parametrize("action", [spaces.MultiDiscrete([2, 3]), BOX, spaces.MultiBinary(2)])
def test_unsupported_action_space_is_a_type_error_with_the_remedy(action: spaces.Space[Any]) -> None:
    with pytest.raises(TypeError, match=r"acts in Discrete action spaces.*use a CategoricalPgAgent"):
        DqnAgent().initialize(EnvSpaces(BOX, action), seed=0)


def test_mask_of_wrong_size_is_a_type_error() -> None:
    observation = spaces.Dict({"x": BOX, "action_mask": spaces.MultiBinary(3)})
    with pytest.raises(TypeError, match=r"has shape \(3,\), but Discrete\(4\) takes \(4,\)"):
        DqnAgent().initialize(EnvSpaces(observation, spaces.Discrete(4)), seed=0)


# ---- models ----


def test_a_dueling_head_is_value_plus_advantage_without_its_mean() -> None:
    head = DuelingHead([3, 8], n_actions=4, n_atoms=5)
    features = torch.randn(6, 3)
    q = head(features).reshape(6, 4, 5)
    torch.testing.assert_close(q.mean(dim=1), head.value(features))
    advantage = head.advantage(features).reshape(6, 4, 5)
    torch.testing.assert_close(q - q.mean(dim=1, keepdim=True), advantage - advantage.mean(dim=1, keepdim=True))


@pytest.mark.parametrize("n_atoms", [None, 7])
@pytest.mark.parametrize("dueling", [False, True])
def test_numpy_inference_of_the_network_equals_torch(n_atoms: int | None, dueling: bool) -> None:
    model = QNetwork(EnvSpaces(BOX, spaces.Discrete(4)), 4, n_atoms=n_atoms, dueling=dueling)
    rows = torch.randn(9, 3)
    slow = model(rows, None, None)
    assert slow.shape == (9, 4) if n_atoms is None else (9, 4, n_atoms)
    with torch.inference_mode():
        close(model(rows, None, None), slow)
        close(model(rows[0], None, None), slow[0])


def test_values_are_the_means_of_the_distributions() -> None:
    agent = built(CategoricalDqnAgent(n_atoms=3, V_min=-1, V_max=3))
    assert isinstance(agent, CategoricalDqnAgent)
    assert agent.atoms.tolist() == [-1, 1, 3]
    inputs = inputs_of(5)
    outputs = agent.distributions(inputs)
    p = outputs.logits.softmax(-1)
    close(outputs.q, -p[..., 0] + p[..., 1] + 3 * p[..., 2])
    with torch.inference_mode():
        close(agent.step(inputs, None).agent_info.q, outputs.q)
        close(agent.value(inputs, None), outputs.q.max(-1).values)


@pytest.mark.parametrize("wrong", [{"n_atoms": 1}, {"V_min": 10.0}])
def test_invalid_atoms_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CategoricalDqnAgent(**wrong)


@pytest.mark.parametrize("name", MAKE)
def test_settings_and_state_rebuild_the_same_agent(name: str) -> None:
    agent = built(MAKE[name](eps_final=0.3, eps_final_min=0.1, eps_eval=0.05), global_B=2)
    twin = built(type(agent)(**agent.settings()), global_B=2)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.mul_(1.5)
    twin.load_state_dict(copy.deepcopy(agent.state_dict()))
    inputs = inputs_of(50, 3)
    inputs.noise[:, 2] = 1.0
    for mode in (lambda a: a.sample_mode(300), lambda a: a.eval_mode(300)):
        mode(agent), mode(twin)
        with torch.inference_mode():
            assert torch.equal(agent.step(inputs, None).action, twin.step(inputs, None).action)


def test_observation_statistics_reach_the_network() -> None:
    agent = built(DqnAgent(model_kwargs={"normalize_observation": True}))
    agent.update_statistics(torch.tensor([[10.0, 0.0, 0.0], [30.0, 1.0, 2.0]]))
    model: Any = agent.model
    close(model.features(torch.tensor([[20.0, 0.5, 1.0]])), torch.zeros(1, 3))
