"""Recurrent agents: a forward over time equals a loop of steps, equal batches in every sampler, and use of memory."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.base import Agent
from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent, RecurrentGaussianPgAgent
from headrace.algos.pg import A2C, PPO, VPG, PPOConfig, VPGConfig
from headrace.algos.pg.base import PgBatch
from headrace.buffers.samples import Samples
from headrace.buffers.tree import tree_leaves, tree_map, tree_paths, tree_rows
from headrace.models import RecurrentActorCritic
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler
from headrace.types import EnvSpaces, StepInputs, Tree
from tests.environments import SEED, Varied
from tests.tasks import CueRecall, assert_reproduced, close, learned

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS: dict[str, tuple[Callable[..., Agent], spaces.Space[Any]]] = {
    "discrete": (RecurrentCategoricalPgAgent, spaces.Discrete(3)),
    "discrete from 7": (RecurrentCategoricalPgAgent, spaces.Discrete(3, start=7)),
    "multi-discrete": (RecurrentCategoricalPgAgent, spaces.MultiDiscrete([2, 3])),
    "multi-binary": (RecurrentCategoricalPgAgent, spaces.MultiBinary(3)),
    "box": (RecurrentGaussianPgAgent, spaces.Box(np.array([-1, 0], np.float32), np.array([3, 1], np.float32))),
}
CELLS = ["lstm", "gru"]
KINDS = [(name, cell) for name in ("discrete", "box") for cell in CELLS]
OTHER_KINDS = [("discrete from 7", "gru"), ("multi-discrete", "gru"), ("multi-binary", "lstm")]


def agent_of(name: str, cell: str, **model_kwargs: Any) -> Agent:
    return ACTIONS[name][0](model_kwargs={"cell": cell, "input_size": 16, "hidden_size": 12, **model_kwargs})


def sampler_of(
    name: str, cls: type[BaseSampler] = SerialSampler, T: int = 12, B: int = 5, **options: Any
) -> BaseSampler:
    env_kwargs = {"observation_space": BOX, "action_space": ACTIONS[name][1]}
    return cls(Varied, env_kwargs, batch_T=T, batch_B=B, **options)


def shake(agent: Agent, itr: int) -> None:
    """Changes all parameters, as an optimizer would."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel()) + itr).reshape(parameter.shape))


# ---- over time is a loop of steps ----

T, B = 9, 6
#: is_first as (time, column).
RESETS: dict[str, list[tuple[int, int]]] = {
    "none": [],
    "row 0": [(0, b) for b in range(B)],
    "row 0 of some": [(0, 1), (0, 4)],
    "last row": [(T - 1, b) for b in range(B)],
    "every row": [(t, b) for t in range(T) for b in range(B)],
    "several": [(0, 0), (3, 0), (4, 0), (8, 0), (2, 2), (7, 2), (5, 3), (0, 5), (1, 5)],
}


def model_of(cell: str) -> RecurrentActorCritic:
    torch.manual_seed(0)
    return RecurrentActorCritic(EnvSpaces(BOX, spaces.Discrete(3)), 3, cell=cell, input_size=16, hidden_size=12)


def rows_of(resets: str, seed: int = 0) -> list[torch.Tensor]:
    """Observation, previous action and reward, is_first, all `[T, B]`."""
    generator = torch.Generator().manual_seed(seed)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    for t, b in RESETS[resets]:
        is_first[t, b] = True
    return [
        torch.randn(T, B, 3, generator=generator),
        torch.randint(3, (T, B), generator=generator),
        torch.randn(T, B, generator=generator),
        is_first,
    ]


def state_of(model: RecurrentActorCritic, seed: int = 1) -> Tree:
    generator = torch.Generator().manual_seed(seed)
    return tree_map(lambda leaf: torch.randn(leaf.shape, generator=generator), model.initial_state(B))


