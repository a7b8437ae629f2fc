"""V-trace against its definition, and IMPALA: which data it learns from, and that it learns."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings, strategies as st

from headrace.agents.pg import CategoricalPgAgent, GaussianPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.pg import A2C, IMPALA, A2CConfig, IMPALAConfig, PolicyGradientAlgo
from headrace.algos.returns import generalized_advantages, v_trace
from headrace.buffers.samples import Samples
from headrace.samplers import BaseSampler, CpuSampler, GpuSampler, SerialSampler
from tests.light import Signal
from tests.tasks import Matching
from tests.test_pg_algos import equal, one_batch, optimized, ready, sampler_of, weights


def by_definition(
    reward: np.ndarray,
    value: np.ndarray,
    ratio: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    bootstrap: np.ndarray,
    final: np.ndarray,
    discount: float,
    v_lambda: float,
    rho_clip: float,
    c_clip: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Equation 1 as written: a sum over the rest of the episode with products of ratios, one cell at a time."""
    T, B = reward.shape
    target, advantage = np.zeros((T, B)), np.zeros((T, B))

    def following(values: np.ndarray, t: int, b: int) -> float:
        if terminated[t, b]:
            return 0.0
        if truncated[t, b]:
            return float(final[t, b])
        return float(values[t + 1, b] if t + 1 < T else bootstrap[0, b])

    for b in range(B):
        for s in range(T):
            target[s, b] = value[s, b]
            for t in range(s, T):
                c = math.prod(v_lambda * min(c_clip, ratio[i, b]) for i in range(s, t))
                error = reward[t, b] + discount * following(value, t, b) - value[t, b]
                target[s, b] += discount ** (t - s) * c * min(rho_clip, ratio[t, b]) * error
                if terminated[t, b] or truncated[t, b]:
                    break
    for b in range(B):
        for s in range(T):
            error = reward[s, b] + discount * following(target, s, b) - value[s, b]
            advantage[s, b] = min(rho_clip, ratio[s, b]) * error
    return advantage, target


#: Reward, value, ratio, terminated, truncated, bootstrap and final values.
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_batch(T: int, B: int, seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    reward, value, final = (generator.normal(size=(T, B)) for _ in range(3))
    ratio = np.exp(generator.normal(size=(T, B)))
    terminated, truncated = (generator.random((T, B)) < 0.15 for _ in range(2))
    return reward, value, ratio, terminated, truncated, generator.normal(size=(1, B)), final


@given(
    T=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    v_lambda=st.sampled_from([0.0, 0.8, 1.0]),
    rho_clip=st.sampled_from([0.5, 1.0, 3.0, math.inf]),
    c_clip=st.sampled_from([0.5, 1.0, math.inf]),
)
@settings(max_examples=60, deadline=None)
def test_v_trace_follows_its_definition(T: int, seed: int, v_lambda: float, rho_clip: float, c_clip: float) -> None:
    arrays = random_batch(T, 3, seed)
    expected = by_definition(*arrays, 0.9, v_lambda, rho_clip, c_clip)
    reward, value, ratio, terminated, truncated, bootstrap, final = map(torch.from_numpy, arrays)
    tensors = (reward, value, ratio.log(), terminated, truncated, bootstrap, final)
    before = [tensor.clone() for tensor in tensors]
    for found, wanted in zip(v_trace(*tensors, 0.9, v_lambda, rho_clip, c_clip), expected, strict=True):
        torch.testing.assert_close(found, torch.from_numpy(wanted))
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True)), "an input was changed"


def test_v_trace_on_policy_is_the_discounted_return() -> None:
    reward, value, ratio, terminated, truncated, bootstrap, final = map(torch.from_numpy, random_batch(9, 4, 1))
    ends = (terminated, truncated, bootstrap, final)
    advantage, target = v_trace(reward, value, torch.zeros_like(ratio), *ends, 0.9)
    expected, returns = generalized_advantages(reward, value, *ends, 0.9, 1.0)
    torch.testing.assert_close(target, returns)
    torch.testing.assert_close(advantage, expected)


def test_padding_is_zero_in_results_and_affects_nothing_even_if_nan() -> None:
    nan = math.nan
    valid = torch.tensor([[True], [True], [False], [False]])
    terminated = torch.tensor([[False], [True], [False], [False]])
    truncated = torch.zeros(4, 1, dtype=torch.bool)
    reward, value = torch.tensor([[1.0], [2.0], [nan], [nan]]), torch.tensor([[0.5], [0.25], [nan], [nan]])
    log_ratio = torch.tensor([[0.0], [0.0], [nan], [nan]])
    bootstrap, final = torch.tensor([[nan]]), torch.zeros(4, 1)
    advantage, target = v_trace(reward, value, log_ratio, terminated, truncated, bootstrap, final, 0.5, valid=valid)
    assert target[:, 0].tolist() == [2.0, 2.0, 0.0, 0.0]
    assert advantage[:, 0].tolist() == [1.5, 1.75, 0.0, 0.0]


