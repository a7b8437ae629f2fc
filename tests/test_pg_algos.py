"""A2C, PPO and VPG: losses and advantages, what they ignore, and that they learn."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import FrozenInstanceError
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent, PgInfo
from headrace.algos.pg import A2C, PPO, VPG, A2CConfig, PgConfig, PolicyGradientAlgo, PPOConfig, VPGConfig
from headrace.algos.pg.base import PgBatch
from headrace.algos.returns import final_values, generalized_advantages
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_leaves
from headrace.cli.build import agent_for, algo_for, defaults_for
from headrace.distributions import Categorical
from headrace.samplers import SerialSampler
from headrace.types import AgentStep, BatchSpec, EnvSpaces, StepInputs
from tests.grid import large_rewards
from tests.light import Signal

CONFIGS: dict[Any, type[PgConfig]] = {A2C: A2CConfig, PPO: PPOConfig, VPG: VPGConfig}
ALGOS: list[type[A2C] | type[PPO] | type[VPG]] = [A2C, PPO, VPG]
N_ITR = 50


class Recall(Signal):
    """Rewards the action that the *previous* observation named: a policy without memory gets a third."""

    _before: int

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before, self._before = self._before, self._wanted
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(action == before), terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._before = 0
        return super().reset(seed=seed, options=options)


class GruAgent(Agent):
    """A recurrent agent in the contract of `Agent`, `[T, B]` in the training forward."""

    noise_size = 1

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        return torch.nn.ModuleDict({"cell": torch.nn.GRUCell(3, 16), "head": torch.nn.Linear(16, 4)})

    def initial_state(self, n: int) -> torch.Tensor:
        return torch.zeros(n, 16)

    def step(self, inputs: StepInputs, state: torch.Tensor) -> AgentStep:
        info, state = self._row(inputs.observation, state)
        return AgentStep(info.dist.sample(inputs.noise), info, state)

    def value(self, inputs: StepInputs, state: torch.Tensor) -> torch.Tensor:
        return self._row(inputs.observation, state)[0].value

    def __call__(self, inputs: StepInputs, state: Any = None) -> PgInfo:
        infos = []
        for observation, is_first in zip(inputs.observation, inputs.is_first, strict=True):
            info, state = self._row(observation, state * ~is_first[:, None])
            infos.append(info)
        logits, value = (
            torch.stack([part(info) for info in infos]) for part in (lambda i: i.dist.logits, lambda i: i.value)
        )
        return PgInfo(Categorical(logits), value)

    def _row(self, observation: torch.Tensor, state: torch.Tensor) -> tuple[PgInfo, torch.Tensor]:
        model = cast(torch.nn.ModuleDict, self.model)
        state = model["cell"](observation, state)
        outputs = model["head"](state)
        return PgInfo(Categorical(outputs[:, :3]), outputs[:, 3]), state


def sampler_of(env: Any = Signal, batch_T: int = 16, batch_B: int = 8, reset_mode: str = "mid_batch") -> SerialSampler:
    return SerialSampler(env, batch_T=batch_T, batch_B=batch_B, max_decorrelation_steps=0, reset_mode=reset_mode)


def one_batch(reset_mode: str = "mid_batch", agent: Agent | None = None) -> tuple[Agent, Samples]:
    agent = agent or CategoricalPgAgent()
    with sampler_of(reset_mode=reset_mode).initialize(agent, seed=0, bootstrap_value=True) as sampler:
        return agent, sampler.obtain_samples(0)[0].copy()


def ready(algo: PolicyGradientAlgo, agent: Agent, samples: Samples, seed: int = 0) -> PolicyGradientAlgo:
    algo.initialize(agent, n_itr=N_ITR, batch_spec=samples.batch_spec, seed=seed)
    return algo


def weights(agent: Agent) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in agent.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def optimized(
    algo: PolicyGradientAlgo, samples: Samples, agent: Agent, seed: int = 0, itr: int = 0
) -> list[torch.Tensor]:
    """Returns the weights after one call, from weights that depend only on the agent's seed."""
    start = weights(agent)
    ready(algo, agent, samples, seed).optimize_agent(itr, samples)
    after = weights(agent)
    with torch.no_grad():
        for parameter, value in zip(agent.parameters(), start, strict=True):
            parameter.copy_(value)
    return after