def looped(model: RecurrentActorCritic, rows: list[torch.Tensor], state: Tree) -> tuple[Any, Any, Tree]:
    """Runs the model step by step and zeroes the state here."""
    outputs, values = [], []
    for observation, action, reward, is_first in zip(*rows, strict=True):
        state = tree_map(lambda leaf, first=is_first: torch.where(first[:, None], 0.0, leaf), state)
        output, value, state = model(observation, action, reward, torch.zeros(B, dtype=torch.bool), state)
        outputs.append(output)
        values.append(value)
    return torch.stack(outputs), torch.stack(values), state


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("resets", RESETS)
def test_forward_over_time_equals_a_loop_of_steps(resets: str, cell: str) -> None:
    """In outputs, values, last state, and gradients of parameters, observations and first state."""
    model, found = model_of(cell), []
    for run in (model, lambda *inputs: looped(model, list(inputs[:4]), inputs[4])):
        rows, state = rows_of(resets), state_of(model)
        entering = [rows[0], *tree_leaves(state)]
        wanted = [*model.parameters(), *(leaf.requires_grad_() for leaf in entering)]
        outputs, value, last = run(*rows, state)
        assert outputs.shape == (T, B, 3)
        assert value.shape == (T, B)
        weights = torch.sin(torch.arange(T * B)).reshape(T, B)
        loss = (weights * (value + outputs.square().sum(-1) + outputs[..., 0])).sum()
        loss = loss + sum(leaf.cos().sum() for leaf in tree_leaves(last))
        gradients = torch.autograd.grad(loss, wanted)
        found.append([outputs, value, *tree_leaves(last), *gradients])
    for over_time, step_by_step in zip(*found, strict=True):
        close(over_time, step_by_step)
    first_state_gradient = found[0][-1]
    starts = torch.tensor([(0, b) in RESETS[resets] for b in range(B)])
    assert ((first_state_gradient == 0).all(dim=-1) == starts).all(), "a state that is zeroed has no part in anything"


@pytest.mark.parametrize("cell", CELLS)
def test_forward_without_time_or_batch_dims_gives_the_same_outputs(cell: str) -> None:
    model = model_of(cell)
    rows, state = rows_of("row 0 of some"), state_of(model)
    row = tree_rows(tuple(rows), 0)
    outputs, value, after = model(*row, state)
    assert (outputs.shape, value.shape) == ((B, 3), (B,))
    over_time = model(*(leaf[:1] for leaf in rows), state)
    tree_map(close, (outputs[None], value[None], after), over_time)
    for b in range(B):
        one = model(*tree_rows(row, b), tree_rows(state, b))
        tree_map(close, one, tree_rows((outputs, value, after), b))
        assert (one[0].shape, one[1].shape) == ((3,), ())


@pytest.mark.parametrize("name", ACTIONS)
def test_model_gets_the_previous_action_and_reward(name: str) -> None:
    """Each possible action, as it is recorded (Discrete: an index from 0, whatever the space's start)."""
    agent, action = agent_of(name, "lstm"), ACTIONS[name][1]
    agent.initialize(EnvSpaces(BOX, action), seed=0)
    match action:
        case spaces.Discrete():
            actions = torch.arange(3)
        case spaces.MultiDiscrete():
            actions = torch.cartesian_prod(torch.arange(2), torch.arange(3))
        case spaces.MultiBinary():
            actions = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int8)] * 3)
        case _:
            actions = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5]])
    n = len(actions)
    inputs = StepInputs(torch.zeros(n, 3), actions, torch.zeros(n), torch.zeros(n, dtype=torch.bool))
    values = agent.value(inputs, agent.initial_state(n))
    assert len(values.unique()) == n
    inputs.prev_reward = torch.ones(n)
    assert (agent.value(inputs, agent.initial_state(n)) != values).all()


@pytest.mark.parametrize("cell", CELLS)
def test_the_initial_state_is_zero(cell: str) -> None:
    agent = agent_of("discrete", cell)
    agent.initialize(EnvSpaces(BOX, spaces.Discrete(3)), seed=0)
    state = agent.initial_state(4)
    assert [tuple(leaf.shape) for leaf in state] == [(4, 12)] * (2 if cell == "lstm" else 1)
    assert not any(leaf.any() for leaf in state)


def test_value_does_not_advance_the_state_and_environments_are_independent() -> None:
    agent = agent_of("discrete", "lstm")
    agent.initialize(EnvSpaces(BOX, spaces.Discrete(3)), seed=0)
    rows = rows_of("several")
    observation, action, reward, is_first = rows
    inputs = tree_rows(StepInputs(observation, action, reward, is_first, torch.full((T, B, 1), 0.5)), 0)
    assert isinstance(agent.model, RecurrentActorCritic)
    state = state_of(agent.model)
    kept = tree_map(torch.clone, state)
    agent.sample_mode(0)
    step = agent.step(inputs, state)
    close(agent.value(inputs, state), step.agent_info.value)
    assert all(torch.equal(leaf, other) for leaf, other in zip(state, kept, strict=True))
    part = agent.step(tree_rows(inputs, slice(2, 4)), tree_rows(state, slice(2, 4)))
    close(part.agent_info.value, step.agent_info.value[2:4])
    tree_map(close, part.state, tree_rows(step.state, slice(2, 4)))


