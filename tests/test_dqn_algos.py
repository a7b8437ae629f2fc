"""DQN and CategoricalDQN: targets, number of updates, and learning."""

import copy
import math
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from headrace.agents.base import Agent
from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.algos.dqn import DQN, CategoricalDQN, CategoricalDQNConfig, DQNConfig, QLearningAlgo
from headrace.algos.dqn.categorical import projected
from headrace.buffers.samples import Samples
from headrace.replays.base import Transitions
from headrace.runners import MinibatchRl, MinibatchRlEval, RunnerConfig, load_checkpoint, save_checkpoint
from headrace.runners.logging.logger import Logger
from headrace.samplers import BaseSampler, CpuSampler, GpuSampler, SerialSampler
from headrace.types import BatchSpec, EnvSpaces, StepInputs
from tests.light import Signal
from tests.test_pg_algos import equal, weights

QUICK: dict[str, Any] = {
    "batch_size": 32,
    "replay_ratio": 8.0,
    "replay_size": 4000,
    "min_steps_learn": 64,
    "n_step": 1,
    "target_update_interval": 10,
}
AGENTS: dict[str, Any] = {
    "dqn": DqnAgent,
    "categorical": lambda **options: CategoricalDqnAgent(V_min=-1, V_max=3, n_atoms=21, **options),
}
ALGOS: dict[str, Any] = {
    "dqn": lambda **options: DQN(DQNConfig(**{**QUICK, **options})),
    "categorical": lambda **options: CategoricalDQN(CategoricalDQNConfig(**{**QUICK, **options})),
}


def sampler_of(env: Any = Signal, cls: type[BaseSampler] = SerialSampler, **options: Any) -> BaseSampler:
    return cls(env, **{"batch_T": 8, "batch_B": 8, "max_decorrelation_steps": 0, "n_workers": 2, **options})


def run(
    algo: QLearningAlgo, agent: Agent, n_itr: int, env: Any = Signal, seed: int = 0, **options: Any
) -> tuple[list[dict[str, float]], list[float]]:
    """Trains; the infos of all updates, and the returns of the last ten batches' episodes."""
    infos, returns = [], []
    with sampler_of(env, **options).initialize(agent, seed=seed) as sampler:
        algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec, seed=seed)
        for itr in range(n_itr):
            samples, traj_infos = sampler.obtain_samples(itr)
            infos.append(algo.optimize_agent(itr, samples))
            returns += [info.Return for info in traj_infos if itr >= n_itr - 10]
    return infos, returns


def collected(agent: Agent, n_itr: int, **options: Any) -> list[Samples]:
    with sampler_of(**options).initialize(agent, seed=0) as sampler:
        return [sampler.obtain_samples(itr)[0].copy() for itr in range(n_itr)]


# ---- settings ----