# ---- IMPALA ----


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("make", [CategoricalPgAgent, RecurrentCategoricalPgAgent])
def test_impala_on_policy_equals_a2c(make: Any, reset_mode: str) -> None:
    agent, samples = one_batch(reset_mode, make())
    assert samples.env.truncated.any()
    expected = optimized(A2C(A2CConfig()), samples, agent)
    found = optimized(IMPALA(IMPALAConfig()), samples, agent)
    assert not equal(found, weights(agent))
    for x, y in zip(expected, found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=2e-5)


def test_off_policy_steps_are_weighted_by_their_ratio() -> None:
    agent, samples = one_batch()
    algo = IMPALA(IMPALAConfig(normalize_advantage=False))
    ready(algo, agent, samples)
    logits = samples.agent.agent_info.dist.logits
    acted = samples.agent.action[..., None]
    on_policy = advantages(algo, samples)
    # Such actions were e times as likely where they were taken, so with the same values they count 1/e, to begin with.
    chance = logits.log_softmax(-1).gather(-1, acted).exp()
    logits.scatter_(-1, acted, logits.gather(-1, acted) + ((1 - chance) / (math.exp(-1) - chance)).log())
    off_policy = advantages(algo, samples)
    last = samples.env.done
    torch.testing.assert_close(off_policy[last], on_policy[last] / math.e, rtol=1e-4, atol=1e-5)


def advantages(algo: PolicyGradientAlgo, samples: Samples) -> torch.Tensor:
    with torch.no_grad():
        return algo.advantages(samples, samples.env.reward, None)[0]


def test_values_use_the_current_parameters() -> None:
    agent, samples = one_batch()
    expected = optimized(IMPALA(), samples, agent)
    samples.agent.agent_info.value[:] = math.nan
    assert samples.agent.bootstrap_value is not None
    samples.agent.bootstrap_value[:] = math.nan
    recorded = optimized(IMPALA(), samples, agent)
    assert equal(expected, recorded)


def test_padding_does_not_affect_learning() -> None:
    agent, samples = one_batch("wait")
    padding = ~samples.env.valid
    clean = optimized(IMPALA(), samples, agent)
    poisoned = samples.copy()
    poisoned.env.reward[padding] = math.nan
    poisoned.env.observation[padding] = math.nan
    poisoned.agent.agent_info.dist.logits[padding] = 7.0
    assert equal(clean, optimized(IMPALA(), poisoned, agent))


@pytest.mark.parametrize("wrong", [{"rho_clip": -1.0}, {"c_clip": -0.1}, {"discount": 2.0}])
def test_invalid_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IMPALAConfig(**wrong)


@pytest.mark.parametrize(
    "cls", [CpuSampler, *(pytest.param(cls, marks=pytest.mark.slow) for cls in (SerialSampler, GpuSampler))]
)
def test_impala_learns_alike_on_any_sampler_without_bootstrap_value(cls: type[BaseSampler]) -> None:
    agent, algo = CategoricalPgAgent(), IMPALA(IMPALAConfig(discount=0.5, learning_rate=1e-2))
    assert not algo.bootstrap_value
    with cls(Signal, batch_T=16, batch_B=32, n_workers=2, max_decorrelation_steps=0).initialize(agent, seed=0) as own:
        algo.initialize(agent, n_itr=50, batch_spec=own.batch_spec)
        for itr in range(50):
            samples, traj_infos = own.obtain_samples(itr)
            algo.optimize_agent(itr, samples)
    assert np.mean([info.Return for info in traj_infos]) > 4.5  # of 5


@pytest.mark.slow
def test_impala_learns_with_gaussian_agents() -> None:
    def make() -> Matching:
        return Matching(spaces.Box(-1, 1, (2,), np.float32))

    agent, algo = GaussianPgAgent(init_log_std=-1.0), IMPALA(IMPALAConfig(discount=0.0, learning_rate=1e-2))
    returns = []
    with sampler_of(make, batch_B=32).initialize(agent, seed=0) as sampler:
        algo.initialize(agent, n_itr=60, batch_spec=sampler.batch_spec)
        for itr in range(60):
            samples, traj_infos = sampler.obtain_samples(itr)
            algo.optimize_agent(itr, samples)
            returns.append(np.mean([info.Return for info in traj_infos]))
    assert np.mean(returns[-5:]) > np.mean(returns[:5]) + 1.0


@pytest.mark.slow
def test_impala_solves_cartpole() -> None:
    agent, algo, n_itr = CategoricalPgAgent(), IMPALA(), 300
    returns = []
    with SerialSampler("CartPole-v1", batch_T=8, batch_B=32).initialize(agent, seed=0) as sampler:
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec)
        for itr in range(n_itr):
            samples, traj_infos = sampler.obtain_samples(itr)
            algo.optimize_agent(itr, samples)
            returns += [info.Return for info in traj_infos]
    assert np.mean(returns[:50]) < 40
    assert np.mean(returns[-50:]) > 100
