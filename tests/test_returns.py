"""Returns and advantages against values computed by hand."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent, PgInfo
from headrace.algos.returns import discounted_returns, final_values, generalized_advantages, next_values
from headrace.buffers.samples import Samples
from headrace.distributions import Categorical
from headrace.samplers import SerialSampler
from headrace.types import AgentStep, EnvSpaces, StepInputs, Tree

RESET = 1000.0


class Count(gym.Env[np.ndarray, np.int64]):
    """Observations 1000, 1, 2, 3: the first one of an episode would be a very wrong value for the end of another."""

    def __init__(self, terminated: bool, truncated: bool, length: int = 3) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._ends, self._length = (terminated, truncated), length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._n = 0
        return np.array([RESET], np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n += 1
        terminated, truncated = self._ends if self._n == self._length else (False, False)
        return np.array([self._n], np.float32), 1.0, terminated, truncated, {}


class ValueIsObservation(torch.nn.Module):
    """A model for `CategoricalPgAgent`: V(s) is the observation itself."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(n_outputs))

    def forward(
        self, observation: torch.Tensor, prev_action: Tree, prev_reward: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        value = observation[..., 0]
        return self.bias.expand(*value.shape, len(self.bias)), value


class ValueIsMemory(Agent):
    """Recurrent: the state is the sum of the observations seen, V is state + observation."""

    noise_size = 1

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    def initial_state(self, n: int) -> torch.Tensor:
        return torch.zeros(n)

    def step(self, inputs: StepInputs, state: torch.Tensor) -> AgentStep:
        observation = inputs.observation[:, 0]
        info = PgInfo(Categorical(torch.zeros(len(observation), 2)), state + observation)
        return AgentStep(torch.zeros(len(observation), dtype=torch.int64), info, state + observation)

    def value(self, inputs: StepInputs, state: torch.Tensor) -> torch.Tensor:
        return state + inputs.observation[:, 0]

    def __call__(self, inputs: StepInputs, state: Tree = None) -> Any:
        raise NotImplementedError


def collect(agent: Agent, terminated: bool, truncated: bool, batch_T: int = 5) -> Samples:
    sampler = SerialSampler(
        Count,
        {"terminated": terminated, "truncated": truncated},
        batch_T=batch_T,
        batch_B=2,
        max_decorrelation_steps=0,
    )
    with sampler.initialize(agent, seed=0, bootstrap_value=True):
        return sampler.obtain_samples(0)[0].copy()


def arguments(agent: Agent, samples: Samples) -> dict[str, torch.Tensor]:
    env = samples.env
    assert samples.agent.bootstrap_value is not None
    return {
        "reward": env.reward,
        "terminated": env.terminated,
        "truncated": env.truncated,
        "bootstrap_value": samples.agent.bootstrap_value,
        "final_value": final_values(agent, samples),
    }


def columns(*rows: float) -> torch.Tensor:
    """`[T, 2]`, both columns alike."""
    return torch.tensor(rows)[:, None].expand(-1, 2)


# Rows see 1000, 1, 2 | 1000, 1 and the batch is followed by 2; every reward is 1, γ = 1/2.
# An end in row 2 has the final observation 3. A truncation: R₂ = 1 + 3/2; a termination: R₂ = 1.
TRUNCATED = columns(2.125, 2.25, 2.5, 2.0, 2.0)
TERMINATED = columns(1.75, 1.5, 1.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [(False, True, TRUNCATED), (True, False, TERMINATED), (True, True, TERMINATED)],
    ids=["truncated", "terminated", "both"],
)
def test_discounted_returns_equal_hand_computed_values(
    terminated: bool, truncated: bool, expected: torch.Tensor
) -> None:
    agent = CategoricalPgAgent(ModelCls=ValueIsObservation)
    samples = collect(agent, terminated, truncated)
    assert torch.equal(samples.env.observation[:, :, 0], columns(RESET, 1, 2, RESET, 1))
    assert torch.equal(discounted_returns(**arguments(agent, samples), discount=0.5), expected)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        # V = 1000, 1, 2, 1000, 1; δ₂ = 1 + 3/2 − 2, δ₁ = 1 + 2/2 − 1, δ₀ = 1 + 1/2 − 1000, δ₄ = 1 + 2/2 − 1; γλ = 1/4
        (False, True, columns(-998.5 + 1.125 / 4, 1.0 + 0.5 / 4, 0.5, -998.5 + 1.0 / 4, 1.0)),
        # δ₂ = 1 − 2
        (True, False, columns(-998.5 + 0.75 / 4, 1.0 - 1.0 / 4, -1.0, -998.5 + 1.0 / 4, 1.0)),
        (True, True, columns(-998.5 + 0.75 / 4, 1.0 - 1.0 / 4, -1.0, -998.5 + 1.0 / 4, 1.0)),
    ],
    ids=["truncated", "terminated", "both"],
)
def test_generalized_advantages_equal_hand_computed_values(
    terminated: bool, truncated: bool, expected: torch.Tensor
) -> None:
    agent = CategoricalPgAgent(ModelCls=ValueIsObservation)
    samples = collect(agent, terminated, truncated)
    value = samples.agent.agent_info.value
    advantage, returns = generalized_advantages(**arguments(agent, samples), value=value, discount=0.5, gae_lambda=0.5)
    assert torch.equal(advantage, expected)
    assert torch.equal(returns, expected + value)