# ---- settings ----


@pytest.mark.parametrize(("cls", "config_cls"), CONFIGS.items())
def test_settings_are_frozen_keywords_and_checked(
    cls: Callable[[PgConfig], PolicyGradientAlgo], config_cls: type[PgConfig]
) -> None:
    config = config_cls(discount=0.9, learning_rate=1e-4)
    algo = cls(config)
    assert (algo.config, algo.discount, algo.bootstrap_value) == (config, 0.9, True)
    with pytest.raises(ValueError, match=r"discount must be between 0 and 1, got 1\.5"):
        config_cls(discount=1.5)
    with pytest.raises(TypeError):
        config_cls(0.9)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="learning_rat"):
        config_cls(learning_rat=1e-4)  # type: ignore[call-arg]
    with pytest.raises(FrozenInstanceError):
        config.discount = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"minibatches": 0}, {"ratio_clip": -0.1}, {"value_clip": -1.0}])
def test_invalid_settings_of_ppo_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PPO(PPOConfig(**wrong))


# ---- they learn ----


@pytest.mark.parametrize(
    ("algo", "reset_mode"),
    [
        (A2C(A2CConfig(discount=0.5, learning_rate=1e-2)), "mid_batch"),
        (PPO(PPOConfig(discount=0.5, epochs=4)), "wait"),
        (VPG(VPGConfig(discount=0.5, learning_rate=1e-2)), "wait"),
        pytest.param(A2C(A2CConfig(discount=0.5, learning_rate=1e-2)), "wait", marks=pytest.mark.slow),
        pytest.param(PPO(PPOConfig(discount=0.5, epochs=4)), "mid_batch", marks=pytest.mark.slow),
        pytest.param(VPG(VPGConfig(discount=0.5, value_epochs=2)), "mid_batch", marks=pytest.mark.slow),
    ],
)
def test_pg_algorithms_learn_to_follow_the_signal(algo: PolicyGradientAlgo, reset_mode: str) -> None:
    agent = CategoricalPgAgent()
    with sampler_of(batch_B=32, reset_mode=reset_mode).initialize(agent, seed=0, bootstrap_value=True) as sampler:
        algo.initialize(agent, n_itr=N_ITR, batch_spec=sampler.batch_spec)
        for itr in range(N_ITR):
            samples, traj_infos = sampler.obtain_samples(itr)
            opt_info = algo.optimize_agent(itr, samples)
            if itr == 0:
                first = np.mean([info.Return for info in traj_infos])
        assert first < 2.5
        assert np.mean([info.Return for info in traj_infos]) > 4.5  # of 5
        assert all(math.isfinite(value) for value in opt_info.values())
        assert opt_info["entropy"] < 1.0


@pytest.mark.slow
def test_recurrent_agent_learns_a_memory_task() -> None:
    agent, algo = GruAgent(), PPO(PPOConfig(discount=0.5, learning_rate=1e-2, epochs=3, minibatches=2))
    with sampler_of(Recall, batch_B=32).initialize(agent, seed=0, bootstrap_value=True) as sampler:
        algo.initialize(agent, n_itr=N_ITR, batch_spec=sampler.batch_spec)
        for itr in range(N_ITR):
            samples, traj_infos = sampler.obtain_samples(itr)
            algo.optimize_agent(itr, samples)
    assert np.mean([info.Return for info in traj_infos]) > 3.5  # of 5; without memory 1.67


