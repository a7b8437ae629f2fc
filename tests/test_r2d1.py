"""R2D1: rescaling, targets, priorities, and that it learns what only an agent with a memory can."""

import math
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings, strategies as st

from headrace.agents.dqn import DqnAgent, R2d1Agent, R2d1AlternatingAgent
from headrace.algos.dqn import R2D1, R2D1Config, rescaled, unscaled
from headrace.algos.dqn.r2d1 import ActingErrors
from headrace.buffers.tree import tree_map, tree_rows
from headrace.replays import Sequences, mixed_priorities
from headrace.runners import MinibatchRl, RunnerConfig
from headrace.samplers import AlternatingSampler, AsyncCpuSampler, BaseSampler, GpuSampler, SerialSampler
from headrace.types import EnvSpaces, StepInputs
from tests.environments import Varied
from tests.leftovers import DEADLINE

SPACES = {
    "observation_space": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "action_space": spaces.Discrete(3),
}
MODEL = {"hidden_size": 6, "input_size": 5}
SMALL = R2D1Config(
    batch_size=6, batch_T=5, warmup_T=3, n_step=2, replay_size=600, min_steps_learn=60, discount=0.9, replay_ratio=2.0
)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e5, 1e5, width=32), st.sampled_from([0.0, 1e-3, 0.1]))
def test_rescaling_and_its_inverse(x: float, eps: float) -> None:
    value = torch.tensor(x, dtype=torch.float64)
    h = math.copysign(math.sqrt(abs(x) + 1) - 1, x) + eps * x
    assert rescaled(value, eps).item() == pytest.approx(h, rel=1e-9, abs=1e-12)
    assert unscaled(rescaled(value, eps), eps).item() == pytest.approx(x, rel=1e-9, abs=1e-9)
    single = torch.tensor(x)
    assert unscaled(rescaled(single, eps), eps).item() == pytest.approx(x, rel=2e-5, abs=1e-6)


# ---- targets, one sequence and one time step at a time ----


def sequences_of(reset_mode: str, itrs: int = 12, config: R2D1Config = SMALL) -> tuple[R2D1, Sequences]:
    """An algorithm that was fed with a sampler's batches, with other parameters in its target network."""
    agent, algo = R2d1Agent(model_kwargs=MODEL), R2D1(config)
    sampler = SerialSampler(Varied, SPACES, batch_T=6, batch_B=4, state_interval=3, reset_mode=reset_mode)
    with sampler.initialize(agent, seed=5):
        algo.initialize(agent, n_itr=itrs, batch_spec=sampler.batch_spec, seed=1)
        for itr in range(itrs):
            algo.optimize_agent(itr, sampler.obtain_samples(itr)[0])
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.3 * torch.sin(torch.arange(parameter.numel()) + 1.0).reshape(parameter.shape))
    return algo, algo._replay.sample(40)


def values_by_hand(agent: R2d1Agent, sequences: Sequences, n: int) -> torch.Tensor:
    """Runs an agent row by row through one sequence: Q of every row, `[L, n_actions]`."""
    state, found = tree_map(lambda leaf: leaf[n : n + 1], sequences.state), []
    for t in range(len(sequences.inputs.is_first)):
        inputs: StepInputs = tree_rows(sequences.inputs, (t, slice(n, n + 1)))
        step = agent.step(replace(inputs, noise=torch.full((1, 3), 0.5)), state)
        state = step.state
        found.append(step.agent_info.q[0])
    return torch.stack(found)


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("double_dqn", [True, False])
def test_losses_and_priorities_equal_those_computed_step_by_step(reset_mode: str, double_dqn: bool) -> None:
    config = replace(SMALL, double_dqn=double_dqn)
    algo, sequences = sequences_of(reset_mode, config=config)
    found = algo.losses(sequences)
    assert len(sequences.inputs.is_first) > config.shape.length, "there are truncated episodes among them"
    assert (sequences.discount[sequences.valid] == 0).any(), "and terminated ones"
    with torch.no_grad():
        for n in range(40):
            q, target_q = (values_by_hand(agent, sequences, n) for agent in (algo._agent, algo._target))
            deltas = []
            for t in range(config.batch_T):
                if not sequences.valid[t, n]:
                    continue
                at, following = int(sequences.row[t, n]), int(sequences.next_row[t, n])
                best = (q if double_dqn else target_q)[following].argmax()
                rest = float(sequences.discount[t, n]) * unscaled(target_q[following, best], 1e-3)
                target = rescaled(sequences.return_[t, n] + rest, 1e-3)
                deltas.append(float(target - q[at, sequences.action[t, n]]))
            sizes = [abs(delta) for delta in deltas]
            assert found.loss[n].item() == pytest.approx(
                sum(d * d for d in deltas) / len(deltas) / 2, rel=1e-4, abs=1e-6
            )
            mixed = 0.9 * max(sizes) + 0.1 * sum(sizes) / len(sizes)
            assert float(found.priority[n]) == pytest.approx(mixed, rel=1e-4, abs=1e-5)


