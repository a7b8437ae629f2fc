"""VPG: what its returns, its baseline and its losses are, and that it learns from whole episodes."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.pg import IMPALA, PPO, VPG, PolicyGradientAlgo, PPOConfig, VPGConfig
from headrace.algos.pg.base import PgBatch
from headrace.algos.returns import final_values
from headrace.buffers.samples import Samples
from headrace.types import BatchSpec
from tests.light import Signal
from tests.test_pg_algos import GruAgent, Tabular, equal, optimized, ready, sampler_of, tabular, two_rows, weights


class Uneven(Signal):
    """A `Signal` whose episodes take 3 to 5 steps, and are truncated if they take 4."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        first = super().reset(seed=seed)
        self._length = int(self.np_random.integers(3, 6))
        self._episode = int(self._length == 4)
        return first


def whole_episodes(agent: Agent, batch_T: int = 5, itr: int = 0) -> Samples:
    """Returns 8 padded episodes with a bootstrap value of 0, as nothing follows them in the batch."""
    with sampler_of(Uneven, batch_T, reset_mode="wait").initialize(agent, seed=0, bootstrap_value=True) as sampler:
        for number in range(itr + 1):
            samples = sampler.obtain_samples(number)[0].copy()
    assert samples.agent.bootstrap_value is not None
    samples.agent.bootstrap_value.zero_()
    assert len(samples.final) == 8
    return samples


class Seen(VPG):
    """Keeps the batch it learns from."""

    def parts(self, itr: int, batch: PgBatch, recomputed: Callable[[], PgBatch]) -> Iterator[PgBatch]:
        self.batch = batch
        return super().parts(itr, batch, recomputed)


def test_advantages_are_monte_carlo_returns_minus_the_recorded_values() -> None:
    agent = CategoricalPgAgent(ModelCls=Tabular)  # V = 3
    samples = whole_episodes(agent)
    env, expected = samples.env, torch.zeros(5, 8)
    assert {3, 4, 5} == set(env.valid.sum(0).tolist())
    for b in range(8):
        length = int(env.valid[:, b].sum())
        rest = 3.0 if length == 4 else 0.0
        for t in reversed(range(length)):
            expected[t, b] = rest = float(env.reward[t, b]) + 0.5 * rest
    samples.agent.agent_info.value[:] = torch.arange(40.0).view(5, 8)
    algo = Seen(VPGConfig(discount=0.5, normalize_reward=False, normalize_advantage=False))
    ready(algo, agent, samples).optimize_agent(0, samples)
    torch.testing.assert_close(algo.batch.returns, expected[env.valid])
    torch.testing.assert_close(algo.batch.advantage, (expected - torch.arange(40.0).view(5, 8))[env.valid])


def test_losses_equal_hand_computed_values() -> None:
    algo, agent = VPG(VPGConfig(value_epochs=2)), tabular()  # π = (1/2, 1/2), V = 3
    algo.initialize(agent, n_itr=1, batch_spec=BatchSpec(1, 2))
    batch = two_rows((0.9, 0.9), (2.0, -1.0))  # the recorded probabilities are not in the losses
    first, *others = algo.parts(0, batch, lambda: batch)
    assert len(others) == 2
    losses = algo.losses(0, first)
    assert losses.policy.item() == pytest.approx(-np.log(0.5) * (2.0 - 1.0) / 2)
    assert losses.value.item() == pytest.approx(0.5 * ((3 - 1) ** 2 + (3 - 3) ** 2) / 2)
    assert losses.entropy.item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("value_epochs", [0, 3])
def test_value_alone_learns_in_value_epochs(value_epochs: int) -> None:
    agent = tabular()
    algo = VPG(VPGConfig(value_epochs=value_epochs))
    algo.initialize(agent, n_itr=1, batch_spec=BatchSpec(1, 2))
    assert isinstance(agent.model, Tabular)
    gradients: list[Any] = []
    batch = two_rows((0.5, 0.5), (2.0, -1.0))
    for part in algo.parts(0, batch, lambda: batch):
        agent.model.zero_grad()
        losses = algo.losses(0, part)
        (losses.policy + losses.value - losses.entropy).backward()
        gradients.append([agent.model.get_parameter(name).grad for name in ("logits", "v")])
    (policy, value), *others = gradients
    assert policy is not None
    assert policy.any()
    assert len(others) == value_epochs
    for of_policy, of_value in others:
        assert of_policy is None or not of_policy.any()
        assert torch.equal(of_value, value)


# ---- whole episodes ----


def test_padding_beyond_the_longest_episode_changes_nothing() -> None:
    learned = []
    for batch_T in (5, 9):
        agent = CategoricalPgAgent()
        samples = whole_episodes(agent, batch_T)
        assert samples.agent.bootstrap_value is not None
        samples.agent.bootstrap_value.fill_(float("nan"))  # never used, because every episode ended
        learned.append(optimized(VPG(VPGConfig(value_epochs=2)), samples, agent))
    assert not equal(learned[0], weights(agent))
    assert equal(*learned)


def test_batches_may_have_different_numbers_of_episodes() -> None:
    agent = CategoricalPgAgent()
    few, many = whole_episodes(agent)[:, :3], whole_episodes(agent, itr=1)
    algo = ready(VPG(), agent, many)
    algo.optimize_agent(0, few)
    saved, saved_agent = deepcopy((algo.state_dict(), agent.state_dict()))
    algo.optimize_agent(1, many)
    expected = weights(agent)

    again = ready(VPG(), agent, many)
    agent.load_state_dict(saved_agent)
    again.load_state_dict(saved)
    again.optimize_agent(1, many)
    assert equal(weights(agent), expected), "a resumed training goes on exactly"


@pytest.mark.parametrize("make", [RecurrentCategoricalPgAgent, GruAgent])
@pytest.mark.parametrize("algo", [VPG(), PPO(PPOConfig(epochs=1)), IMPALA()], ids=["vpg", "ppo", "impala"])
def test_recurrent_agents_learn_alike_without_recorded_states(
    algo: PolicyGradientAlgo, make: Callable[[], Agent]
) -> None:
    agent = make()
    samples = whole_episodes(agent)
    assert samples.env.truncated.any()
    expected = optimized(algo, samples, agent)
    samples.agent.first_state = samples.agent.last_state = samples.final.state = None
    for found, wanted in zip(optimized(algo, samples, agent), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_values_of_final_observations_are_the_same_without_recorded_states() -> None:
    agent = RecurrentCategoricalPgAgent()
    samples = whole_episodes(agent)
    expected = final_values(agent, samples)
    assert (expected != 0).sum() == samples.env.truncated.sum() > 0
    samples.agent.first_state = samples.final.state = None
    torch.testing.assert_close(final_values(agent, samples), expected)