@pytest.mark.parametrize("agent", [CategoricalPgAgent(), GruAgent()], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_probability_ratio_is_one_before_the_first_update(agent: Agent, reset_mode: str) -> None:
    agent, samples = one_batch(reset_mode, agent)
    assert samples.env.done[:-1].any(), "the batch is to hold ends"
    info = ready(PPO(PPOConfig(epochs=1, minibatches=1)), agent, samples).optimize_agent(0, samples)
    assert info["approxKl"] == pytest.approx(0.0, abs=1e-6)
    assert info["clipFraction"] == 0.0


# ---- what a loss is ----


class Tabular(torch.nn.Module):
    """Logits and value are the parameters themselves, whatever the observation."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(n_outputs))
        self.v = torch.nn.Parameter(torch.tensor(3.0))

    def forward(
        self, observation: Any, prev_action: Any, prev_reward: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits.expand(*prev_reward.shape, -1), self.v.expand(prev_reward.shape)


def tabular() -> CategoricalPgAgent:
    agent = CategoricalPgAgent(ModelCls=Tabular)
    agent.initialize(EnvSpaces(gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)), seed=0)
    return agent


def two_rows(log_prob: tuple[float, float], advantage: tuple[float, float]) -> PgBatch:
    zeros = torch.zeros(2)
    return PgBatch(
        inputs=StepInputs(zeros[:, None], zeros, zeros, zeros.bool()),
        action=torch.tensor([0, 1]),
        log_prob=torch.tensor(log_prob).log(),
        value=torch.tensor([2.0, 4.0]),
        advantage=torch.tensor(advantage),
        returns=torch.tensor([1.0, 3.0]),
    )


def test_ppo_losses_equal_hand_computed_values() -> None:
    algo, agent = PPO(PPOConfig(ratio_clip=0.2)), tabular()  # π = (1/2, 1/2), V = 3
    algo.initialize(agent, n_itr=1, batch_spec=BatchSpec(1, 2))
    # Ratios 0.5 / 0.25 = 2 and 0.5 / 0.8 = 0.625, outside [0.8, 1.2]. With advantages 1 and −1 the surrogates are
    # min(2, 1.2) and min(−0.625, −0.8).
    losses = algo.losses(0, two_rows((0.25, 0.8), (1.0, -1.0)))
    assert losses.policy.item() == pytest.approx(-(1.2 - 0.8) / 2)
    assert losses.value.item() == pytest.approx(0.5 * ((3 - 1) ** 2 + (3 - 3) ** 2) / 2)
    assert losses.entropy.item() == pytest.approx(math.log(2))
    assert losses.info["clipFraction"].item() == 1.0
    assert losses.info["approxKl"].item() == pytest.approx((2 - 1 - math.log(2) + 0.625 - 1 - math.log(0.625)) / 2)
    losses.policy.backward()
    assert isinstance(agent.model, Tabular)
    assert agent.model.logits.grad is not None
    assert torch.equal(agent.model.logits.grad, torch.zeros(2)), "clipped ratios have no gradient"
    # The other signs: min(−2, −1.2) and min(0.625, 0.8) are not clipped.
    losses = algo.losses(0, two_rows((0.25, 0.8), (-1.0, 1.0)))
    assert losses.policy.item() == pytest.approx((2 - 0.625) / 2)


def test_ppo_clips_the_value_with_value_clip() -> None:
    algo, agent = PPO(PPOConfig(value_clip=0.5)), tabular()
    algo.initialize(agent, n_itr=1, batch_spec=BatchSpec(1, 2))
    # V = 3 beside recorded 2 and 4: clipped to 2.5 and 3.5; of the two errors the larger counts.
    losses = algo.losses(0, two_rows((0.5, 0.5), (0.0, 0.0)))
    assert losses.value.item() == pytest.approx(0.5 * (max(4.0, 1.5**2) + max(0.0, 0.5**2)) / 2)


def test_a2c_losses_equal_hand_computed_values() -> None:
    algo, agent = A2C(), tabular()
    algo.initialize(agent, n_itr=1, batch_spec=BatchSpec(1, 2))
    losses = algo.losses(0, two_rows((0.9, 0.9), (2.0, -1.0)))  # the recorded probabilities are not in it
    assert losses.policy.item() == pytest.approx(-math.log(0.5) * (2.0 - 1.0) / 2)
    assert losses.value.item() == pytest.approx(1.0)


def test_behaviour_policy_is_the_recorded_one() -> None:
    agent, samples = one_batch()
    plain = optimized(PPO(PPOConfig(epochs=1)), samples, agent)
    samples.agent.agent_info.dist.logits += torch.randn(samples.agent.agent_info.dist.logits.shape)
    assert not equal(plain, optimized(PPO(PPOConfig(epochs=1)), samples, agent))


class Seen(A2C):
    """Keeps the batch it learns from."""

    def parts(self, itr: int, batch: PgBatch, recomputed: Callable[[], PgBatch]) -> Iterator[PgBatch]:
        self.batch = batch
        return super().parts(itr, batch, recomputed)


def test_truncated_episodes_bootstrap_from_their_final_observation() -> None:
    agent, samples = one_batch()
    time, column = samples.final.time, samples.final.column
    cut = samples.env.truncated[time, column]
    assert 0 < cut.sum() < len(cut)
    plain = optimized(A2C(), samples, agent)
    samples.final.observation[~cut] = 100.0
    assert equal(plain, optimized(A2C(), samples, agent)), "after a termination nothing follows"
    samples.final.observation[cut] = 100.0
    assert not equal(plain, optimized(A2C(), samples, agent))


class Recomputing(PPO):
    """Keeps the batch of each pass, and the values of all steps and of the row after the batch at its beginning."""

    samples: Samples

    def parts(self, itr: int, batch: PgBatch, recomputed: Callable[[], PgBatch]) -> Iterator[PgBatch]:
        self.passes = [(batch, *self.values())]

        def watched() -> PgBatch:
            self.passes.append((recomputed(), *self.values()))
            return self.passes[-1][0]

        return super().parts(itr, batch, watched)

    @torch.no_grad()
    def values(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        env, acted, agent = self.samples.env, self.samples.agent, self._agent
        first, last = (None if one is None else one[0] for one in (acted.first_state, acted.last_state))
        inputs = StepInputs(env.observation, acted.prev_action, env.prev_reward, env.is_first)
        goes_on = torch.zeros_like(env.is_first[0])
        then = StepInputs(env.last_observation[0], acted.action[-1], env.reward[-1], goes_on)
        return agent(inputs, first).value, agent.value(then, last)[None], final_values(agent, self.samples)


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("agent", [CategoricalPgAgent(), GruAgent()], ids=["feed_forward", "recurrent"])
def test_recomputed_advantages_come_from_the_values_of_that_moment(agent: Agent, reset_mode: str) -> None:
    agent, samples = one_batch(reset_mode, agent)
    settings: dict[str, Any] = {"normalize_reward": False, "normalize_advantage": False, "epochs": 3, "minibatches": 2}
    algo = Recomputing(PPOConfig(recompute_advantages=True, **settings))
    algo.samples = samples
    ready(algo, agent, samples).optimize_agent(0, samples)
    env, valid = samples.env, samples.env.valid
    assert len(algo.passes) == 3
    for batch, value, bootstrap, final in algo.passes:
        expected = generalized_advantages(
            env.reward, value, env.terminated, env.truncated, bootstrap, final, 0.99, 0.95, valid
        )
        for found, wanted in zip((batch.advantage, batch.returns), expected, strict=True):
            torch.testing.assert_close(found[valid] if batch.state is not None else found, wanted[valid])
    values = [value[valid] for _, value, _, _ in algo.passes]
    assert not torch.allclose(values[0], values[1], atol=1e-4), "the value has learned something in between"
    plain = Recomputing(PPOConfig(**settings))
    plain.samples = samples
    ready(plain, agent, samples).optimize_agent(0, samples)
    assert len(plain.passes) == 1


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_advantages_are_normalized_over_valid_steps(reset_mode: str) -> None:
    agent, samples = one_batch(reset_mode)
    algo, raw = Seen(), Seen(A2CConfig(normalize_advantage=False))
    optimized(algo, samples, agent)
    optimized(raw, samples, agent)
    advantage = algo.batch.advantage
    assert len(advantage) == int(samples.env.valid.sum())
    assert advantage.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert advantage.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    mean, std = raw.batch.advantage.mean(), raw.batch.advantage.std(correction=0)
    torch.testing.assert_close(advantage, (raw.batch.advantage - mean) / std, rtol=1e-3, atol=1e-4)


def test_loss_is_the_weighted_sum_of_its_terms() -> None:
    agent, samples = one_batch()
    info = ready(A2C(A2CConfig(value_loss_coeff=0.3, entropy_loss_coeff=0.2)), agent, samples).optimize_agent(
        0, samples
    )
    expected = info["policyLoss"] + 0.3 * info["valueLoss"] - 0.2 * info["entropy"]
    assert info["loss"] == pytest.approx(expected, rel=1e-5)
    assert info["perplexity"] == pytest.approx(math.exp(info["entropy"]))


# ---- how good the values are ----


@pytest.mark.parametrize("make", [CategoricalPgAgent, GruAgent], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("cls", ALGOS)
def test_explained_variance_measures_how_well_values_predict_returns(
    cls: type[PolicyGradientAlgo], reset_mode: str, make: Callable[[], Agent]
) -> None:
    agent, samples = one_batch(reset_mode, make())
    env, acted = samples.env, samples.agent
    assert samples.env.truncated.any()
    acted.agent_info.value[~env.valid] = 1e6
    assert acted.bootstrap_value is not None
    value, ends = acted.agent_info.value, (env.terminated, env.truncated, acted.bootstrap_value)
    algo = ready(cls(CONFIGS[cls](normalize_reward=False, learning_rate=0.1)), agent, samples)
    _, returns = generalized_advantages(
        env.reward, value, *ends, final_values(agent, samples), 0.99, algo.config.gae_lambda, env.valid
    )
    found = algo.optimize_agent(0, samples)  # a large step: values are others afterwards
    R, V = returns[env.valid].double().numpy(), value[env.valid].double().numpy()
    assert found["explainedVariance"] == pytest.approx(1 - np.var(R - V) / np.var(R), abs=1e-4)
    assert found["valueRMSE"] == pytest.approx(np.sqrt(np.mean((R - V) ** 2)), rel=1e-4)


@pytest.mark.parametrize("normalize_reward", [False, True])
def test_value_rmse_is_in_unscaled_rewards(normalize_reward: bool) -> None:
    agent, samples = one_batch(agent=CategoricalPgAgent(ModelCls=Tabular))
    samples.agent.agent_info.value.zero_()
    assert samples.agent.bootstrap_value is not None
    samples.agent.bootstrap_value.zero_()
    assert isinstance(agent.model, Tabular)
    with torch.no_grad():
        agent.model.v.zero_()
    samples.env.reward *= 50.0
    algo = ready(A2C(A2CConfig(discount=0.0, normalize_reward=normalize_reward)), agent, samples)
    expected = float(samples.env.reward.square().mean().sqrt())  # of values of 0, where nothing follows
    assert algo.optimize_agent(0, samples)["valueRMSE"] == pytest.approx(expected, rel=1e-4)


def test_explained_variance_of_equal_returns_is_nan() -> None:
    agent, samples = one_batch()
    samples.env.reward[:] = 0.1
    algo = ready(A2C(A2CConfig(discount=0.0, normalize_reward=False)), agent, samples)
    found = algo.optimize_agent(0, samples)  # they are advantage + value, and not equal in the last digit
    assert math.isnan(found["explainedVariance"])
    assert math.isfinite(found["valueRMSE"])


@pytest.mark.parametrize(
    "algo_name", ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a2c", "impala", "vpg"))]
)
def test_default_settings_learn_values_of_large_rewards(algo_name: str) -> None:
    """A value that lags behind returns of 10 leaves an explained variance of 0, whatever the policy does."""
    world = large_rewards()
    spaces = EnvSpaces(world.observation_space, world.action_space)
    options = defaults_for(algo_name, "tests.grid:large_rewards", spaces, None)
    agent, algo = agent_for(spaces, options), algo_for(options)
    sampler = SerialSampler(
        large_rewards, batch_T=options.batch_T, batch_B=options.batch_B, eval_n_envs=64, eval_max_trajectories=64
    )
    n_itr = 20_480 // (options.batch_T * options.batch_B)
    with sampler.initialize(agent, seed=0, bootstrap_value=True):
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec, seed=0)
        for itr in range(n_itr):
            opt_info = algo.optimize_agent(itr, sampler.obtain_samples(itr)[0])
        returns = [info.Return for info in sampler.evaluate_agent(n_itr)]
    assert np.mean(returns) > 6.0  # the shortest ways: 6.8
    assert opt_info["explainedVariance"] > 0.5
    assert opt_info["valueRMSE"] < 2.0


class Modes(CategoricalPgAgent):
    """Records whether the model is in training mode when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.value_calls: list[bool] = []
        self.forward_calls: list[bool] = []

    def value(self, inputs: StepInputs, state: Any) -> torch.Tensor:
        self.value_calls.append(self.model.training)
        return super().value(inputs, state)

    def __call__(self, inputs: StepInputs, state: Any = None) -> PgInfo:
        self.forward_calls.append(self.model.training)
        return super().__call__(inputs, state)


def test_values_come_from_the_acting_model_and_losses_from_the_training_one() -> None:
    agent = Modes()
    _, samples = one_batch(agent=agent)
    algo = ready(PPO(PPOConfig(epochs=1, minibatches=2)), agent, samples)
    for itr in range(2):  # the second time the model is in training mode to begin with
        agent.value_calls, agent.forward_calls = [], []
        algo.optimize_agent(itr, samples)
        assert agent.value_calls == [False]
        assert agent.forward_calls == [True, True]


# ---- what it never looks at ----


@pytest.mark.parametrize(
    "algo", [A2C(), PPO(PPOConfig(epochs=2)), VPG(VPGConfig(value_epochs=1))], ids=["a2c", "ppo", "vpg"]
)
@pytest.mark.parametrize("agent", [CategoricalPgAgent(), GruAgent()], ids=["feed-forward", "recurrent"])
def test_padding_does_not_affect_learning(algo: PolicyGradientAlgo, agent: Agent) -> None:
    agent, samples = one_batch("wait", agent)
    padding = ~samples.env.valid
    assert 0.4 < padding.float().mean() < 0.9
    clean = optimized(algo, samples, agent)
    poisoned = samples.copy()
    poisoned.env.reward[padding] = math.nan
    poisoned.agent.action[padding] = 2
    poisoned.agent.agent_info.value[padding] = math.nan
    poisoned.agent.agent_info.dist.logits[padding] = 7.0
    if isinstance(agent, CategoricalPgAgent):
        poisoned.env.observation[padding] = math.nan
    assert poisoned.agent.bootstrap_value is not None
    poisoned.agent.bootstrap_value[0][padding[-1]] = math.nan
    assert equal(clean, optimized(algo, poisoned, agent))


def test_batch_of_only_padding_changes_nothing() -> None:
    agent, samples = one_batch()
    before = weights(agent)
    samples.env.valid[:] = False
    assert ready(PPO(), agent, samples).optimize_agent(0, samples) == {}
    assert equal(before, weights(agent))


def test_learning_does_not_change_the_batch() -> None:
    agent, samples = one_batch()
    before = samples.copy()
    ready(PPO(), agent, samples).optimize_agent(0, samples)
    assert equal(tree_leaves(samples), tree_leaves(before))


# ---- randomness and schedules ----


def rows_of(algo: PPO, itr: int, batch: PgBatch) -> Iterator[torch.Tensor]:
    return (part.returns for part in algo.parts(itr, batch, lambda: batch))


def test_every_step_is_in_one_minibatch_of_each_epoch() -> None:
    algo, agent = PPO(PPOConfig(epochs=3, minibatches=4)), tabular()
    algo.initialize(agent, n_itr=1, batch_spec=BatchSpec(1, 10), seed=0)
    rows = torch.arange(10.0)
    batch = PgBatch(StepInputs(rows, rows, rows, rows), rows, rows, rows, rows, rows)
    parts = list(rows_of(algo, 0, batch))
    assert [len(part) for part in parts] == [3, 3, 2, 2] * 3
    epochs = [torch.cat(parts[start : start + 4]) for start in (0, 4, 8)]
    assert all(torch.equal(epoch.sort().values, rows) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1]), "shuffled anew in each epoch"
    assert not torch.equal(epochs[0], torch.cat(list(rows_of(algo, 1, batch)))[:10]), "and in each iteration"