@pytest.mark.parametrize(("algo", "config_cls"), [(DQN, DQNConfig), (CategoricalDQN, CategoricalDQNConfig)])
def test_settings_are_frozen_keywords_and_checked(algo: Any, config_cls: Any) -> None:
    config = config_cls(discount=0.9)
    assert (algo(config).config, algo(config).discount, algo(config).bootstrap_value) == (config, 0.9, False)
    with pytest.raises(TypeError):
        config_cls(0.9)
    with pytest.raises(FrozenInstanceError):
        config.discount = 0.5
    for wrong in (
        {"discount": 1.5},
        {"target_update_tau": -0.1},
        {"batch_size": 0},
        {"n_step": 0},
        {"replay_ratio": -1.0},
        {"replay_size": 10, "min_steps_learn": 100},
        {"pri_alpha": -1.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            config_cls(**wrong)


def test_replay_too_small_for_a_batch_is_refused_before_training() -> None:
    with sampler_of().initialize(agent := DqnAgent(), seed=0) as sampler:
        algo = DQN(DQNConfig(replay_size=64, min_steps_learn=64))
        with pytest.raises(ValueError, match=r"make it at least .* steps"):
            algo.initialize(agent, n_itr=1, batch_spec=sampler.batch_spec)


@pytest.mark.parametrize(
    ("algo", "agent", "says"),
    [
        (CategoricalDQN(), DqnAgent(), "CategoricalDQN trains a CategoricalDqnAgent, got a DqnAgent"),
        (DQN(), CategoricalPgAgent(), "DQN trains a DqnAgent, got a CategoricalPgAgent"),
    ],
)
def test_an_agent_of_another_family_is_refused(algo: QLearningAlgo, agent: Agent, says: str) -> None:
    with sampler_of().initialize(agent, seed=0) as sampler, pytest.raises(TypeError, match=says):
        algo.initialize(agent, n_itr=1, batch_spec=sampler.batch_spec)


def test_uninitialized_agent_is_refused() -> None:
    with pytest.raises(ValueError, match="initialize the sampler first"):
        DQN().initialize(DqnAgent(), n_itr=1, batch_spec=BatchSpec(8, 8))


# ---- what a loss is ----


class Table(torch.nn.Module):
    """The values of two actions are the parameters, times the observation."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__()
        self.q = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, observation: torch.Tensor, prev_action: Any, prev_reward: Any) -> torch.Tensor:
        return observation * self.q


def transitions_of(observation: list[float], action: list[int], following: list[float]) -> Transitions:
    n = len(action)

    def inputs(x: list[float]) -> StepInputs:
        return StepInputs(torch.tensor(x)[:, None], torch.zeros(n), torch.zeros(n), torch.zeros(n, dtype=torch.bool))

    return Transitions(
        inputs(observation),
        torch.tensor(action),
        torch.tensor([3.0, 5.0][:n]),
        inputs(following),
        torch.tensor([0.5, 0.0][:n]),
        torch.ones(n),
        None,
    )


def table_algo(agent: Agent | None = None, **options: Any) -> DQN:
    agent = DqnAgent(ModelCls=Table) if agent is None else agent
    agent.initialize(EnvSpaces(gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)), seed=0)
    algo = DQN(DQNConfig(**{**QUICK, **options}))
    algo.initialize(agent, n_itr=4, batch_spec=BatchSpec(1, 2))
    return algo


@pytest.mark.parametrize("double", [False, True])
def test_target_equals_hand_computed_values(double: bool) -> None:
    algo = table_algo(double_dqn=double, delta_clip=None)
    model = algo._agent.model
    assert isinstance(model, Table)
    with torch.no_grad():
        model.q.copy_(torch.tensor([4.0, -2.0]))  # the target network has [1, 2] still
    losses = algo.losses(transitions_of([1.0, 2.0], [0, 1], [10.0, 1e6]))
    # The target's values at 10 are 10 and 20; the learning network prefers the first. The second row terminated.
    targets = [3 + 0.5 * (10 if double else 20), 5.0]
    errors = [abs(targets[0] - 4.0), abs(targets[1] + 4.0)]
    assert losses.priority.tolist() == pytest.approx(errors)
    assert losses.loss.tolist() == pytest.approx([0.5 * error**2 for error in errors])
    losses.loss.sum().backward()
    expected = [-(targets[0] - 4.0), -2 * (targets[1] + 4.0)]  # by the value of the action taken, and nothing else
    assert model.q.grad is not None
    assert model.q.grad.tolist() == pytest.approx(expected)
    assert losses.info["tdAbsErr"].item() == pytest.approx(sum(errors) / 2)


def test_large_errors_count_linearly_with_delta_clip() -> None:
    algo = table_algo(double_dqn=False, delta_clip=2.0)
    losses = algo.losses(transitions_of([1.0, 1.0], [0, 1], [1.0, 1.0]))
    # δ = 3 + 1/2 · 2 − 1 = 3, and 5 − 2 = 3: 2 · (3 − 2/2).
    assert losses.loss.tolist() == pytest.approx([4.0, 4.0])
    assert losses.priority.tolist() == pytest.approx([3.0, 3.0]), "priorities are not clipped"


def naive_projection(p: np.ndarray, z: np.ndarray, return_: float, discount: float) -> np.ndarray:
    """Algorithm 1 of Bellemare et al., one atom at a time."""
    spacing, m = (z[-1] - z[0]) / (len(z) - 1), np.zeros(len(z))
    for j in range(len(z)):
        b = min((min(max(return_ + discount * z[j], z[0]), z[-1]) - z[0]) / spacing, len(z) - 1)
        low, high = math.floor(b), math.ceil(b)
        if low == high:
            m[low] += p[j]
        else:
            m[low] += p[j] * (high - b)
            m[high] += p[j] * (b - low)
    return m


@given(
    n_atoms=st.integers(2, 60),
    v_min=st.integers(-20, 5),
    width=st.integers(1, 30),
    return_=st.floats(-30, 30),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_projections_follow_the_algorithm_of_the_paper(
    n_atoms: int, v_min: int, width: int, return_: float, discount: float, seed: int
) -> None:
    z = torch.linspace(v_min, v_min + width, n_atoms, dtype=torch.float64)
    p = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(n_atoms), size=2))
    found = projected(p, z, torch.tensor([return_, 0.0]).double(), torch.tensor([discount, 1.0]).double())
    expected = naive_projection(p[0].numpy(), z.numpy(), float(np.float32(return_)), float(np.float32(discount)))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(found.sum(dim=-1).numpy(), 1.0, atol=1e-9)
    np.testing.assert_allclose(found[1].numpy(), p[1].numpy(), atol=1e-9)  # nothing moved


def test_categorical_loss_is_the_cross_entropy_and_priority_the_kl_divergence() -> None:
    agent = AGENTS["categorical"]()
    algo = ALGOS["categorical"]()
    with sampler_of().initialize(agent, seed=0) as sampler:
        algo.initialize(agent, n_itr=4, batch_spec=sampler.batch_spec)
        algo._writer.append(sampler.obtain_samples(0)[0])
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in agent.parameters():
            parameter.add_(torch.randn_like(parameter))
    transitions = algo._replay.sample(16)
    losses = algo.losses(transitions)
    target, now = algo._target.distributions(transitions.next_inputs), agent.distributions(transitions.inputs)
    best = agent(transitions.next_inputs).q.argmax(-1)  # double: the learning network chooses
    assert not torch.equal(best, target.q.argmax(-1))
    for row in range(16):
        m = naive_projection(
            target.logits[row, best[row]].softmax(-1).detach().numpy(),
            agent.atoms.numpy(),
            float(transitions.return_[row]),
            float(transitions.discount[row]),
        )
        log_p = now.logits[row, transitions.action[row]].log_softmax(-1).detach().numpy()
        divergence = sum(a * (math.log(a) - b) for a, b in zip(m, log_p, strict=True) if a > 0)
        assert losses.loss[row].item() == pytest.approx(-float(m @ log_p), rel=1e-4)
        assert losses.priority[row].item() == pytest.approx(divergence, rel=1e-3, abs=1e-5)


class Steps(gym.Env[np.ndarray, np.int64]):
    """Three steps with reward 1, observed as unit vectors, then the end, which is observed as a fourth."""

    def __init__(self, cut: bool) -> None:
        self.observation_space = gym.spaces.Box(0.0, 1.0, (4,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._cut = cut

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._n = 0
        return np.eye(4, dtype=np.float32)[0], {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._n += 1
        ended = self._n == 3
        return np.eye(4, dtype=np.float32)[self._n], 1.0, ended and not self._cut, ended and self._cut, {}


class FourValues(torch.nn.Module):
    """A value for each observation of `Steps`; that of the end is never learned and is 8."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__()
        self.q = torch.nn.Parameter(torch.tensor([0.0, 0.0, 0.0, 8.0])[:, None].repeat(1, n_outputs))

    def forward(self, observation: torch.Tensor, prev_action: Any, prev_reward: Any) -> torch.Tensor:
        return observation @ self.q


@pytest.mark.parametrize(
    ("n_step", "reset_mode"),
    [
        (2, "wait"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, "mid_batch"), (5, "mid_batch"), (5, "wait"))),
    ],
)
@pytest.mark.parametrize(("cut", "values"), [(False, [1.75, 1.5, 1.0]), (True, [2.75, 3.5, 5.0])])
def test_targets_bootstrap_after_truncation_but_not_after_termination(
    cut: bool, values: list[float], n_step: int, reset_mode: str
) -> None:
    """γ = 1/2: after a truncation 1 + 8/2, after a termination 1."""
    agent = DqnAgent(ModelCls=FourValues)
    algo = ALGOS["dqn"](discount=0.5, n_step=n_step, learning_rate=0.1, target_update_interval=5)
    run(algo, agent, 80, env=lambda: Steps(cut), reset_mode=reset_mode)
    assert isinstance(agent.model, FourValues)
    found = agent.model.q.detach()
    np.testing.assert_allclose(found[:3].numpy(), np.array(values)[:, None].repeat(2, axis=1), atol=0.05)
    assert found[3].tolist() == [8.0, 8.0], "nobody acts after the end"


