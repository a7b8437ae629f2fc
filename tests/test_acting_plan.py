"""Acting plans against the agent's own `step`: equal up to rounding, and not used where they do not fit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import headrace
from headrace import compiled, numpy_acting
from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import (
    CategoricalPgAgent,
    GaussianPgAgent,
    RecurrentCategoricalPgAgent,
    RecurrentGaussianPgAgent,
)
from headrace.agents.plan import NetworkPlan
from headrace.buffers.tree import tree_leaves, tree_map, tree_rows, tree_to_torch, tree_zeroed
from headrace.errors import AgentFailed
from headrace.models import ActorCritic
from headrace.models.mlp import TanhBody
from headrace.samplers import CpuSampler, GpuSampler, SerialSampler
from headrace.types import ActingRows, AgentStep, EnvSpaces, StepInputs, Tree

NATIVE = compiled.acting
needs_native = pytest.mark.skipif(NATIVE is numpy_acting, reason=f"no compiled part: {headrace.native()}")


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The compiled classes, or those of NumPy, by which plans act during a test."""
    chosen = NATIVE if request.param == "native" else numpy_acting
    monkeypatch.setattr(compiled, "acting", chosen)
    return chosen


T = 20
SEEN = spaces.Box(-9, 9, (5,), np.float32)
SPACES = EnvSpaces(SEEN, spaces.Discrete(3))
BOX = EnvSpaces(
    SEEN, spaces.Box(np.array([-2, -1, -np.inf], np.float32), np.array([3, 1, np.inf], np.float32), dtype=np.float32)
)
#: The same five numbers, in parts.
PARTS = spaces.Dict(
    {
        "parts": spaces.Tuple((spaces.Box(-9, 9, (1, 2), np.float32), spaces.Box(-9, 9, (), np.float32))),
        "place": spaces.Box(-9, 9, (2,), np.float32),
    }
)
NESTED = EnvSpaces(PARTS, spaces.Discrete(3))
APE_X: dict[str, Any] = {"eps_init": 0.5, "eps_final": 0.5, "eps_final_min": 0.01}


def lstm_sizes(hidden_sizes: tuple[int, ...] = (30, 21), **others: Any) -> dict[str, Any]:
    """Keywords of a recurrent model of the size of one with these tanh layers."""
    return {"input_size": hidden_sizes[0], "hidden_size": hidden_sizes[-1], **others}


#: Every kind of agent that has a plan: its spaces, and the agent for keywords of its model.
AGENTS: dict[str, tuple[EnvSpaces, Callable[..., Any]]] = {
    "categorical": (SPACES, lambda **model: CategoricalPgAgent(model_kwargs=model)),
    "categorical, own value": (
        SPACES,
        lambda **model: CategoricalPgAgent(model_kwargs={"separate_value": True} | model),
    ),
    "gaussian": (BOX, lambda **model: GaussianPgAgent(model_kwargs=model, init_log_std=-0.5)),
    "gaussian, own std": (
        BOX,
        lambda **model: GaussianPgAgent(
            model_kwargs={"separate_value": True} | model, init_log_std=0.3, state_dependent_std=True
        ),
    ),
    "dqn": (SPACES, lambda **model: DqnAgent(model_kwargs=model, eps_init=0.3)),
    "dueling dqn, own ε": (SPACES, lambda **model: DqnAgent(model_kwargs={"dueling": True} | model, **APE_X)),
    "categorical dqn": (SPACES, lambda **model: CategoricalDqnAgent(model_kwargs=model, n_atoms=11, eps_init=0.3)),
    "dueling categorical dqn": (
        SPACES,
        lambda **model: CategoricalDqnAgent(model_kwargs={"dueling": True} | model, n_atoms=5, V_min=-2, V_max=3),
    ),
    "lstm": (SPACES, lambda **model: RecurrentCategoricalPgAgent(model_kwargs=lstm_sizes(**model))),
    "categorical, nested": (NESTED, lambda **model: CategoricalPgAgent(model_kwargs=model)),
    "dueling dqn, nested": (NESTED, lambda **model: DqnAgent(model_kwargs={"dueling": True} | model, eps_init=0.3)),
    "lstm, nested": (NESTED, lambda **model: RecurrentCategoricalPgAgent(model_kwargs=lstm_sizes(**model))),
    "gaussian lstm": (BOX, lambda **model: RecurrentGaussianPgAgent(model_kwargs=lstm_sizes(**model))),
}