def test_minibatches_come_from_the_seed_only() -> None:
    agent, samples = one_batch()
    torch.manual_seed(1)
    first = optimized(PPO(PPOConfig(epochs=2)), samples, agent, seed=3)
    torch.manual_seed(2)
    state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    assert equal(first, optimized(PPO(PPOConfig(epochs=2)), samples, agent, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)
    assert not equal(first, optimized(PPO(PPOConfig(epochs=2)), samples, agent, seed=4))
    assert not equal(first, optimized(PPO(PPOConfig(epochs=2)), samples, agent, seed=3, itr=1))


@pytest.mark.parametrize("algo", [A2C(), PPO(), VPG()], ids=["a2c", "ppo", "vpg"])
def test_learning_rate_falls_to_zero(algo: PolicyGradientAlgo) -> None:
    agent, samples = one_batch()
    before = weights(agent)
    assert equal(before, optimized(algo, samples, agent, itr=N_ITR))
    assert not equal(before, optimized(algo, samples, agent, itr=N_ITR - 1))


def test_ratio_clip_falls_to_zero_with_linear_clip_schedule() -> None:
    algo = PPO(PPOConfig(ratio_clip=0.2, linear_clip_schedule=True))
    algo.initialize(tabular(), n_itr=4, batch_spec=BatchSpec(1, 2))
    rows = two_rows((0.25, 0.25), (1.0, 1.0))  # ratios of 2
    assert [-algo.losses(itr, rows).policy.item() for itr in range(4)] == pytest.approx([1.2, 1.15, 1.1, 1.05])


# ---- it says what is wrong, and goes on where it was ----


@pytest.mark.parametrize("algo", [A2C(), PPO(), VPG()], ids=["a2c", "ppo", "vpg"])
def test_non_finite_loss_is_an_error_without_a_step(algo: PolicyGradientAlgo) -> None:
    agent, samples = one_batch()
    ready(algo, agent, samples)
    before = weights(agent)
    samples.env.reward[3, 2] = math.nan
    with pytest.raises(FloatingPointError, match=r"loss=nan.* itr 7, update 0 .*batch\.advantage") as error:
        algo.optimize_agent(7, samples)
    assert "\n" not in str(error.value)
    assert equal(before, weights(agent))


def test_non_finite_parameters_are_named() -> None:
    agent, samples = one_batch()
    with torch.no_grad():
        agent.model.get_parameter("policy.head.bias")[0] = math.inf
    with pytest.raises(FloatingPointError, match=r"parameter policy\.head\.bias"):
        ready(A2C(), agent, samples).optimize_agent(0, samples)


def test_batch_without_bootstrap_value_is_an_error_with_the_remedy() -> None:
    agent = CategoricalPgAgent()
    with sampler_of().initialize(agent, seed=0) as sampler:
        samples, _ = sampler.obtain_samples(0)
        with pytest.raises(ValueError, match=r"bootstrap_value=True"):
            ready(PPO(), agent, samples).optimize_agent(0, samples)


@pytest.mark.parametrize("cls", ALGOS)
def test_restored_algorithm_continues_exactly(cls: Callable[[], PolicyGradientAlgo]) -> None:
    agent, samples = one_batch()
    algo = ready(cls(), agent, samples)
    algo.optimize_agent(0, samples)
    saved, saved_agent = deepcopy((algo.state_dict(), agent.state_dict()))
    algo.optimize_agent(1, samples)

    for loads in (True, False):
        other = CategoricalPgAgent()
        assert agent.spaces is not None
        other.initialize(agent.spaces, seed=9)
        again = ready(cls(), other, samples)
        other.load_state_dict(saved_agent)
        if loads:
            again.load_state_dict(saved)
        again.optimize_agent(1, samples)
        assert equal(weights(agent), weights(other)) == loads, "the optimizer's moments matter"


def test_the_gradient_is_clipped() -> None:
    agent, samples = one_batch()
    info = ready(A2C(A2CConfig(clip_grad_norm=1e-3, adam_eps=1.0, learning_rate=1.0)), agent, samples).optimize_agent(
        0, samples
    )
    assert info["gradNorm"] > 1e-2
    moved = math.sqrt(
        sum(
            float((now - then).square().sum())
            for now, then in zip(weights(agent), weights(one_batch()[0]), strict=True)
        )
    )
    assert moved == pytest.approx(1e-3, rel=0.1)  # Adam with a large ε takes the gradient itself, here as clipped


@pytest.mark.gpu
@pytest.mark.parametrize("algo", [A2C(), PPO(PPOConfig(epochs=1)), VPG()], ids=["a2c", "ppo", "vpg"])
def test_updates_run_on_the_device_of_the_agent(algo: PolicyGradientAlgo) -> None:
    agent, samples = one_batch()
    expected = optimized(algo, samples, agent)
    agent.to_device("cuda")
    for here, there in zip(expected, optimized(algo, samples, agent), strict=True):
        torch.testing.assert_close(here, there.cpu(), rtol=1e-3, atol=1e-4)
