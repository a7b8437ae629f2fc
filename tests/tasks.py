"""Small environments in which agents learn, and a check that training forwards reproduce what was recorded."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from headrace.agents.base import Agent
from headrace.algos.pg import PPO, PPOConfig
from headrace.algos.returns import final_values
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map, tree_rows
from headrace.samplers import SerialSampler
from headrace.types import StepInputs

Answer = tuple[Any, float, bool, bool, dict[str, Any]]


class Masked(gym.Env[Any, Any]):
    """Raises for an action that its last observation forbids; rewards the highest allowed action.

    action_space: Discrete or MultiDiscrete [k]; every part always allows an action. Episodes have 1 to 6 steps.
    """

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space
        self._sizes = [int(n) for n in np.atleast_1d(getattr(action_space, "nvec", getattr(action_space, "n", 0)))]
        self.observation_space = spaces.Dict(
            {
                "x": spaces.Box(-np.inf, np.inf, (2,), np.float32),
                "action_mask": spaces.Box(0, 1, (sum(self._sizes),), np.int8),
            }
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 7))
        return self._show(), {}

    def step(self, action: Any) -> Answer:
        chosen = [int(value) for value in np.atleast_1d(action)]
        for value, mask in zip(chosen, self._masks, strict=True):
            assert mask[value], f"action {chosen} is forbidden by {self._masks}"
        best = [int(np.flatnonzero(mask)[-1]) for mask in self._masks]
        self._left -= 1
        return self._show(), float(chosen == best), self._left == 0, False, {}

    def _show(self) -> Any:
        self._masks = []
        for size in self._sizes:
            mask = self.np_random.random(size) < 0.4
            mask[self.np_random.integers(size)] = True
            self._masks.append(mask)
        x = self.np_random.normal(size=2).astype(np.float32)
        return {"x": x, "action_mask": np.concatenate(self._masks).astype(np.int8)}


class Matching(gym.Env[np.ndarray, Any]):
    """Observes two bits and gives a reward of up to 1 for the action that matches them. Episodes have 5 steps.

    Discrete: their number, from `start`; MultiDiscrete [3, 2]: (their sum, the first); MultiBinary 3: both, and whether
    they differ; Box: 0.7 and −0.5 of the way from the middle to the bounds, or the other way round (first bit).
    """

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._n = 0
        return self._show(), {}

    def step(self, action: Any) -> Answer:
        reward = self._reward(action)
        self._n += 1
        return self._show(), reward, False, self._n == 5, {}

    def _reward(self, action: Any) -> float:
        first, second = self._bits
        match self.action_space:
            case spaces.Discrete(start=start):
                return float(action == start + 2 * first + second)
            case spaces.MultiDiscrete():
                return float(np.mean(action == np.array([first + second, first])))
            case spaces.MultiBinary():
                return float(np.mean(action == np.array([first, second, first ^ second])))
            case spaces.Box(low=low, high=high):
                wanted = np.array([-0.5, 0.7] if first else [0.7, -0.5])
                away = 2 * (action - (low + high) / 2) / (high - low) - wanted
                return float(1 - np.square(away).sum())
        raise AssertionError(self.action_space)

    def _show(self) -> np.ndarray:
        self._bits = [int(bit) for bit in self.np_random.integers(2, size=2)]
        return np.array(self._bits, np.float32)


class CueRecall(gym.Env[np.ndarray, np.int64]):
    """Shows one of three cues in the first observation only; rewards naming it in the last of its 5 steps with 1."""

    LENGTH = 5

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._cue, self._n = int(self.np_random.integers(3)), 0
        return np.eye(4, dtype=np.float32)[self._cue], {}

    def step(self, action: np.int64) -> Answer:
        self._n += 1
        ended = self._n == self.LENGTH
        last = np.array([0, 0, 0, self._n == self.LENGTH - 1], np.float32)
        return last, float(ended and action == self._cue), ended, False, {}


def learned(agent: Agent, make: Callable[[], gym.Env[Any, Any]], n_itr: int, batch_T: int = 20, **config: Any) -> float:
    """Returns the mean reward per episode of the greedy agent after PPO on `n_itr` batches of 32 environments."""
    algo = PPO(PPOConfig(**{"epochs": 4, "learning_rate": 3e-3, "value_loss_coeff": 0.5, **config}))
    sampler = SerialSampler(
        make, batch_T=batch_T, batch_B=32, max_decorrelation_steps=0, eval_n_envs=32, eval_max_trajectories=160
    )
    with sampler.initialize(agent, seed=0, bootstrap_value=True):
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec, seed=0)
        for itr in range(n_itr):
            algo.optimize_agent(itr, sampler.obtain_samples(itr)[0])
        return float(np.mean([info.Return for info in sampler.evaluate_agent(n_itr)]))


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def assert_reproduced(agent: Agent, samples: Samples) -> None:
    """Checks that the training forward, and a loop of `step` and `value`, give the recorded log-probabilities and
    values.

    The loop keeps the recurrent state itself, zeroes it where `is_first`, and also computes V(final) and V(row T).
    """
    env, recorded, final = samples.env, samples.agent, samples.final
    inputs = StepInputs(env.observation, recorded.prev_action, env.prev_reward, env.is_first)
    state = tree_rows(recorded.first_state, 0)
    log_prob = recorded.agent_info.dist.log_prob(recorded.action)
    outputs = agent(inputs, state)
    close(outputs.dist.log_prob(recorded.action), log_prob)
    close(outputs.value, recorded.agent_info.value)

    ends = {(int(t), int(b)): k for k, (t, b) in enumerate(zip(final.time, final.column, strict=True))}
    assert len(ends) == int(env.done.sum()) == len(final)
    values_of_ends = final_values(agent, samples)
    noise = torch.full((samples.batch_spec.B, agent.noise_size), 0.5)
    for t in range(samples.batch_spec.T):
        row = tree_rows(inputs, t)
        row.noise = noise
        state = _zeroed(state, row.is_first)
        step = agent.step(row, state)
        close(agent.value(row, state), recorded.agent_info.value[t])
        close(step.agent_info.dist.log_prob(recorded.action[t]), log_prob[t])
        state = step.state
        for b in range(samples.batch_spec.B):
            if (t, b) not in ends:
                assert values_of_ends[t, b] == 0
                continue
            k, column = slice(ends[t, b], ends[t, b] + 1), slice(b, b + 1)
            never = torch.zeros(1, dtype=torch.bool)
            after = StepInputs(
                tree_rows(final.observation, k), recorded.action[t, column], env.reward[t, column], never
            )
            value = agent.value(after, tree_rows(state, column))
            close(values_of_ends[t, b], value[0] * (env.truncated[t, b] and not env.terminated[t, b]))
    if state is not None:
        tree_map(close, state, tree_rows(recorded.last_state, 0))

    assert recorded.bootstrap_value is not None
    goes_on = env.valid[-1] & ~env.done[-1]
    after = StepInputs(env.last_observation, recorded.action[-1:], env.reward[-1:], torch.zeros_like(env.done[-1:]))
    value = agent.value(tree_rows(after, 0), state)
    close(recorded.bootstrap_value[0, goes_on], value[goes_on])


def _zeroed(state: Any, is_first: torch.Tensor) -> Any:
    return tree_map(lambda leaf: torch.where(is_first[:, None], 0.0, leaf), state)