# ---- how often ----


@pytest.mark.parametrize("replay_ratio", [0.0, 0.3, 2.6])
def test_updates_follow_the_replay_ratio_exactly(replay_ratio: float) -> None:
    algo = ALGOS["dqn"](replay_ratio=replay_ratio, min_steps_learn=130)
    infos, _ = run(algo, DqnAgent(), 25)
    assert infos[0] == infos[1] == {}, "128 steps are not enough to begin"
    # 23 batches of 64 steps count: from the one in which it begins.
    assert algo._n_updates == math.floor(replay_ratio * 23 * 64 / 32 + 1e-9)
    assert all(("loss" in info) == (replay_ratio >= 1) for info in infos[2:] if replay_ratio != 0.3)


def test_padding_is_neither_learned_from_nor_counted() -> None:
    agent, algo = DqnAgent(), ALGOS["dqn"](replay_ratio=1.0, min_steps_learn=1)
    batches = collected(agent, 6, reset_mode="wait")
    algo.initialize(agent, n_itr=6, batch_spec=batches[0].batch_spec)
    for itr, samples in enumerate(batches):
        samples.env.observation[~samples.env.valid] = math.nan
        algo.optimize_agent(itr, samples)
    n_valid = sum(int(samples.env.valid.sum()) for samples in batches)
    assert n_valid < 6 * 64
    assert algo._n_updates == n_valid // 32