def test_gradient_is_of_the_learned_time_steps_only() -> None:
    """No gradient flows through the burn-in, or through targets."""
    algo, sequences = sequences_of("mid_batch")
    for leaf in (sequences.inputs.observation,):
        leaf.requires_grad_(True)
    algo.losses(sequences).loss.sum().backward()
    gradient = sequences.inputs.observation.grad
    assert not gradient[: SMALL.warmup_T].any()
    assert gradient[SMALL.warmup_T :].any()
    assert all(parameter.grad is None for parameter in algo._target.parameters())


def test_burn_in_starts_with_the_recorded_state_unless_it_is_turned_off() -> None:
    algo, sequences = sequences_of("mid_batch")
    assert sequences.state is not None
    assert any(part.any() for part in sequences.state)
    algo, sequences = sequences_of("mid_batch", config=replace(SMALL, stored_state=False))
    assert sequences.state is None
    assert algo.losses(sequences).loss.isfinite().all()
    algo, sequences = sequences_of("mid_batch", config=replace(SMALL, warmup_T=0))
    assert algo.losses(sequences).loss.isfinite().all()


# ---- priorities from the values with which the agent acted ----


@pytest.mark.parametrize("n_step", [1, 3, 9])
@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_errors_of_acting_equal_those_computed_step_by_step(reset_mode: str, n_step: int) -> None:
    config = replace(SMALL, n_step=n_step)
    agent = R2d1Agent(model_kwargs=MODEL)
    sampler = SerialSampler(Varied, SPACES, batch_T=12, batch_B=5, state_interval=3, reset_mode=reset_mode)
    with sampler.initialize(agent, seed=2):
        for itr in range(3):
            samples = sampler.obtain_samples(itr)[0].copy()
            found = ActingErrors(config)(samples)
            env, q = samples.env, samples.agent.agent_info.q
            assert found.shape == (12, 5)
            for t in range(12):
                for b in range(5):
                    expected = math.nan
                    total = 0.0
                    for k in range(n_step):
                        row = t + k
                        if row > 11 or not env.valid[row, b]:
                            break
                        total += 0.9**k * float(env.reward[row, b])
                        rest = None
                        if env.terminated[row, b]:
                            rest = 0.0
                        elif not env.truncated[row, b] and row < 11:
                            rest = 0.9 ** (k + 1) * float(unscaled(q[row + 1, b].max(), 1e-3))
                        if rest is None:
                            break
                        target = float(rescaled(torch.tensor(total + rest), 1e-3))
                        expected = abs(target - float(q[t, b, samples.agent.action[t, b]]))
                        if env.terminated[row, b]:
                            break
                    assert found[t, b] == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True)
            assert np.isfinite(found).any()


def test_priority_is_of_one_step_where_only_one_is_known() -> None:
    assert mixed_priorities(np.array([[2.0], [np.nan]]), 0.9).tolist() == [2.0]


# ---- what does not fit is refused before anything starts ----


class _Runner:
    @staticmethod
    def of(agent: Any, algo: R2D1, **options: Any) -> MinibatchRl:
        options = {"batch_T": 6, "batch_B": 4, "state_interval": 3, **options}
        sampler = SerialSampler(Varied, SPACES, **options)
        return MinibatchRl(algo, agent, sampler, RunnerConfig(n_steps=48, seed=0, log_interval_steps=24))