def observed(space: spaces.Space[Any], numbers: Any) -> Tree:
    """Observations of a space from five numbers each, arrays or tensors `[..., 5]`."""
    if space != PARTS:
        return numbers
    return {
        "parts": (numbers[..., None, :2], numbers[..., 2]),
        "place": numbers[..., 3:],
    }


def agent_for(kind: str = "categorical", **model_kwargs: Any) -> Any:
    """An agent in sample mode, with weights far from the initial ones, that has normalized if it does."""
    seen, make = AGENTS[kind]
    agent = make(**model_kwargs)
    agent.initialize(seen, seed=3, global_B=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    agent.update_statistics(observed(seen.observation, 1 + 2 * torch.randn((100, 5), generator=generator)))
    agent.sample_mode(0)
    return agent


def rows_for(agent: Any, n: int, n_rows: int = T) -> ActingRows:
    """Rows with observations, some of them far out, previous actions and rewards, and noise; all else is NaN or −1."""
    draw = np.random.default_rng(n)
    observation = draw.normal(size=(n_rows + 1, n, 5)).astype(np.float32) * 3
    observation[:, :, 0] *= draw.choice([1, 30], size=(n_rows + 1, n))
    noise = draw.uniform(1e-6, 1 - 1e-6, (n_rows + 1, n, agent.noise_size)).astype(np.float32)
    if agent.noise_has_env_id:
        noise[..., -1] = np.arange(n)
    prev_action: Any = draw.integers(0, 3, (n_rows + 1, n))
    if isinstance(agent.spaces.action, spaces.Box):
        prev_action = draw.normal(size=(n_rows + 1, n, 3)).astype(np.float32)
    prev_reward = draw.normal(size=(n_rows + 1, n)).astype(np.float32)
    parts = tree_map(np.ascontiguousarray, observed(agent.spaces.observation, observation))
    rows = ActingRows(parts, prev_action, prev_reward, noise, None, None)
    step = stepped(agent, rows, 0, agent.initial_state(n))

    def empty(leaf: torch.Tensor) -> np.ndarray:
        array = leaf.numpy()
        return np.full((n_rows, *array.shape), -1 if array.dtype.kind == "i" else np.nan, array.dtype)

    return replace(rows, action=empty(step.action), agent_info=tree_map(empty, step.agent_info))


def inputs_at(rows: ActingRows, t: int) -> StepInputs:
    never = torch.zeros(rows.noise.shape[1], dtype=torch.bool)
    arrays = (tree_rows(rows.observation, t), rows.prev_action[t], rows.prev_reward[t], rows.noise[t])
    observation, prev_action, prev_reward, noise = tree_to_torch(arrays)
    return StepInputs(observation, prev_action, prev_reward, never, noise)


def stepped(agent: Any, rows: ActingRows, t: int, state: Tree) -> AgentStep:
    with torch.no_grad():  # and not in inference mode: in torch, not in NumPy
        step: AgentStep = agent.step(inputs_at(rows, t), state)
        return step


def close(ours: np.ndarray, theirs: torch.Tensor) -> np.ndarray:
    """Which numbers are within 1e-5 · max(1, |x|)."""
    return np.abs(ours - theirs.numpy()) <= 1e-5 * np.maximum(1, np.abs(theirs.numpy()))


class Both:
    """Acts by a plan and by the agent's own `step`, each with a state of its own, and compares.

    Args:
        agent: the agent.
        rows: the rows.
    """

    def __init__(self, agent: Any, rows: ActingRows) -> None:
        self.agent, self.rows = agent, rows
        self.plan = agent.acting_plan(rows, deterministic=False)
        assert isinstance(self.plan, NetworkPlan)
        self.ours, self.theirs = (agent.initial_state(rows.noise.shape[1]) for _ in range(2))

    def act(self) -> int:
        """Acts for all rows; returns in how many draws an action differs."""
        draw = np.random.default_rng(5)
        n = 0
        assert self.plan.load()
        for t in range(len(self.rows.action)):
            is_first = torch.from_numpy(draw.random(self.rows.noise.shape[1]) < 0.1)
            if t % 3 == 0:
                self.ours, self.theirs = tree_zeroed(self.ours, is_first), tree_zeroed(self.theirs, is_first)
            assert self.plan.act(t, self.ours)
            step = stepped(self.agent, self.rows, t, self.theirs)
            self.theirs = step.state
            found, expected = tree_map(lambda leaf, t=t: leaf[t], self.rows.agent_info), step.agent_info
            for one, other in zip(tree_leaves((found, self.ours)), tree_leaves((expected, self.theirs)), strict=True):
                assert close(np.asarray(one), other).all()
            same = close(self.rows.action[t], step.action)  # for Box actions; others are integers
            n += int((~same.reshape(len(same), -1).all(-1)).sum())
        return n

    def values_are_equal(self, t: int) -> bool:
        """Whether the values of row t are equal, and a state is left as it was."""
        before = tree_map(torch.clone, self.ours)
        value = self.plan.value(t, self.ours)
        assert value is not None
        with torch.no_grad():
            expected = self.agent.value(inputs_at(self.rows, t), self.theirs)
        kept = all(map(torch.equal, tree_leaves(before), tree_leaves(self.ours)))
        return kept and bool(close(value, expected).all())


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize(
    ("n", "model_kwargs"),
    [
        (1, {}),
        (3, {"hidden_sizes": (7,), "normalize_observation": True}),
        (33, {"hidden_sizes": (20, 9, 5)}),
    ],
    ids=str,
)
def test_plan_equals_step_up_to_rounding(kernels: Any, kind: str, n: int, model_kwargs: dict[str, Any]) -> None:
    agent = agent_for(kind, **model_kwargs)
    both = Both(agent, rows_for(agent, n))
    assert both.plan.reads_previous == ("lstm" in kind)
    assert both.act() <= 1  # a draw that falls within rounding of a boundary: one in 100,000
    assert both.values_are_equal(T)
    explored = both.rows.action.copy()
    agent.eval_mode(0)
    assert both.act() <= 1
    assert n == 1 or (both.rows.action != explored).any()


@pytest.mark.parametrize("kind", AGENTS)
def test_of_ten_thousand_draws_hardly_one_differs(kernels: Any, kind: str) -> None:
    agent = agent_for(kind, hidden_sizes=(32, 16), normalize_observation=True)
    both = Both(agent, rows_for(agent, 128, 80))
    assert both.act() <= 1
    if both.rows.action.dtype.kind == "i":
        assert np.bincount(both.rows.action.ravel(), minlength=3).min() > 10  # every action was taken


@needs_native
@pytest.mark.parametrize("kind", AGENTS)
def test_outputs_of_a_column_do_not_depend_on_other_columns(kind: str) -> None:
    agent = agent_for(kind, normalize_observation=True)
    rows = rows_for(agent, 33)
    plan = agent.acting_plan(rows, deterministic=True)
    assert plan is not None
    assert plan.load()
    state = agent.initial_state(33)
    for t in range(T):
        assert plan.act(t, state)
    for columns in (slice(0, 1), slice(5, 12), slice(32, 33)):
        kept = [leaf[:, columns].tobytes() for leaf in tree_leaves((rows.action, rows.agent_info))]
        own = tree_map(lambda leaf, own=columns: leaf[:, own].copy(), rows)
        written = tree_leaves((own.action, own.agent_info))
        for leaf in written:
            leaf[:] = -1
        alone = agent.acting_plan(own, deterministic=True)
        assert alone is not None
        assert alone.load()
        state = agent.initial_state(written[0].shape[1])
        for t in range(T):
            assert alone.act(t, state)
        assert kept == [leaf.tobytes() for leaf in written]


def test_products_of_numpy_do_not_act_where_rounding_may_not_depend_on_the_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "acting", numpy_acting)
    agent = agent_for()
    rows = rows_for(agent, 4)
    assert agent.acting_plan(rows, deterministic=True) is None
    assert agent.acting_plan(rows, deterministic=False) is not None