def test_target_network_is_copied_at_intervals() -> None:
    agent, algo = DqnAgent(), ALGOS["dqn"](replay_ratio=1.0, target_update_interval=5, min_steps_learn=1)
    batches = collected(agent, 4)
    algo.initialize(agent, n_itr=100, batch_spec=batches[0].batch_spec)
    start = weights(agent)
    for itr in (0, 1):  # 2 updates each
        algo.optimize_agent(itr, batches[itr])
        assert equal(weights(algo._target), start)
    assert not equal(weights(agent), start)
    algo.optimize_agent(2, batches[2])  # the 5th and 6th
    assert not equal(weights(algo._target), start)
    assert not equal(weights(algo._target), weights(agent))


def test_target_network_moves_by_target_update_tau() -> None:
    agent = DqnAgent()
    algo = ALGOS["dqn"](replay_ratio=0.5, target_update_interval=1, target_update_tau=0.25, min_steps_learn=1)
    (samples,) = collected(agent, 1)
    algo.initialize(agent, n_itr=100, batch_spec=samples.batch_spec)
    before = weights(agent)
    algo.optimize_agent(0, samples)  # one update
    for target, then, now in zip(weights(algo._target), before, weights(agent), strict=True):
        torch.testing.assert_close(target, 0.75 * then + 0.25 * now)


def test_schedules_end_with_training() -> None:
    agent = DqnAgent()
    algo = ALGOS["dqn"](prioritized_replay=True, pri_beta_init=0.2, pri_beta_final=0.6, min_steps_learn=1)
    samples = collected(agent, 1)[0]
    algo.initialize(agent, n_itr=4, batch_spec=samples.batch_spec)
    betas, rates = [], []
    for itr in (0, 2, 4):
        algo.optimize_agent(itr, samples)
        betas.append(algo._replay.beta)
        rates.append(algo.optimizers["agent"].learning_rate)
    assert betas == pytest.approx([0.2, 0.4, 0.6])
    assert rates == pytest.approx([1e-3, 5e-4, 0.0])


def test_importance_weights_scale_the_loss_and_errors_become_priorities() -> None:
    agent = DqnAgent()
    algo = ALGOS["dqn"](prioritized_replay=True, min_steps_learn=1, replay_ratio=0.5)
    samples = collected(agent, 1)[0]
    algo.initialize(agent, n_itr=4, batch_spec=samples.batch_spec)
    seen, given_back = [], []
    sample, update = algo._replay.sample, algo._replay.update_priorities

    def watched(n: int) -> Transitions:
        transitions = sample(n)
        transitions.weights[:] = 0.0
        seen.append(transitions.indices)
        return transitions

    def noted(indices: Any, priorities: torch.Tensor) -> None:
        given_back.append((indices, priorities))
        update(indices, priorities)

    algo._replay.sample, algo._replay.update_priorities = watched, noted
    info = algo.optimize_agent(0, samples)
    assert info["loss"] == 0.0
    ((indices, priorities),) = given_back
    assert np.array_equal(indices, seen[0])
    assert float(priorities.mean()) == pytest.approx(info["tdAbsErr"])
    assert info["tdAbsErr"] > 0.0