def test_end_in_the_last_row_does_not_bootstrap_from_the_next_episode() -> None:
    agent = CategoricalPgAgent(ModelCls=ValueIsObservation)
    samples = collect(agent, False, True, batch_T=3)  # row 3 is the first of the next episode, its value is 1000
    assert samples.agent.bootstrap_value is not None
    assert torch.equal(samples.agent.bootstrap_value, columns(RESET))
    assert torch.equal(discounted_returns(**arguments(agent, samples), discount=0.5), TRUNCATED[:3])
    samples = collect(agent := CategoricalPgAgent(ModelCls=ValueIsObservation), True, False, batch_T=3)
    assert torch.equal(discounted_returns(**arguments(agent, samples), discount=0.5), TERMINATED[:3])


def test_value_of_a_final_observation_uses_the_recurrent_state_at_the_end() -> None:
    agent = ValueIsMemory()
    samples = collect(agent, False, True, batch_T=6)
    expected = torch.zeros(6, 2)
    expected[2] = RESET + 1 + 2 + 3  # the state after row 2, and the final observation
    expected[5] = RESET + 1 + 2 + 3  # not more: the state was zeroed in between
    assert torch.equal(final_values(agent, samples), expected)


def test_final_values_are_only_for_truncations_and_carry_no_gradient() -> None:
    agent = CategoricalPgAgent(ModelCls=ValueIsObservation)
    assert torch.equal(final_values(agent, collect(agent, True, False)), torch.zeros(5, 2))
    assert not final_values(agent, collect(agent, False, True)).requires_grad


def by_definition(
    reward: np.ndarray,
    value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    bootstrap: np.ndarray,
    final: np.ndarray,
    discount: float,
    gae_lambda: float,
) -> np.ndarray:
    """Σ_k (γλ)^k δ_{t+k} up to the end of the episode or of the batch, one cell at a time."""
    T, B = reward.shape
    advantage = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            weight = 1.0
            for k in range(t, T):
                if terminated[k, b]:
                    following = 0.0
                elif truncated[k, b]:
                    following = final[k, b]
                else:
                    following = value[k + 1, b] if k + 1 < T else bootstrap[0, b]
                advantage[t, b] += weight * (reward[k, b] + discount * following - value[k, b])
                weight *= discount * gae_lambda
                if terminated[k, b] or truncated[k, b]:
                    break
    return advantage


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_advantages_follow_their_definition_on_random_batches(gae_lambda: float) -> None:
    generator = np.random.default_rng(0)
    for T in (1, 2, 17):
        reward, value, final = (generator.normal(size=(T, 6)) for _ in range(3))
        terminated, truncated = (generator.random((T, 6)) < 0.2 for _ in range(2))
        bootstrap = generator.normal(size=(1, 6))
        expected = by_definition(reward, value, terminated, truncated, bootstrap, final, 0.9, gae_lambda)
        rewards, values = torch.from_numpy(reward), torch.from_numpy(value)
        ended, cut, last, finals = map(torch.from_numpy, (terminated, truncated, bootstrap, final))
        tensors = (rewards, values, ended, cut, last, finals)
        before = [tensor.clone() for tensor in tensors]
        advantage, returns = generalized_advantages(*tensors, 0.9, gae_lambda)
        torch.testing.assert_close(advantage, torch.from_numpy(expected))
        if gae_lambda == 1.0:  # then the λ-return is the discounted return
            torch.testing.assert_close(discounted_returns(rewards, ended, cut, last, finals, 0.9), returns)
        assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True)), "an input was changed"


def test_padding_is_zero_in_results_and_affects_nothing_even_if_nan() -> None:
    nan = float("nan")
    valid = torch.tensor([[True], [True], [False], [False]])
    terminated = torch.tensor([[False], [True], [False], [False]])
    truncated = torch.zeros(4, 1, dtype=torch.bool)
    reward = torch.tensor([[1.0], [2.0], [nan], [nan]])
    value = torch.tensor([[0.5], [0.25], [nan], [nan]])
    bootstrap, final = torch.tensor([[nan]]), torch.zeros(4, 1)
    returns = discounted_returns(reward, terminated, truncated, bootstrap, final, 0.5, valid)
    assert returns[:, 0].tolist() == [2.0, 2.0, 0.0, 0.0]
    advantage, returns = generalized_advantages(reward, value, terminated, truncated, bootstrap, final, 0.5, 1.0, valid)
    assert advantage[:, 0].tolist() == [1.5, 1.75, 0.0, 0.0]
    assert returns[:, 0].tolist() == [2.0, 2.0, 0.0, 0.0]


def test_next_values_follow_the_documented_table() -> None:
    value = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    terminated = torch.tensor([[False], [True], [True], [False]])
    truncated = torch.tensor([[True], [False], [True], [False]])
    following = next_values(value, terminated, truncated, torch.tensor([[9.0]]), torch.full((4, 1), 7.0))
    assert following[:, 0].tolist() == [7.0, 0.0, 0.0, 9.0]