def test_of_equal_values_and_probabilities_the_first_is_taken(kernels: Any) -> None:
    for kind in ("categorical", "dqn", "categorical dqn"):
        agent = agent_for(kind)
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter.zero_()
        agent.eval_mode(0)
        both = Both(agent, rows_for(agent, 3))
        assert both.act() == 0
        assert (both.rows.action == 0).all()


def test_large_products_are_left_to_the_agent(kernels: Any) -> None:
    agent = agent_for()
    fits = kernels.LARGEST_PRODUCT // 64**2
    assert agent.acting_plan(rows_for(agent, fits, 1), deterministic=False) is not None
    assert agent.acting_plan(rows_for(agent, fits + 1, 1), deterministic=False) is None


def test_it_follows_parameters_and_statistics_at_the_start_of_each_batch(kernels: Any) -> None:
    agent = agent_for(normalize_observation=True)
    both = Both(agent, rows_for(agent, 4))
    plan, value = both.plan, both.rows.agent_info.value[0]
    plan.load()
    plan.act(0, None)
    before = value.copy()
    with torch.no_grad():
        agent.model.policy.head.bias += 1.0
    plan.act(0, None)
    assert (value == before).all()
    plan.load()
    plan.act(0, None)
    np.testing.assert_allclose(value, before + 1.0, rtol=1e-5)
    agent.update_statistics(torch.full((1000, 5), 7.0))
    plan.act(0, None)
    np.testing.assert_allclose(value, before + 1.0, rtol=1e-5)
    assert both.act() == 0