# ---- they learn ----


PLAIN: tuple[str, dict[str, Any]] = ("mid_batch", {})
PRIORITIZED: tuple[str, dict[str, Any]] = ("wait", {"prioritized_replay": True, "n_step": 2})


@pytest.mark.parametrize(
    ("name", "reset_mode", "options"),
    [
        ("categorical", *PRIORITIZED),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("dqn", *PLAIN), ("dqn", *PRIORITIZED), ("categorical", *PLAIN))
        ),
    ],
)
def test_dqn_learns_to_follow_the_signal(name: str, reset_mode: str, options: dict[str, Any]) -> None:
    algo = ALGOS[name](discount=0.5, learning_rate=5e-3, replay_ratio=4.0, **options)
    infos, returns = run(algo, AGENTS[name](eps_itr_max=20), 60, reset_mode=reset_mode, batch_B=16)
    assert np.mean(returns) > 4.5  # of 5
    assert all(math.isfinite(value) for info in infos for value in info.values())


@pytest.mark.parametrize("cls", [CpuSampler, GpuSampler])
def test_trained_weights_are_equal_for_all_samplers(cls: type[BaseSampler]) -> None:
    def trained(cls: type[BaseSampler]) -> list[torch.Tensor]:
        agent = DqnAgent(eps_final=0.3, eps_final_min=0.01, eps_itr_max=4)
        run(ALGOS["dqn"](prioritized_replay=True), agent, 8, cls=cls, deterministic=True)
        return weights(agent)

    assert equal(trained(SerialSampler), trained(cls))


@pytest.mark.slow
def test_dueling_and_normalized_networks_learn() -> None:
    model_kwargs = {"dueling": True, "normalize_observation": True}
    algo = ALGOS["dqn"](discount=0.5, learning_rate=5e-3, replay_ratio=4.0)
    agent = DqnAgent(model_kwargs=model_kwargs, eps_itr_max=20)
    _, returns = run(algo, agent, 60, batch_B=16)
    assert np.mean(returns) > 4.5
    models: list[Any] = [agent.model, algo._target.model]
    count, earlier = (int(model.features.leaves[0].norm.count) for model in models)
    assert count == 60 * 128
    assert 0 < earlier < count, "as of its last update"


