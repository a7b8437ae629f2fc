"""Normalization: statistics of observations in the model, reward scaling in the algorithm, raw batches."""

import io
import math
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent, RecurrentGaussianPgAgent
from headrace.algos.pg import A2C, PPO, A2CConfig, PPOConfig
from headrace.algos.reward_scaling import RewardScaling
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_map, tree_paths
from headrace.models import Features, RunningNorm
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler
from tests.environments import SEED, Varied
from tests.tasks import Answer, Masked, Matching, assert_reproduced, close, learned

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
#: Uneven updates of rows with means and deviations far from 0 and 1.
SIZES = (7, 1, 1000, 2, 0, 33)


def updates(size: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale, offset = torch.tensor([0.01, 1.0, 200.0])[:size], torch.tensor([5.0, 0.0, -1000.0])[:size]
    return [
        (k + 1) * torch.randn(n, size, generator=generator) * scale + offset + k * scale for k, n in enumerate(SIZES)
    ]


# ---- RunningNorm ----


def test_statistics_cover_all_observations_so_far() -> None:
    norm, seen = RunningNorm(3), np.zeros((0, 3))
    for rows in updates():
        norm.update(rows)
        seen = np.concatenate([seen, rows.double().numpy()])
        assert norm.count.item() == len(seen)
        np.testing.assert_allclose(norm.mean.numpy(), seen.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(norm.var.numpy(), seen.var(axis=0), rtol=1e-9)
        expected = np.clip((seen - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + 1e-8), -10, 10)
        close(norm(torch.from_numpy(seen).float()), torch.from_numpy(expected).float(), 2e-4)


def test_observations_are_unchanged_until_the_first_update() -> None:
    rows = 3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(RunningNorm(3)(rows), rows)


def test_normalized_observations_are_clipped() -> None:
    norm = RunningNorm(3, clip=2.5)
    norm.update(updates()[2])
    for inference in (False, True):
        with torch.inference_mode(inference):
            assert norm(torch.full((2, 3), 1e7)).tolist() == [[2.5] * 3] * 2
            assert norm(torch.full((2, 3), -1e7)).tolist() == [[-2.5] * 3] * 2


def test_constant_component_becomes_zero() -> None:
    norm = RunningNorm(2)
    norm.update(torch.full((10, 2), 3.0))
    assert norm(torch.full((4, 2), 3.0)).tolist() == [[0, 0]] * 4
    assert norm(torch.full((4, 2), 4.0)).isfinite().all()


@pytest.mark.parametrize("leading", [(), (5,)], ids=str)
def test_numpy_normalization_equals_torch_also_after_updates(leading: tuple[int, ...]) -> None:
    norm, rows = RunningNorm(3), torch.randn(*leading, 3, generator=torch.Generator().manual_seed(0))
    kept = rows.clone()
    for batch in updates():
        norm.update(batch)
        with torch.inference_mode():
            quick = norm(rows)
        close(quick, norm(rows))
        close(norm(rows.expand(2, *leading, 3))[1], quick)
    assert torch.equal(rows, kept), "what is recorded stays as it is"
    other = RunningNorm(3)
    with torch.inference_mode():
        other(rows)
    other.load_state_dict(norm.state_dict())
    with torch.inference_mode():
        assert torch.equal(other(rows), norm(rows))


def test_loaded_statistics_continue() -> None:
    first, second = RunningNorm(3), RunningNorm(3)
    parts = updates()
    first.update(parts[0])
    first.update(parts[2])
    second.load_state_dict(first.state_dict())
    for norm in (first, second):
        norm.update(parts[5])
    assert all(torch.equal(first.state_dict()[key], value) for key, value in second.state_dict().items())
    assert not list(first.parameters()), "nothing that an optimizer would change"


# ---- which observations ----


def test_only_box_numbers_are_normalized() -> None:
    space = spaces.Dict(
        {
            "box": BOX,
            "matrix": spaces.Box(-9, 9, (2, 2), np.float64),
            "gear": spaces.Discrete(3),
            "bits": spaces.MultiBinary(2),
            "modes": spaces.MultiDiscrete([4, 4]),
            "camera": spaces.Box(0, 255, (36, 36, 1), np.uint8),
        }
    )
    features = Features(space, normalize=True)
    plain = Features(space)
    plain.load_state_dict({key: value for key, value in features.state_dict().items() if ".norm." not in key})
    space.seed(0)
    rows = tree_map(lambda *leaves: torch.from_numpy(np.stack(leaves)), *(space.sample() for _ in range(50)))
    before = plain(rows)
    assert torch.equal(features(rows), before)
    features.update(rows)
    after = features(rows)
    names = [key for key, child in space.spaces.items() for _ in range(512 if key == "camera" else _size(child))]
    for name in space.spaces:
        columns = [i for i, other in enumerate(names) if other == name]
        if name in ("box", "matrix"):
            assert after[:, columns].mean(dim=0).abs().max() < 1e-4
            assert (after[:, columns].std(dim=0, correction=0) - 1).abs().max() < 1e-3
        else:
            assert torch.equal(after[:, columns], before[:, columns])


def test_empty_box_has_nothing_to_normalize() -> None:
    space = spaces.Dict({"empty": spaces.Box(-1, 1, (0,)), "box": BOX})
    features = Features(space, normalize=True)
    space.seed(0)
    rows = tree_map(lambda *leaves: torch.from_numpy(np.stack(leaves)), *(space.sample() for _ in range(50)))
    features.update(rows)
    with torch.inference_mode():  # in NumPy
        assert features(tree_map(lambda leaf: leaf[:2], rows)).shape == (2, _size(BOX))
    assert abs(float(features(rows).mean())) < 1e-4


def _size(space: spaces.Space[Any]) -> int:
    return int(space.n) if isinstance(space, spaces.Discrete) else math.prod(space.shape or ())


def norms_of(agent: Agent) -> list[RunningNorm]:
    return [module for module in agent.model.modules() if isinstance(module, RunningNorm)]


def test_masks_are_not_normalized_but_other_parts_are() -> None:
    agent, algo = CategoricalPgAgent(model_kwargs={"normalize_observation": True}), PPO()
    sampler = SerialSampler(
        Masked, {"action_space": spaces.Discrete(4)}, batch_T=10, batch_B=4, max_decorrelation_steps=0
    )
    with sampler.initialize(agent, seed=SEED, bootstrap_value=True):
        algo.initialize(agent, n_itr=2, batch_spec=sampler.batch_spec)
        for itr in range(2):
            samples, _ = sampler.obtain_samples(itr)
            assert_reproduced(agent, samples)
            algo.optimize_agent(itr, samples)
    (norm,) = norms_of(agent)
    assert norm.count == 80
    assert norm.mean.shape == (2,)


# ---- in training ----

AGENTS: dict[str, Any] = {
    "feed-forward": lambda: CategoricalPgAgent(model_kwargs={"normalize_observation": True}),
    "separate value": lambda: CategoricalPgAgent(
        model_kwargs={"normalize_observation": True, "separate_value": True, "hidden_sizes": (16,)}
    ),
    "lstm": lambda: RecurrentCategoricalPgAgent(model_kwargs={"normalize_observation": True, "hidden_size": 8}),
}


def sampler_of(cls: type[BaseSampler] = SerialSampler, **options: Any) -> BaseSampler:
    env_kwargs = {
        "observation_space": spaces.Box(np.float32(90), np.float32(110), (3,), np.float32),
        "action_space": spaces.Discrete(3),
    }
    return cls(Varied, env_kwargs, batch_T=10, batch_B=5, **options)


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("name", AGENTS)
def test_batch_is_raw_and_statistics_change_only_after_learning(name: str, reset_mode: str) -> None:
    """They are updated with the valid steps; padding, here NaN, is left out."""
    agent, algo, seen = AGENTS[name](), PPO(PPOConfig(epochs=1)), np.zeros((0, 3))
    with sampler_of(reset_mode=reset_mode).initialize(agent, seed=SEED, bootstrap_value=True) as sampler:
        algo.initialize(agent, n_itr=3, batch_spec=sampler.batch_spec)
        (norm,) = norms_of(agent)
        for itr in range(3):
            samples = sampler.obtain_samples(itr)[0].copy()
            assert norm.count == len(seen)
            assert_reproduced(agent, samples)
            valid = samples.env.valid
            observation = samples.env.observation[valid].double().numpy()
            assert observation.min() >= 90
            assert valid.all() == (reset_mode == "mid_batch")
            samples.env.observation[~valid] = 1e30
            seen = np.concatenate([seen, observation])
            algo.optimize_agent(itr, samples)
            assert norm.count == len(seen)
            np.testing.assert_allclose(norm.mean.numpy(), seen.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(norm.var.numpy(), seen.var(axis=0), rtol=1e-9)


def trained(cls: type[BaseSampler], make: Any, **options: Any) -> tuple[list[Samples], Agent]:
    agent, algo, made = make(), PPO(PPOConfig(epochs=1)), []
    with sampler_of(cls, deterministic=True, **options).initialize(agent, seed=SEED, bootstrap_value=True) as sampler:
        algo.initialize(agent, n_itr=3, batch_spec=sampler.batch_spec)
        for itr in range(3):
            made.append(sampler.obtain_samples(itr)[0].copy())
            algo.optimize_agent(itr, made[-1])
    return made, agent


@pytest.mark.parametrize(
    ("name", "start_method"),
    [
        ("lstm", "fork"),
        pytest.param("feed-forward", "fork", marks=pytest.mark.slow),
        pytest.param("feed-forward", "forkserver", marks=pytest.mark.slow),
    ],
)
def test_statistics_reach_the_workers(name: str, start_method: str) -> None:
    """With updates in between, batches are equal bit for bit."""
    expected, agent = trained(SerialSampler, AGENTS[name])
    found, other = trained(CpuSampler, AGENTS[name], n_workers=2, start_method=start_method)
    for samples, others in zip(expected, found, strict=True):
        for (path, leaf), (_, same) in zip(tree_paths(samples), tree_paths(others), strict=True):
            assert torch.equal(leaf, same), path
    for mine, theirs in zip(agent.acting_state(), other.acting_state(), strict=True):
        assert torch.equal(mine, theirs)
    assert norms_of(agent)[0].count == 150


def test_an_agents_statistics_are_in_its_state_dict() -> None:
    samples, agent = trained(SerialSampler, AGENTS["feed-forward"])
    other = AGENTS["feed-forward"]()
    assert agent.spaces is not None
    other.initialize(agent.spaces, seed=99)
    buffer = io.BytesIO()
    torch.save(agent.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert norms_of(other)[0].count == 150
    for mine, theirs in zip(agent.acting_state(), other.acting_state(), strict=True):
        assert torch.equal(mine, theirs)
    agent.update_statistics(samples[0].env.observation.flatten(0, 1))
    other.update_statistics(samples[0].env.observation.flatten(0, 1))
    assert torch.equal(norms_of(agent)[0].var, norms_of(other)[0].var)


class FarOff(Matching):
    """`Matching` with observations that are large and close together."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__(action_space)
        self.observation_space = spaces.Box(0.0, 1e4, (2,), np.float32)

    def _show(self) -> np.ndarray:
        return np.float32(1000.0) + 5 * super()._show()


def test_large_observations_are_learned_only_with_normalization() -> None:
    def reached(normalize: bool) -> float:
        agent = CategoricalPgAgent(model_kwargs={"normalize_observation": normalize})
        action = spaces.Discrete(4)
        return learned(agent, lambda: FarOff(action), n_itr=15, discount=0.0, learning_rate=1e-2) / 5

    assert reached(True) > 0.93
    assert reached(False) < 0.6


# ---- rewards ----


def batch(T: int, B: int, seed: int, padding: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rewards, ends, validity `[T, B]`; with padding, columns wait from some end on, their rewards NaN."""
    rng = np.random.default_rng(seed)
    reward, ended = rng.normal(3.0, 5.0, (T, B)), rng.random((T, B)) < 0.2
    valid = np.ones((T, B), bool)
    if padding:
        for b in range(0, B, 2):
            ends = np.flatnonzero(ended[:, b])
            if len(ends):
                valid[ends[0] + 1 :, b] = ended[ends[0] + 1 :, b] = False
                reward[ends[0] + 1 :, b] = np.nan
    tensors = torch.from_numpy(reward).float(), torch.from_numpy(ended), torch.from_numpy(valid)
    return tensors if padding else (*tensors[:2], None)


def scaled_slowly(
    batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]], discount: float, clip: float
) -> list[np.ndarray]:
    """The same by loops over rows, with all returns kept."""
    B = batches[0][0].shape[1]
    running, returns, answers = [0.0] * B, [], []
    for reward, ended, valid in batches:
        for b in range(B):
            for t in range(len(reward)):
                if valid is None or valid[t, b]:
                    running[b] = discount * running[b] + float(reward[t, b])
                    returns.append(running[b])
                    if ended[t, b]:
                        running[b] = 0.0
        rows = reward.double().numpy() if valid is None else np.where(valid.numpy(), reward.double().numpy(), 0.0)
        answers.append(np.clip(rows / np.sqrt(np.var(returns) + 1e-8), -clip, clip))
    return answers


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize(("discount", "clip"), [(0.99, 10.0), (0.9, 0.5), (0.0, 10.0), (1.0, 10.0)])
def test_rewards_are_divided_by_the_standard_deviation_of_returns(discount: float, clip: float, padding: bool) -> None:
    batches = [batch(T, 6, seed, padding) for seed, T in enumerate((12, 1, 30, 5))]
    expected = scaled_slowly(batches, discount, clip)
    scaling = RewardScaling(discount, clip)
    for (reward, ended, valid), wanted in zip(batches, expected, strict=True):
        kept = reward.clone()
        scaled = scaling(reward, ended, valid)
        assert scaled.dtype == torch.float32
        close(scaled, torch.from_numpy(wanted).float())
        assert torch.equal(reward.nan_to_num(), kept.nan_to_num()), "the batch stays raw"


def test_running_returns_restart_at_zero_after_a_cut() -> None:
    reward, going = torch.full((5, 2), 3.0), torch.zeros(5, 2, dtype=torch.bool)
    going_on, cut, new = RewardScaling(0.9), RewardScaling(0.9), RewardScaling(0.9)
    for scaling in (going_on, cut):
        scaling(reward, going, None)
        scaling.load_state_dict(
            {**scaling.state_dict(), **{name: new.state_dict()[name] for name in ("count", "mean", "var")}}
        )
    cut.cut()
    scaled = new(reward, going, None)
    assert torch.equal(cut(reward, going, None), scaled)
    assert not torch.equal(going_on(reward, going, None), scaled)


def test_number_of_columns_may_change_where_every_episode_ended() -> None:
    scaling, batches = RewardScaling(0.9), []
    for seed, B in enumerate((4, 7, 2)):
        reward, ended, _ = batch(9, B, seed, padding=False)
        ended[-1] = True
        batches.append((reward, ended, None))
    expected = torch.cat([reward for reward, _, _ in batches], dim=1), torch.cat([ended for _, ended, _ in batches], 1)
    for one in batches:
        scaling(*one)
    together = RewardScaling(0.9)
    together(*expected, None)
    assert scaling.deviation == pytest.approx(together.deviation)


def test_restored_reward_scaling_gives_the_same_next_batch() -> None:
    scaling, other, fresh = (RewardScaling(0.9) for _ in range(3))
    scaling(*batch(20, 4, 0, padding=False))
    saved = deepcopy(scaling.state_dict())
    expected = scaling(*batch(20, 4, 1, padding=False))
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(*batch(20, 4, 1, padding=False)), expected)
    assert not torch.equal(fresh(*batch(20, 4, 1, padding=False)), expected)


class Hundred(gym.Env[np.ndarray, np.int64]):
    """Gives rewards of 100, 200, 300, then ends."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 3.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._n = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.int64) -> Answer:
        self._n += 1
        return np.full(1, self._n, np.float32), 100.0 * self._n, self._n == 3, False, {}


@pytest.mark.parametrize("cls", [A2C, PPO])
def test_normalize_reward_changes_only_learning(cls: Any) -> None:
    """Episodes have the environment's rewards; an algorithm that is saved in between continues with its scale."""
    config = {A2C: A2CConfig, PPO: PPOConfig}[cls]
    losses: dict[bool, list[float]] = {}
    for normalize in (False, True):
        agent, algo = CategoricalPgAgent(), cls(config(normalize_reward=normalize))
        with SerialSampler(Hundred, batch_T=7, batch_B=3).initialize(agent, seed=0, bootstrap_value=True) as sampler:
            algo.initialize(agent, n_itr=4, batch_spec=sampler.batch_spec)
            losses[normalize] = []
            for itr in range(4):
                samples, traj_infos = sampler.obtain_samples(itr)
                before = samples.env.reward.clone()
                if itr == 2:
                    saved = deepcopy(algo.state_dict())
                    algo = cls(config(normalize_reward=normalize))
                    algo.initialize(agent, n_itr=4, batch_spec=sampler.batch_spec)
                    algo.load_state_dict(saved)
                    assert ("reward_scaling" in saved) == normalize
                    if normalize:
                        assert saved["reward_scaling"]["count"] == 42
                losses[normalize].append(algo.optimize_agent(itr, samples)["valueLoss"])
                assert torch.equal(samples.env.reward, before)
                assert set(before.flatten().tolist()) == {100, 200, 300}
                assert {info.Return for info in traj_infos if info.Length == 3} == {600}
    assert min(losses[False]) > 1e4
    assert max(losses[True]) < 100


@pytest.mark.slow
def test_recurrent_gaussian_agent_learns_with_normalized_observations_and_rewards() -> None:
    agent = RecurrentGaussianPgAgent(model_kwargs={"cell": "gru", "normalize_observation": True, "hidden_size": 16})
    action = spaces.Box(np.array([0, -4], np.float32), np.array([10, -1], np.float32))
    config = {"discount": 0.0, "learning_rate": 2e-2, "normalize_reward": True}
    assert learned(agent, lambda: FarOff(action), n_itr=12, batch_T=10, **config) / 5 > 0.85