def test_it_follows_parameters_whose_memory_was_replaced(kernels: Any) -> None:
    """A plan looks whether its view of a parameter still shows the parameter's memory."""
    agent = agent_for()
    both = Both(agent, rows_for(agent, 4))
    plan, value = both.plan, both.rows.agent_info.value[0]
    plan.load()
    plan.act(0, None)
    before = value.copy()
    head = agent.model.policy.head
    head.bias.data = head.bias.data + 1.0
    assert both.act() == 0
    assert (both.rows.agent_info.value[0] != before).all()
    head.weight = torch.nn.Parameter(head.weight.detach() * 0.5)
    assert both.act() == 0
    agent.model.double()
    assert not plan.load()
    agent.model.float()
    assert plan.load()
    assert both.act() == 0


def test_standard_deviations_and_ε_are_those_of_the_batch(kernels: Any) -> None:
    gaussian, apex = agent_for("gaussian"), agent_for("dueling dqn, own ε")
    both = Both(gaussian, rows_for(gaussian, 4))
    both.plan.load()
    with torch.no_grad():
        gaussian.model.log_std += 0.5
    assert both.act() == 0
    both = Both(apex, rows_for(apex, 9))  # more environments than the agent was made for: ε begins again
    for itr in (0, 500, 2000):
        apex.sample_mode(itr)
        assert both.act() == 0


def test_a_row_that_is_not_finite_leaves_the_state_to_the_agent(kernels: Any) -> None:
    agent = agent_for("lstm")
    rows = rows_for(agent, 4)
    plan, state = agent.acting_plan(rows, deterministic=False), agent.initial_state(4)
    assert plan is not None
    assert plan.load()
    assert plan.act(0, state)
    before = tree_map(torch.clone, state)
    rows.observation[1, 2, 3] = np.nan
    assert not plan.act(1, state)
    assert plan.value(1, state) is None
    assert all(map(torch.equal, before, state))