# ---- in samplers ----


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize(("name", "cell"), [*KINDS, *OTHER_KINDS])
def test_training_forward_reproduces_recorded_outputs(name: str, cell: str, reset_mode: str) -> None:
    """Log-probabilities, values, V(final), V(row T), over several batches with ends inside."""
    agent = agent_of(name, cell)
    with sampler_of(name, reset_mode=reset_mode).initialize(agent, seed=SEED, bootstrap_value=True) as sampler:
        for itr in range(3):
            samples, _ = sampler.obtain_samples(itr)
            assert samples.env.done[:-1].any()
            assert samples.env.truncated.any()
            assert_reproduced(agent, samples)
            shake(agent, itr)


def test_training_forward_reproduces_recorded_outputs_for_dict_observations() -> None:
    agent = agent_of("discrete", "lstm")
    camera = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    env_kwargs = {
        "observation_space": spaces.Dict({"camera": camera, "place": spaces.Tuple((BOX, spaces.Discrete(3)))}),
        "action_space": spaces.Discrete(3),
    }
    sampler = SerialSampler(Varied, env_kwargs, batch_T=8, batch_B=3, max_decorrelation_steps=5)
    with sampler.initialize(agent, seed=SEED, bootstrap_value=True):
        samples, _ = sampler.obtain_samples(0)
        assert samples.env.done[:-1].any()
        assert_reproduced(agent, samples)


@pytest.mark.parametrize("cell", CELLS)
def test_state_continues_from_batch_to_batch(cell: str) -> None:
    """Two batches of 6 equal one of 12, and columns in the middle of an episode start with a state."""
    whole = batches("discrete", cell, T=12, n=1)[0]
    first, second = batches("discrete", cell, T=6, n=2)
    for name in ("action", "prev_action"):
        both = torch.cat([getattr(first.agent, name), getattr(second.agent, name)])
        assert torch.equal(getattr(whole.agent, name), both)
    close(whole.agent.agent_info.value, torch.cat([part.agent.agent_info.value for part in (first, second)]))
    goes_on = ~second.env.is_first[0]
    assert goes_on.any()
    assert not goes_on.all()
    for last, entering in zip(first.agent.last_state, second.agent.first_state, strict=True):
        assert torch.equal(entering[0], last[0] * goes_on[:, None])
        assert last[0, goes_on].abs().min(dim=-1).values.gt(0).all()


def batches(
    name: str, cell: str, cls: type[BaseSampler] = SerialSampler, n: int = 3, T: int = 12, **options: Any
) -> list[Samples]:
    agent = agent_of(name, cell)
    made = []
    with sampler_of(name, cls, T=T, **options).initialize(agent, seed=SEED, bootstrap_value=True) as sampler:
        for itr in range(n):
            made.append(sampler.obtain_samples(itr)[0].copy())
            if n > 2:
                shake(agent, itr)
    return made


QUICK = [("discrete", "lstm", "mid_batch"), ("box", "gru", "wait")]


@pytest.mark.parametrize(
    ("name", "cell", "reset_mode"),
    [
        pytest.param(*kind, mode, marks=[] if (*kind, mode) in QUICK else [pytest.mark.slow])
        for kind, mode in product(KINDS, ["mid_batch", "wait"])
    ],
)
def test_workers_collect_the_same_batches(name: str, cell: str, reset_mode: str) -> None:
    """Bit for bit in deterministic mode, up to rounding of inference by default; three batches, weights that change."""
    runs: tuple[tuple[dict[str, Any], tuple[int, ...]], ...] = (({"deterministic": True}, (3,)), ({}, (2,)))
    for options, n_workers in runs:
        expected = batches(name, cell, reset_mode=reset_mode, **options)
        for workers in n_workers:
            found = batches(name, cell, CpuSampler, n_workers=workers, reset_mode=reset_mode, **options)
            for samples, others in zip(expected, found, strict=True):
                for (path, leaf), (_, other) in zip(tree_paths(samples), tree_paths(others), strict=True):
                    if options or not leaf.dtype.is_floating_point:
                        assert torch.equal(leaf, other), (path, workers)
                    else:
                        torch.testing.assert_close(leaf, other, rtol=0, atol=2e-6, msg=path)