@pytest.mark.parametrize(
    ("agent", "config", "options", "error", "says"),
    [
        (DqnAgent(), SMALL, {}, TypeError, "R2D1 trains a R2d1Agent, got a DqnAgent"),
        (
            R2d1Agent(),
            SMALL,
            {"state_interval": None},
            ValueError,
            "3 . 5 . 2 .* state_interval is None.*batch_T=6",
        ),
        (
            R2d1Agent(),
            replace(SMALL, warmup_T=200),
            {},
            ValueError,
            "replay_size=600 is 150 time steps of the sampler's batch_B=4 .*batch_T=6 .*warmup_T=200.* at least 852",
        ),
    ],
)
def test_agents_and_batches_that_do_not_fit_are_refused(
    agent: Any, config: R2D1Config, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        _Runner.of(agent, R2D1(config), **options)


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"batch_T": 0}, "batch_T"),
        ({"warmup_T": -1}, "warmup_T"),
        ({"pri_eta": 1.5}, "pri_eta"),
        ({"value_eps": -1.0}, "value_eps"),
    ],
)
def test_settings_out_of_range_are_refused(settings_: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        R2D1Config(**settings_)


def test_models_without_a_memory_are_refused() -> None:
    class Forgets(torch.nn.Module):
        def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
            super().__init__()

        def forward(self, observation: Any, prev_action: Any, prev_reward: Any, is_first: Any, state: Any) -> Any:
            return prev_reward

    with pytest.raises(TypeError, match="Forgets has no initial_state"):
        R2d1Agent(Forgets).initialize(EnvSpaces(SPACES["observation_space"], spaces.Discrete(2)), seed=0)


# ---- whole trainings ----


@pytest.mark.parametrize("cls", [SerialSampler, GpuSampler, AlternatingSampler, AsyncCpuSampler])
def test_every_kind_of_sampler_feeds_it(cls: type[BaseSampler]) -> None:
    """Also an asynchronous one, whose process fills the replay itself."""
    agent, algo = R2d1AlternatingAgent(model_kwargs={**MODEL, "dueling": True, "cell": "gru"}), R2D1(SMALL)
    own: dict[str, Any] = {} if cls is SerialSampler else {"n_workers": 2}
    sampler = cls(Varied, SPACES, batch_T=6, batch_B=4, state_interval=3, timeout=DEADLINE, **own)
    if isinstance(sampler, AsyncCpuSampler):
        sampler.feed(algo.sink())
    infos = []
    with sampler.initialize(agent, seed=5):
        algo.initialize(agent, n_itr=12, batch_spec=sampler.batch_spec)
        for itr in range(12):
            infos.append(algo.optimize_agent(itr, sampler.obtain_samples(itr)[0]))
        assert algo._replay.n_appended >= 12 * 6 * 4
        error = algo._ring.error
        assert error is not None
        assert np.isfinite(error[: 12 * 6]).any()
        assert any(leaf[: 12 * 2].any() for leaf in algo._ring.state)
    assert "tdAbsErr" in infos[-1]


def test_epsilons_are_evenly_spaced_in_logarithms() -> None:
    agent = R2d1Agent(model_kwargs=MODEL, eps_final=0.4, eps_final_min=0.004)
    agent.initialize(EnvSpaces(*SPACES.values()), seed=0, global_B=3)
    agent.sample_mode(0)
    assert isinstance(agent._epsilon, torch.Tensor)
    assert agent._epsilon.tolist() == pytest.approx([0.4, 0.04, 0.004])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_forget_bias_decides_how_much_is_kept(cell: str) -> None:
    found = []
    for bias in (20.0, -20.0):  # everything, nothing
        agent = R2d1Agent(model_kwargs={**MODEL, "cell": cell, "forget_bias": bias})
        agent.initialize(EnvSpaces(SPACES["observation_space"], spaces.Discrete(3)), seed=0)
        state = tuple(torch.full((1, 6), 0.5) for _ in agent.initial_state(1))
        nothing = torch.zeros(1, dtype=torch.bool)
        inputs = StepInputs(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), torch.zeros(1), nothing)
        with torch.no_grad():
            found.append(agent.unroll(inputs, state)[1][-1])
    kept, new = found
    # An LSTM adds new content to what its cell keeps, a GRU replaces what it does not keep.
    torch.testing.assert_close(kept - new if cell == "lstm" else kept, torch.full((1, 6), 0.5))


def test_step_value_and_training_forward_agree() -> None:
    algo, sequences = sequences_of("mid_batch")
    with torch.no_grad():
        q = algo._agent(sequences.inputs, sequences.state).q
        for n in range(5):
            torch.testing.assert_close(q[:, n], values_by_hand(algo._agent, sequences, n), rtol=1e-4, atol=1e-5)
        first = tree_rows(sequences.inputs, 0)
        torch.testing.assert_close(algo._agent.value(first, sequences.state), q[0].max(dim=-1).values)


class Recall(gymnasium.Env[np.ndarray, Any]):
    """Shows a bit in the first of four steps and rewards the action that equals it in the last."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._bit, self._left = int(self.np_random.integers(2)), 4
        return np.array([2 * self._bit - 1, 0], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        reward = (1.0 if int(action) == self._bit else -1.0) if self._left == 0 else 0.0
        return np.array([0, self._left == 1], np.float32), reward, self._left == 0, False, {}


def test_learns_to_remember() -> None:
    """An agent without a memory has a mean return of 0."""
    n_itr, threads = 60, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        agent = R2d1Agent(model_kwargs={"hidden_size": 24, "input_size": 16}, eps_final=0.3, eps_final_min=0.05)
        algo = R2D1(
            R2D1Config(
                batch_size=16,
                batch_T=8,
                warmup_T=4,
                n_step=2,
                discount=0.95,
                learning_rate=5e-3,
                adam_eps=1e-5,
                replay_ratio=8.0,
                replay_size=10_000,
                min_steps_learn=500,
                target_update_interval=30,
                value_eps=None,
            )
        )
        sampler = SerialSampler(Recall, batch_T=8, batch_B=16, state_interval=4, eval_n_envs=40)
        with sampler.initialize(agent, seed=0):
            algo.initialize(agent, n_itr=n_itr, batch_spec=sampler.batch_spec)
            for itr in range(n_itr):
                algo.optimize_agent(itr, sampler.obtain_samples(itr)[0])
            returns = [info.Return for info in sampler.evaluate_agent(n_itr)]
        assert np.mean(returns) > 0.8
    finally:
        torch.set_num_threads(threads)