class Contrary(CategoricalPgAgent):
    """Takes the least probable action."""

    def step(self, inputs: StepInputs, state: Tree) -> AgentStep:
        step = super().step(inputs, state)
        return AgentStep(step.agent_info.dist.logits.argmin(-1), step.agent_info)


class Doubled(ActorCritic):
    """A model of a user that changes what the default model returns."""

    def forward(self, *inputs: Any) -> Any:
        outputs, value = super().forward(*inputs)
        return outputs, 2 * value


def test_plan_is_not_used_for_changed_agents_and_models() -> None:
    plain = agent_for()
    rows = rows_for(plain, 4)
    assert plain.acting_plan(rows, deterministic=False) is not None
    contrary, doubled = Contrary(), CategoricalPgAgent(ModelCls=Doubled)
    large = CategoricalPgAgent(model_kwargs={"hidden_sizes": (512, 512)})
    for agent in (contrary, doubled, large):
        agent.initialize(SPACES, seed=0)
        assert agent.acting_plan(rows, deterministic=False) is None, agent
    other_body, other_layer, no_bias = agent_for(), agent_for(), agent_for()
    other_body.model.policy = torch.nn.Sequential(torch.nn.Linear(5, 4))
    other_layer.model.policy.layers[1] = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    no_bias.model.policy.head = torch.nn.Linear(64, 4, bias=False)
    other_features = agent_for()
    other_features.model.features.leaves[0] = torch.nn.Tanh()
    nested = agent_for("categorical, nested", normalize_observation=True)
    assert nested.acting_plan(rows_for(nested, 4), deterministic=False) is not None
    nested.model.features.norms[1].clip = 3.0  # another one than that of the other parts
    assert nested.acting_plan(rows_for(nested, 4), deterministic=False) is None
    for agent in (other_body, other_layer, no_bias, other_features):
        assert agent.acting_plan(rows, deterministic=False) is None
    gru = RecurrentCategoricalPgAgent(model_kwargs={"cell": "gru"})
    gru.initialize(SPACES, seed=0)
    two_layers, other_input = agent_for("lstm"), agent_for("lstm")
    assert two_layers.acting_plan(rows, deterministic=False) is not None
    two_layers.model.rnn = torch.nn.LSTM(30, 21, num_layers=2)
    other_input.model.input = torch.nn.Linear(8, 30)
    for recurrent in (gru, two_layers, other_input):
        assert recurrent.acting_plan(rows, deterministic=False) is None
    patched = agent_for()
    patched.step = Contrary.step.__get__(patched)
    assert patched.acting_plan(rows, deterministic=False) is None
    double = agent_for()
    double.model.double()
    assert double.acting_plan(rows, deterministic=False) is None


def test_plan_is_not_used_after_a_hook_or_module_was_added() -> None:
    agent = agent_for()
    rows = rows_for(agent, 4)
    plan = agent.acting_plan(rows, deterministic=False)
    assert plan is not None
    assert plan.load()
    before = agent.model.policy
    for other in (torch.nn.Linear(5, 4), TanhBody([5, 32, 4])):
        agent.model.policy = other
        assert not plan.load()
    agent.model.policy = before
    handle = agent.model.policy.register_forward_hook(lambda module, inputs, output: output * 2)
    assert not plan.load()
    handle.remove()
    assert plan.load()


class Twisted(GaussianPgAgent):
    """A user's Gaussian agent."""


class Doubting(DqnAgent):
    """A user's DQN agent."""


class Spread(CategoricalDqnAgent):
    """A user's categorical DQN agent."""


@pytest.mark.parametrize(
    ("kind", "cls"), [("gaussian", Twisted), ("dqn", Doubting), ("categorical dqn", Spread)], ids=str
)
def test_a_subclass_acts_by_its_own_step(kind: str, cls: Any) -> None:
    agent, own = agent_for(kind), cls()
    own.initialize(AGENTS[kind][0], seed=0)
    rows = rows_for(agent, 4)
    assert agent.acting_plan(rows, deterministic=False) is not None
    assert own.acting_plan(rows, deterministic=False) is None
    agent.value = agent.value
    assert agent.acting_plan(rows, deterministic=False) is None