# ---- learning ----


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
@pytest.mark.parametrize("name", ["discrete", "box"])
def test_probability_ratio_before_updates_is_one_in_every_minibatch(name: str, reset_mode: str) -> None:
    """Minibatches are whole columns with their states: the forward finds the recorded log-probabilities."""
    agent, algo, parts = agent_of(name, "lstm"), PPO(PPOConfig(epochs=1, minibatches=2)), []
    with sampler_of(name, reset_mode=reset_mode).initialize(agent, seed=SEED, bootstrap_value=True) as sampler:
        sampler.obtain_samples(0)
        samples, _ = sampler.obtain_samples(1)  # columns begin in the middle of episodes
        algo.initialize(agent, n_itr=1, batch_spec=sampler.batch_spec)
        batch = algo._process(samples, samples.env.reward)
        for part in algo.parts(0, batch, lambda: batch):
            parts.append(part)
            dist, value = algo.forward(part)
            close(dist.log_prob(part.action), part.log_prob)
            close(value, part.value)
            assert algo.losses(0, part).info["approxKl"].abs() < 1e-6
    assert [tuple(part.returns.shape) for part in parts] == [(12, 3), (12, 2)]
    assert_columns_once(batch, parts)


def assert_columns_once(batch: PgBatch, parts: list[PgBatch]) -> None:
    """Every column is in one part, with its own state and validity."""
    columns = [tuple(column.tolist()) for column in batch.returns.T]
    chosen = [columns.index(tuple(column.tolist())) for part in parts for column in part.returns.T]
    assert sorted(chosen) == list(range(len(columns)))
    together = tree_map(lambda *leaves: torch.cat(leaves), *(part.state for part in parts))
    tree_map(close, together, tree_rows(batch.state, chosen))
    if batch.valid is not None:
        valid = [part.valid for part in parts if part.valid is not None]
        assert torch.equal(torch.cat(valid, dim=1), batch.valid[:, chosen])


@pytest.mark.parametrize(
    "algo", [A2C(), PPO(PPOConfig(epochs=2)), VPG(VPGConfig(value_epochs=1))], ids=["a2c", "ppo", "vpg"]
)
@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_padding_does_not_affect_learning_of_recurrent_agents(algo: Any, reset_mode: str) -> None:
    results = []
    for poison in (False, True):
        agent, sampler = agent_of("discrete", "gru"), sampler_of("discrete", reset_mode=reset_mode)
        with sampler.initialize(agent, seed=SEED, bootstrap_value=True):
            samples = sampler.obtain_samples(0)[0].copy()
            padding = ~samples.env.valid
            assert padding.any() == (reset_mode == "wait")
            if poison:
                samples.env.observation[padding] = 1e3
                samples.env.reward[padding] = float("nan")
                samples.agent.agent_info.value[padding] = 1e6
            algo.initialize(agent, n_itr=2, batch_spec=sampler.batch_spec)
            info = algo.optimize_agent(0, samples)
            results.append([*(parameter.detach() for parameter in agent.parameters()), torch.tensor(info["loss"])])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


CHANCE = 1 / 3


@pytest.mark.parametrize("cell", [CELLS[0], *(pytest.param(cell, marks=pytest.mark.slow) for cell in CELLS[1:])])
def test_recurrent_agent_learns_a_memory_task(cell: str) -> None:
    assert recall(RecurrentCategoricalPgAgent(model_kwargs={"cell": cell, "hidden_size": 32})) > 0.95


def test_feed_forward_agent_does_not_learn_a_memory_task() -> None:
    """A greedy one always names the same cue: a third of 160 episodes, within four standard deviations."""
    assert abs(recall(CategoricalPgAgent()) - CHANCE) < 0.15


def recall(agent: Agent) -> float:
    return learned(agent, CueRecall, n_itr=15, learning_rate=1e-2, minibatches=2, discount=0.9)


@pytest.mark.parametrize("leading", [(), (4,), (5, 4)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_omitted_state_is_zero(cell: str, leading: tuple[int, ...]) -> None:
    agent = agent_of("discrete", cell)
    agent.initialize(EnvSpaces(BOX, spaces.Discrete(3)), seed=0)
    zeros = torch.zeros(leading)
    inputs = StepInputs(torch.randn(*leading, 3), zeros.long(), zeros, zeros.bool())
    state = agent.initial_state(leading[-1]) if leading else tree_rows(agent.initial_state(1), 0)
    close(agent(inputs).value, agent(inputs, state).value)
