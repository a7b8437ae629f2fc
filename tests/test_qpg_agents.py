"""DDPG, TD3 and SAC agents: bounds, exploration, equal actions in every sampler, and models of the user's own."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import headrace
from headrace.agents.acting import acting_bytes
from headrace.agents.qpg import DdpgAgent, QpgAgent, SacAgent, Td3Agent
from headrace.buffers.samples import Samples
from headrace.models import Actor, Critics
from headrace.samplers import (
    AlternatingSampler,
    AsyncCpuSampler,
    BaseSampler,
    CpuSampler,
    GpuSampler,
    SerialSampler,
)
from headrace.types import EnvSpaces, StepInputs
from tests.quick import quick_and_slow
from tests.reaching import HIGH, LOW, Reach

AGENTS: dict[str, Any] = {"ddpg": DdpgAgent, "td3": Td3Agent, "sac": SacAgent}
BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
UNEVEN = spaces.Box(LOW, HIGH, dtype=np.float32)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "discrete": spaces.Discrete(5, start=2),
    "dict": spaces.Dict({"x": spaces.Box(-1, 1, (2, 2), np.float32), "gear": spaces.Discrete(3)}),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
}


def built(agent: QpgAgent, action: spaces.Space[Any] = UNEVEN, observation: spaces.Space[Any] = BOX) -> QpgAgent:
    agent.initialize(EnvSpaces(observation, action), seed=0)
    return agent


def inputs_of(observation: Any, n: int, d: int = 2) -> StepInputs:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(n, 2 * ((d + 1) // 2), generator=generator)
    return StepInputs(observation, torch.zeros(n, d), torch.zeros(n), torch.zeros(n, dtype=torch.bool), noise)


def rows_of(n: int) -> StepInputs:
    return inputs_of(torch.randn(n, 3, generator=torch.Generator().manual_seed(1)), n)


def acted(agent: QpgAgent, inputs: StepInputs) -> torch.Tensor:
    with torch.inference_mode():
        action: torch.Tensor = agent.step(inputs, None).action
        return action


def collected(cls: type[BaseSampler], agent: QpgAgent, n_itr: int) -> list[Samples]:
    sampler = cls(Reach, batch_T=16, batch_B=4, n_workers=2, max_decorrelation_steps=0, deterministic=True)
    with sampler.initialize(agent, seed=0):
        return [sampler.obtain_samples(itr)[0].copy() for itr in range(n_itr)]


# ---- bounds ----


@pytest.mark.parametrize("name", AGENTS)
def test_actions_are_in_the_environments_units_and_within_its_bounds(name: str) -> None:
    agent = built(AGENTS[name](OwnActor, random_itr_max=1))  # linear, so each bound is as far as the other
    with torch.no_grad():
        for parameter in agent.model.actor.parameters():
            parameter.mul_(1000.0)  # saturates tanh
    low, high = torch.from_numpy(LOW), torch.from_numpy(HIGH)
    for mode in (lambda: agent.sample_mode(0), lambda: agent.sample_mode(1), lambda: agent.eval_mode(1)):
        mode()
        action = acted(agent, rows_of(2000))
        assert action.dtype == torch.float32
        assert (action >= low).all()
        assert (action <= high).all()
        # All of the range is used, and each component has its own.
        torch.testing.assert_close(action.amin(dim=0), low, atol=0.02, rtol=0.0)
        torch.testing.assert_close(action.amax(dim=0), high, atol=0.02, rtol=0.0)


def test_scaled_actions_are_minus_one_and_one_at_the_bounds() -> None:
    agent = built(SacAgent())
    given = torch.tensor([[1.0, -3.0], [5.0, -2.0], [3.0, -2.5], [2.0, -2.25]])
    torch.testing.assert_close(agent.scaled(given), torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [-0.5, 0.5]]))
    fixed = built(SacAgent(), spaces.Box(np.array([2.0, -1.0], np.float32), np.array([2.0, 1.0], np.float32)))
    fixed.sample_mode(0)
    action = acted(fixed, rows_of(50))
    assert (action[:, 0] == 2.0).all()
    assert action[:, 1].std() > 0.1
    assert fixed.scaled(action).isfinite().all()


def test_critics_see_scaled_actions_and_the_learner_alone_has_them() -> None:
    class Seen(Critics):
        def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
            seen.append(arguments[3])
            return super().forward(*arguments, **options)

    seen: list[torch.Tensor] = []
    agent = built(DdpgAgent(QModelCls=Seen))
    value = agent.value(rows_of(5), None)
    assert value.shape == (5,)
    torch.testing.assert_close(seen[0], agent(rows_of(5)).mean)
    assert seen[0].abs().max() <= 1.0
    agent = built(SacAgent())
    there = pickle.loads(acting_bytes(agent))
    assert torch.equal(acted(agent, rows_of(5)), acted(there, rows_of(5)))
    with pytest.raises(RuntimeError, match="critics is only in the learner's process"):
        there.value(rows_of(5), None)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (spaces.Discrete(3), r"SacAgent acts in Box action spaces \[d\] of floats.*use a CategoricalPgAgent"),
        (spaces.Box(-1, 1, (2, 2), np.float32), r"Box action spaces \[d\].*ActionWrapper"),
        (spaces.Box(0, 9, (2,), np.int64), r"Box action spaces \[d\] of floats"),
        (spaces.Box(-np.inf, np.inf, (2,), np.float32), r"component 0 are -inf and inf.*TransformAction"),
        (
            spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)),
            r"component 1 are 0 and inf.*GaussianPgAgent",
        ),
    ],
)
def test_spaces_without_bounds_and_other_spaces_are_refused(space: spaces.Space[Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        built(SacAgent(), space)


def test_action_mask_is_refused() -> None:
    masked = spaces.Dict({"x": BOX, "action_mask": spaces.MultiBinary(2)})
    with pytest.raises(TypeError, match=r"action_mask.*rename that key"):
        built(SacAgent(), observation=masked)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"random_itr_max": -1}, "random_itr_max must be at least 0, got -1"),
        ({"n_critics": 0}, "n_critics must be at least 1"),
        ({"exploration_std": -0.1}, "exploration_std must be at least 0"),
        ({"q_model_kwargs": {"dropout": 1.0}}, "dropout must be at least 0 and below 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        built(Td3Agent(**settings))


# ---- exploration ----


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_noise_has_the_given_standard_deviation_and_is_clipped(name: str) -> None:
    agent = built(AGENTS[name](exploration_std=0.05))
    agent.sample_mode(0)
    inputs = rows_of(20_000)
    inputs.observation = inputs.observation[:1].expand(20_000, 3)
    noise = agent.scaled(acted(agent, inputs)) - agent(inputs).mean.detach()
    torch.testing.assert_close(noise.std(dim=0), torch.full((2,), 0.05), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(noise.mean(dim=0), torch.zeros(2), atol=1e-3, rtol=0.0)
    agent.eval_mode(0)
    torch.testing.assert_close(agent.scaled(acted(agent, inputs)), agent(inputs).mean.detach(), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
@pytest.mark.parametrize("name", AGENTS)
def test_actions_are_uniform_before_random_itr_max_also_in_workers(name: str, cls: type[BaseSampler]) -> None:
    """Workers know when they begin, although the algorithm is initialized later."""
    agent = AGENTS[name](random_itr_max=3)
    batches = collected(cls, agent, 4)
    scaled = [agent.scaled(batch.agent.action).flatten() for batch in batches]
    early = torch.cat(scaled[:3])
    shares = np.histogram(early.numpy(), bins=4, range=(-1, 1))[0] / len(early)
    np.testing.assert_allclose(shares, np.full(4, 0.25), atol=0.1)
    if name != "sac":  # an untrained policy acts close to the middle
        assert scaled[3].abs().max() < 0.6 < early.abs().max()
    other = collected(SerialSampler, AGENTS[name](), 1)[0]
    assert not torch.equal(other.agent.action, batches[0].agent.action)


@pytest.mark.parametrize(
    ("name", "cls"),
    quick_and_slow(
        [(name, cls) for name in AGENTS for cls in (CpuSampler, GpuSampler, AlternatingSampler)],
        quick=[("sac", CpuSampler), ("td3", GpuSampler), ("ddpg", AlternatingSampler)],
    ),
)
def test_every_sampler_collects_the_same_batches(name: str, cls: type[BaseSampler]) -> None:
    here, there = (collected(one, AGENTS[name](random_itr_max=1), 3) for one in (SerialSampler, cls))
    for batch, other in zip(here, there, strict=True):
        assert torch.equal(batch.agent.action, other.agent.action)
        assert torch.equal(batch.env.observation, other.env.observation)


def test_recorded_info_is_that_of_the_training_forward_pass() -> None:
    for agent in (DdpgAgent(), SacAgent()):
        (batch,) = collected(SerialSampler, agent, 1)
        env, choice = batch.env, batch.agent
        again: Any = agent(StepInputs(env.observation, choice.prev_action, env.prev_reward, env.is_first))
        info: Any = choice.agent_info
        if isinstance(agent, SacAgent):
            torch.testing.assert_close(info.dist.mean, again.dist.mean.detach())
            torch.testing.assert_close(info.dist.log_std, again.dist.log_std.detach())
            assert agent.exploration(0, batch)["actionStd"] == pytest.approx(float(info.dist.log_std.exp().mean()))
        else:
            torch.testing.assert_close(info.mean, again.mean.detach())


@pytest.mark.slow
def test_asynchronous_sampler_acts_by_published_parameters() -> None:
    agent = SacAgent()
    sampler = AsyncCpuSampler(Reach, batch_T=8, batch_B=4, n_workers=2, max_decorrelation_steps=0)
    with sampler.initialize(agent, seed=0):
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter.mul_(3.0)
        batches = [sampler.obtain_samples(itr)[0].copy() for itr in range(3)]
    env, choice = batches[2].env, batches[2].agent
    again = agent(StepInputs(env.observation, choice.prev_action, env.prev_reward, env.is_first))
    torch.testing.assert_close(choice.agent_info.dist.mean, again.dist.mean.detach())


# ---- models ----


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_every_observation_space_has_networks(kind: str) -> None:
    space = OBSERVATIONS[kind]
    agent = built(SacAgent(), observation=space)
    space.seed(0)
    drawn: Any = [space.sample() for _ in range(4)]
    if isinstance(space, spaces.Dict):
        observation: Any = {key: torch.from_numpy(np.stack([one[key] for one in drawn])) for key in space.spaces}
    else:
        observation = torch.from_numpy(np.stack(drawn))
    inputs = inputs_of(observation, 4)
    assert acted(agent, inputs).shape == (4, 2)
    assert agent.q(inputs, torch.zeros(4, 2)).shape == (2, 4)


def test_normalization_statistics_are_those_of_policy_and_critics() -> None:
    kwargs = {"normalize_observation": True}
    agent = built(Td3Agent(model_kwargs=kwargs, q_model_kwargs=kwargs))
    before = agent(rows_of(4)).mean, agent.q(rows_of(4), torch.zeros(4, 2))
    agent.update_statistics(5.0 + torch.randn(100, 3))
    after = agent(rows_of(4)).mean, agent.q(rows_of(4), torch.zeros(4, 2))
    assert not torch.allclose(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


class OwnActor(torch.nn.Module):
    def __init__(self, spaces: EnvSpaces, n_outputs: int, extra: int = 0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, n_outputs + extra)

    def forward(self, observation: torch.Tensor, prev_action: Any, prev_reward: Any) -> Any:
        return self.layer(observation)


class OwnCritics(torch.nn.Module):
    def __init__(self, spaces: EnvSpaces, n_critics: int, extra: int = 0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(5, n_critics + extra)

    def forward(self, observation: torch.Tensor, prev_action: Any, prev_reward: Any, action: torch.Tensor) -> Any:
        return self.layer(torch.cat([observation, action], dim=-1)).movedim(-1, 0)


class Twice(OwnCritics):
    def forward(self, *arguments: Any) -> Any:
        return (super().forward(*arguments),) * 2


def test_own_models_act_and_wrong_ones_are_refused_with_both_sizes() -> None:
    agent = built(Td3Agent(OwnActor, QModelCls=OwnCritics))
    assert acted(agent, rows_of(4)).shape == (4, 2)
    assert agent.q(rows_of(4), torch.zeros(4, 2)).shape == (2, 4)
    assert torch.equal(agent.first_q(rows_of(4), torch.zeros(4, 2)), agent.q(rows_of(4), torch.zeros(4, 2))[0])
    with pytest.raises(ValueError, match=r"OwnActor returned \[4, 3\]; expected \[\.\.\., 2\]"):
        acted(built(Td3Agent(OwnActor, {"extra": 1})), rows_of(4))
    wrong = built(Td3Agent(QModelCls=OwnCritics, q_model_kwargs={"extra": 1}))
    with pytest.raises(
        ValueError, match=r"OwnCritics returned \[3, 4\]; expected \[n_critics, \.\.\.\], here \[2, 4\]"
    ):
        wrong.q(rows_of(4), torch.zeros(4, 2))
    with pytest.raises(TypeError, match=r"Twice returned a tuple of 2, expected one tensor \[2, 4\]"):
        built(Td3Agent(QModelCls=Twice)).q(rows_of(4), torch.zeros(4, 2))
    with pytest.raises(TypeError, match="Actor has no setting 'n_critics'"):
        built(SacAgent(QModelCls=Actor))


def test_first_critic_alone_has_the_values_that_it_has_among_others() -> None:
    agent = built(Td3Agent(n_critics=3))
    action = torch.rand(4, 2)
    torch.testing.assert_close(agent.first_q(rows_of(4), action), agent.q(rows_of(4), action)[0])


# ---- use of a trained agent ----


@pytest.mark.parametrize("name", AGENTS)
def test_saved_agent_is_loaded_as_a_policy(name: str, tmp_path: Path) -> None:
    options = {"q_model_kwargs": {"hidden_sizes": (16,)}, "model_kwargs": {"hidden_sizes": (16, 16)}}
    agent = built(AGENTS[name](**options, random_itr_max=3), observation=Reach().observation_space)
    agent.save(tmp_path / "agent.pt", itr=7)
    policy = headrace.load_agent(tmp_path / "agent.pt")
    observation = np.array([[0.5, -1.0], [0.1, 0.2]], np.float32)
    agent.eval_mode(7)
    expected = acted(agent, inputs_of(torch.from_numpy(observation), 2))
    np.testing.assert_allclose(policy(observation), expected.numpy(), rtol=1e-6)
    assert repr(policy.agent) == repr(agent)
    drawn = headrace.load_agent(tmp_path / "agent.pt", greedy=False)(observation)
    assert not np.allclose(drawn, expected.numpy())