def test_actions_that_are_recorded_in_other_types_are_left_to_the_agent() -> None:
    for kind, dtype in (("categorical", np.int32), ("dqn", np.int32), ("gaussian", np.float64)):
        agent = agent_for(kind)
        rows = rows_for(agent, 4)
        other = replace(rows, action=rows.action.astype(dtype))
        assert agent.acting_plan(other, deterministic=False) is None


#: Environments and agents that act in them by a plan.
WORLDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "categorical": ("CartPole-v1", CategoricalPgAgent),
    "gaussian": ("Pendulum-v1", lambda: GaussianPgAgent(model_kwargs={"normalize_observation": True})),
    "lstm": ("CartPole-v1", RecurrentCategoricalPgAgent),
    "dqn": ("CartPole-v1", lambda: DqnAgent(model_kwargs={"dueling": True}, **APE_X)),
}


def collected(cls: Any, kind: str, planned: bool, **kwargs: Any) -> Any:
    """Returns a batch and an evaluation."""
    env, make = WORLDS[kind]
    agent = make()
    with pytest.MonkeyPatch.context() as patch:
        if not planned:
            patch.setattr(type(agent), "acting_plan", lambda *args: None)
        sampler = cls(env, batch_T=30, batch_B=6, eval_n_envs=2, start_method="fork", **kwargs)
        with sampler.initialize(agent, seed=1, bootstrap_value=True):
            if planned and cls is SerialSampler:  # in others, agents in other processes act
                for name in ("step", "value"):
                    patch.setattr(type(agent), name, lambda *args: pytest.fail("acted without its plan"))
            return sampler.obtain_samples(0)[0].copy(), sampler.evaluate_agent(0)


def require_equal(cls: Any, kind: str, **kwargs: Any) -> None:
    samples, episodes = collected(cls, kind, True, **kwargs)
    others, theirs = collected(cls, kind, False, **kwargs)
    # Of 180 draws, none lies within rounding.
    for ours, other in zip(tree_leaves(samples.agent), tree_leaves(others.agent), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(samples.env.observation, others.env.observation, rtol=1e-4, atol=1e-4)
    assert [episode.Length for episode in episodes] == [episode.Length for episode in theirs]


@pytest.mark.parametrize("kind", WORLDS)
def test_batches_with_and_without_plan_are_equal(kernels: Any, kind: str) -> None:
    require_equal(SerialSampler, kind)


@pytest.mark.parametrize(
    ("cls", "kind", "options"), [(CpuSampler, "categorical", {}), (GpuSampler, "lstm", {"device": "cpu"})]
)
def test_batches_of_workers_and_servers_are_those_of_the_agent_itself(
    cls: Any, kind: str, options: dict[str, Any]
) -> None:
    require_equal(cls, kind, n_workers=2, **options)


@pytest.mark.parametrize("kind", WORLDS)
def test_weights_that_are_not_finite_are_left_to_the_agent(kernels: Any, kind: str) -> None:
    def outcome(planned: bool) -> Any:
        env, make = WORLDS[kind]
        agent = make()
        with pytest.MonkeyPatch.context() as patch:
            if not planned:
                patch.setattr(type(agent), "acting_plan", lambda *args: None)
            with SerialSampler(env, batch_T=5, batch_B=2).initialize(agent, seed=0) as sampler:
                with torch.no_grad():
                    for parameter in agent.parameters():
                        parameter.view(-1)[0] = float("nan")
                try:
                    samples = sampler.obtain_samples(0)[0]
                except AgentFailed as failed:
                    return str(failed)
                return [leaf.tolist() for leaf in tree_leaves((samples.agent.action, samples.agent.agent_info))]

    assert repr(outcome(True)) == repr(outcome(False))  # as text, because NaN differs from itself
