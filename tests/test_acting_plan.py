"""The compiled acting plan against the agent's own `step`: equal up to rounding, and not used where it does not fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import headrace
from headrace import compiled
from headrace.agents.pg import CategoricalPgAgent
from headrace.agents.pg.base import PgInfo
from headrace.agents.pg.plan import CategoricalPlan
from headrace.buffers.tree import tree_map
from headrace.distributions import Categorical
from headrace.errors import AgentFailed
from headrace.models import ActorCritic
from headrace.models.mlp import TanhBody
from headrace.samplers import CpuSampler, GpuSampler, SerialSampler
from headrace.types import ActingRows, AgentStep, EnvSpaces, StepInputs, Tree

needs_native = pytest.mark.skipif(compiled.acting is None, reason=f"no compiled part: {headrace.native()}")

T = 20
SPACES = EnvSpaces(spaces.Box(-9, 9, (5,), np.float32), spaces.Discrete(3))


def rows_for(n: int, n_actions: int = 3) -> ActingRows:
    draw = np.random.default_rng(n)
    return ActingRows(
        draw.normal(size=(T + 1, n, 5)).astype(np.float32) * 3,
        draw.uniform(1e-6, 1 - 1e-6, (T + 1, n, 1)).astype(np.float32),
        np.full((T, n), -1),
        PgInfo(Categorical(np.zeros((T, n, n_actions), np.float32)), np.zeros((T, n), np.float32)),  # type: ignore[arg-type]
    )


def agent_for(**model_kwargs: Any) -> Any:
    agent = CategoricalPgAgent(model_kwargs=model_kwargs)
    agent.initialize(SPACES, seed=3)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    agent.sample_mode(0)
    return agent


def stepped(agent: CategoricalPgAgent, rows: ActingRows, t: int) -> AgentStep:
    n = rows.noise.shape[1]
    inputs = StepInputs(
        torch.from_numpy(rows.observation[t]),
        torch.zeros(n, dtype=torch.int64),
        torch.zeros(n),
        torch.zeros(n, dtype=torch.bool),
        torch.from_numpy(rows.noise[t]),
    )
    with torch.no_grad():  # and not in inference mode: in torch, not in NumPy
        return agent.step(inputs, None)


@needs_native
@pytest.mark.parametrize("n", [1, 3, 8, 33])
@pytest.mark.parametrize(
    "model_kwargs", [{}, {"hidden_sizes": (7,)}, {"hidden_sizes": (20, 9, 5), "separate_value": True}], ids=str
)
def test_plan_equals_step_up_to_rounding(n: int, model_kwargs: dict[str, Any]) -> None:
    agent, rows = agent_for(**model_kwargs), rows_for(n)
    plan = agent.acting_plan(rows, deterministic=False)
    assert isinstance(plan, CategoricalPlan)
    assert plan.load()
    differing = 0
    for t in range(T):
        assert plan.act(t)
        step = stepped(agent, rows, t)
        np.testing.assert_allclose(rows.agent_info.dist.logits[t], step.agent_info.dist.logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(rows.agent_info.value[t], step.agent_info.value, rtol=1e-5, atol=1e-5)
        differing += int((rows.action[t] != step.action.numpy()).sum())
    assert differing <= 1  # a draw that falls within rounding of a boundary: one in 100,000
    assert len(np.unique(rows.action)) == (3 if n > 1 else len(np.unique(rows.action)))
    value = plan.value(T)
    assert value is not None
    np.testing.assert_allclose(value, stepped(agent, rows, T).agent_info.value, rtol=1e-5, atol=1e-5)
    agent.eval_mode(0)
    assert plan.load()
    assert plan.act(0)
    assert (rows.action[0] == rows.agent_info.dist.logits[0].argmax(-1)).all()


@needs_native
def test_outputs_of_a_column_do_not_depend_on_other_columns() -> None:
    agent, rows = agent_for(), rows_for(33)
    plan = agent.acting_plan(rows, deterministic=True)
    assert plan is not None
    assert plan.load()
    for t in range(T):
        plan.act(t)
    for columns in (slice(0, 1), slice(5, 12), slice(32, 33)):
        own = ActingRows(
            np.ascontiguousarray(rows.observation[:, columns]),
            np.ascontiguousarray(rows.noise[:, columns]),
            rows.action[:, columns].copy(),
            tree_map(lambda leaf, own=columns: leaf[:, own].copy(), rows.agent_info),
        )
        before = own.agent_info.dist.logits.tobytes(), own.agent_info.value.tobytes(), own.action.tobytes()
        alone = agent.acting_plan(own, deterministic=True)
        assert alone is not None
        assert alone.load()
        for t in range(T):
            alone.act(t)
        assert before == (own.agent_info.dist.logits.tobytes(), own.agent_info.value.tobytes(), own.action.tobytes())


@needs_native
def test_plan_loads_new_parameters_at_the_start_of_each_batch() -> None:
    agent, rows = agent_for(), rows_for(4)
    plan = agent.acting_plan(rows, deterministic=False)
    assert plan is not None
    plan.load()
    plan.act(0)
    before = rows.agent_info.value[0].copy()
    with torch.no_grad():
        agent.model.policy.head.bias += 1.0
    plan.act(0)
    assert (rows.agent_info.value[0] == before).all()
    plan.load()
    plan.act(0)
    np.testing.assert_allclose(rows.agent_info.value[0], before + 1.0, rtol=1e-5)


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


@needs_native
def test_plan_is_not_used_for_changed_agents_and_models() -> None:
    rows, plain = rows_for(4), agent_for()
    assert plain.acting_plan(rows, deterministic=False) is not None
    contrary, doubled = Contrary(), CategoricalPgAgent(ModelCls=Doubled)
    normalizing = CategoricalPgAgent(model_kwargs={"normalize_observation": True})
    large = CategoricalPgAgent(model_kwargs={"hidden_sizes": (512, 512)})
    for agent in (contrary, doubled, normalizing, large):
        agent.initialize(SPACES, seed=0)
        assert agent.acting_plan(rows, deterministic=False) is None, agent
    other_body, other_layer, no_bias = agent_for(), agent_for(), agent_for()
    other_body.model.policy = torch.nn.Sequential(torch.nn.Linear(5, 4))
    other_layer.model.policy.layers[1] = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    no_bias.model.policy.head = torch.nn.Linear(64, 4, bias=False)
    for agent in (other_body, other_layer, no_bias):
        assert agent.acting_plan(rows, deterministic=False) is None
    patched = agent_for()
    patched.step = Contrary.step.__get__(patched)
    assert patched.acting_plan(rows, deterministic=False) is None
    double = agent_for()
    double.model.double()
    assert double.acting_plan(rows, deterministic=False) is None


@needs_native
def test_plan_is_not_used_after_a_hook_or_module_was_added() -> None:
    agent, rows = agent_for(), rows_for(4)
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


@contextmanager
def collected(cls: Any, native: bool, **kwargs: Any) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(compiled, "acting", None)
        sampler = cls("CartPole-v1", batch_T=30, batch_B=6, eval_n_envs=2, start_method="fork", **kwargs)
        with sampler.initialize(CategoricalPgAgent(), seed=1, bootstrap_value=True):
            yield sampler.obtain_samples(0)[0].copy(), sampler.evaluate_agent(0)


@needs_native
@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler, GpuSampler])
def test_batches_with_and_without_plan_are_equal(cls: Any) -> None:
    kwargs: dict[str, Any] = {} if cls is SerialSampler else {"n_workers": 2}
    kwargs |= {"device": "cpu"} if cls is GpuSampler else {}
    with collected(cls, True, **kwargs) as (samples, episodes), collected(cls, False, **kwargs) as (others, theirs):
        assert torch.equal(samples.agent.action, others.agent.action)  # of 180 draws, none lies within rounding
        assert torch.equal(samples.env.observation, others.env.observation)
        torch.testing.assert_close(samples.agent.agent_info.value, others.agent.agent_info.value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(samples.agent.bootstrap_value, others.agent.bootstrap_value, rtol=1e-5, atol=1e-5)
        assert [episode.Length for episode in episodes] == [episode.Length for episode in theirs]


@needs_native
def test_non_finite_weights_raise_agent_failed() -> None:
    agent: Any = CategoricalPgAgent()
    sampler = SerialSampler("CartPole-v1", batch_T=5, batch_B=2).initialize(agent, seed=0)
    with torch.no_grad():
        agent.model.policy.head.bias[0] = float("nan")
    try:
        error: BaseException | None = None
        sampler.obtain_samples(0)
    except AgentFailed as failed:
        error = failed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "acting", None)
        pure = SerialSampler("CartPole-v1", batch_T=5, batch_B=2).initialize(agent, seed=0)
        try:
            expected: BaseException | None = None
            pure.obtain_samples(0)
        except AgentFailed as failed:
            expected = failed
    assert str(error) == str(expected)