def test_randomness_comes_from_the_seed_only() -> None:
    def trained(seed: int) -> list[torch.Tensor]:
        agent = DqnAgent()
        batches = collected(agent, 4)
        algo = ALGOS["dqn"]()
        algo.initialize(agent, n_itr=4, batch_spec=batches[0].batch_spec, seed=seed)
        for itr, samples in enumerate(batches):
            algo.optimize_agent(itr, samples)
        return weights(agent)

    torch.manual_seed(1)
    first = trained(3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert equal(first, trained(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(first, trained(4))


# ---- it says what is wrong, and goes on where it was ----


@pytest.mark.parametrize("name", AGENTS)
def test_non_finite_loss_is_an_error_without_a_step(name: str) -> None:
    agent, algo = AGENTS[name](), ALGOS[name](prioritized_replay=True)
    batches = collected(agent, 3)
    algo.initialize(agent, n_itr=3, batch_spec=batches[0].batch_spec)
    for itr in (0, 1):
        algo.optimize_agent(itr, batches[itr])
    before, target, n_updates = weights(agent), weights(algo._target), algo._n_updates
    batches[2].env.reward[:] = math.nan  # a third of the replay: every sample has some of it
    with pytest.raises(FloatingPointError, match=r"loss=nan.* itr 2, update 32 .*batch\.return_") as error:
        algo.optimize_agent(2, batches[2])
    assert "\n" not in str(error.value)
    assert algo._n_updates == n_updates == 32
    assert equal(before, weights(agent))
    assert equal(target, weights(algo._target))


@pytest.mark.parametrize("name", AGENTS)
def test_restored_algorithm_continues_exactly(name: str, tmp_path: Path) -> None:
    agent, algo = AGENTS[name](), ALGOS[name](prioritized_replay=True, replay_ratio=2.5)
    batches = collected(agent, 5)
    algo.initialize(agent, n_itr=5, batch_spec=batches[0].batch_spec)
    for itr in range(4):
        algo.optimize_agent(itr, batches[itr])
    save_checkpoint(tmp_path / "saved.pt", {"algo": algo.state_dict(), "agent": agent.state_dict()})
    saved = load_checkpoint(tmp_path / "saved.pt")
    algo.optimize_agent(4, batches[4])

    for loads in (True, False):
        other, again = AGENTS[name](), ALGOS[name](prioritized_replay=True, replay_ratio=2.5)
        assert agent.spaces is not None
        other.initialize(agent.spaces, seed=9)
        again.initialize(other, n_itr=5, batch_spec=batches[0].batch_spec)
        for samples in batches[:4]:
            again._writer.append(samples)
        other.load_state_dict(saved["agent"])
        if loads:
            again.load_state_dict(copy.deepcopy(saved["algo"]))
        again.optimize_agent(4, batches[4])
        assert equal(weights(agent), weights(other)) == loads
        if loads:
            assert equal(weights(algo._target), weights(again._target))
            assert again._n_updates == algo._n_updates


@pytest.mark.parametrize(
    ("prioritized", "contents"),
    [
        (True, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((False, True), (True, False), (False, False))),
    ],
)
def test_resumed_run_continues_with_its_replay(tmp_path: Path, prioritized: bool, contents: bool) -> None:
    """Bit for bit; without the replay, with a new one."""

    def runner(n_steps: int, **options: Any) -> MinibatchRl:
        config = RunnerConfig(n_steps=n_steps, seed=0, log_interval_steps=256)
        algo = ALGOS["dqn"](linear_lr_schedule=False, pri_beta_final=0.4, prioritized_replay=prioritized)
        return MinibatchRl(algo, DqnAgent(), sampler_of(), config, logger=Logger(), **options)

    undisturbed = runner(1024)
    undisturbed.train()
    runner(512, log_dir=tmp_path).train()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["algo"]["n_updates"] == 8 * 16
    if not contents:
        shutil.rmtree(tmp_path / "replay")
    longer = runner(1024, resume_from=tmp_path)
    longer.train()
    assert isinstance(longer.algo, QLearningAlgo)
    assert longer.algo._n_updates == 16 * 16
    assert longer.algo._replay.n_appended == (1024 if contents else 512)
    assert equal(weights(longer.agent), weights(undisturbed.agent)) == contents


def test_evaluations_do_not_change_training() -> None:
    def trained(cls: Any, **options: Any) -> list[torch.Tensor]:
        agent = DqnAgent(eps_itr_max=5)
        config = RunnerConfig(n_steps=512, seed=0, log_interval_steps=128)
        cls(ALGOS["dqn"](), agent, sampler_of(cls=CpuSampler, **options), config, logger=Logger()).train()
        return weights(agent)

    assert equal(trained(MinibatchRl), trained(MinibatchRlEval, eval_n_envs=2))


def test_stacked_frames_are_stored_once_with_frames() -> None:
    class Film(Signal):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Box(0, 255, (36, 36), np.uint8)

        def _show(self) -> np.ndarray:
            return np.repeat(255 * super()._show().astype(np.uint8), 12)[:, None].repeat(36, axis=1)

    def stacked() -> gym.Env[Any, Any]:
        return gym.wrappers.FrameStackObservation(Film(), 3)

    def trained(frames: int) -> list[torch.Tensor]:
        agent = DqnAgent()
        algo = ALGOS["dqn"](frames=frames, min_steps_learn=16, replay_ratio=2.0)
        run(algo, agent, 4, env=stacked, batch_T=4, batch_B=4)
        assert algo._n_updates == 4
        return weights(agent)

    assert equal(trained(0), trained(3))


@pytest.mark.gpu
@pytest.mark.parametrize("name", AGENTS)
def test_updates_run_on_the_device_of_the_agent(name: str) -> None:
    def trained(device: str) -> list[torch.Tensor]:
        agent, algo = AGENTS[name](), ALGOS[name](prioritized_replay=True)
        batches = collected(agent, 3)
        agent.to_device(device)
        algo.initialize(agent, n_itr=3, batch_spec=batches[0].batch_spec)
        for itr, samples in enumerate(batches):
            algo.optimize_agent(itr, samples)
        return weights(agent)

    for here, there in zip(trained("cpu"), trained("cuda"), strict=True):
        torch.testing.assert_close(here, there.cpu(), rtol=1e-3, atol=1e-3)
