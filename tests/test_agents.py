"""Agents and the distributions they draw from."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import CategoricalPgAgent
from headrace.distributions import Categorical
from headrace.errors import AgentFailed
from headrace.models import ActorCritic, QNetwork
from headrace.rng import Stream, env_keys, uniforms
from headrace.samplers import BaseSampler, CpuSampler, SerialSampler
from headrace.types import EnvSpaces, StepInputs
from tests.environments import SEED, SPACES, Stochastic
from tests.walk import Walk

SPACE = EnvSpaces(spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(3))

#: The smallest and the largest draw there is, and what lies beyond them in float32.
EXTREMES = [1e-45, 2.0**-126, 2.0**-24, 0.5, 1 - 2.0**-23, 1 - 2.0**-24]


def agent_of(seed: int = 0, space: EnvSpaces = SPACE, **kwargs: Any) -> CategoricalPgAgent:
    agent = CategoricalPgAgent(**kwargs)
    agent.initialize(space, seed=seed)
    return agent


def inputs_of(*leading: int, seed: int = 0) -> StepInputs:
    generator = torch.Generator().manual_seed(seed)
    return StepInputs(
        torch.randn(*leading, 4, generator=generator),
        torch.zeros(leading, dtype=torch.int64),
        torch.zeros(leading),
        torch.zeros(leading, dtype=torch.bool),
        torch.rand(*leading, 1, generator=generator).clamp(2.0**-24, 1 - 2.0**-24),
    )


# ---- the categorical distribution ----


@pytest.mark.parametrize(
    ("noise", "action"), [(0.01, 0), (0.19, 0), (0.21, 1), (0.49, 1), (0.51, 2), (0.99, 2), (1 - 2.0**-24, 2)]
)
def test_sampling_inverts_the_distribution_function(noise: float, action: int) -> None:
    dist = Categorical(torch.log(torch.tensor([0.2, 0.3, 0.5])))
    assert dist.sample(torch.tensor([noise])).item() == action


def test_draw_equal_to_a_cumulative_probability_chooses_the_lower_action() -> None:
    assert Categorical(torch.zeros(2)).sample(torch.tensor([0.5])).item() == 0
    assert Categorical(torch.zeros(4)).sample(torch.tensor([0.75])).item() == 2


def test_sampling_is_independent_over_any_leading_dims() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.05, 0.05]]))
    noise = torch.tensor([[0.4], [0.4]])
    assert Categorical(logits).sample(noise).tolist() == [1, 0]
    whole = Categorical(logits.expand(5, 2, 3)).sample(noise.expand(5, 2, 1))
    assert whole.tolist() == [[1, 0]] * 5
    assert whole.dtype == torch.int64


@pytest.mark.parametrize("n", [2, 3, 17, 1000])
@pytest.mark.parametrize("impossible", ["first", "middle", "last", "all but one"])
def test_action_of_probability_zero_is_never_sampled(impossible: str, n: int) -> None:
    """For any noise and any rounding of the other probabilities."""
    generator = torch.Generator().manual_seed(n)
    logits = 4 * torch.randn(300, n, generator=generator)
    zero = {"first": [0], "middle": [n // 2], "last": [n - 1], "all but one": [k for k in range(n) if k != n // 3]}
    for minus in (-float("inf"), -1e9):
        logits[:, zero[impossible]] = minus
        for noise in [*EXTREMES, *torch.rand(20, generator=generator).tolist()]:
            actions = Categorical(logits).sample(torch.full((300, 1), noise))
            assert not set(actions.tolist()) & set(zero[impossible])
            assert actions.min() >= 0
            assert actions.max() < n


def test_sampled_frequencies_match_the_probabilities() -> None:
    """With addressed noise: 100,000 draws, five standard deviations."""
    probabilities = torch.tensor([0.05, 0.5, 0.0, 0.25, 0.2])
    noise = torch.from_numpy(uniforms(env_keys(0, Stream.ACTION, range(100)), 0, 1000, 1))
    actions = Categorical(torch.log(probabilities).expand(1000, 100, 5)).sample(noise)
    found = torch.bincount(actions.flatten(), minlength=5) / 1e5
    assert ((found - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / 1e5).sqrt()).all()


@pytest.mark.parametrize("leading", [(), (7,), (3, 7)])
def test_log_prob_and_entropy_agree_with_torch(leading: tuple[int, ...]) -> None:
    logits = 3 * torch.randn(*leading, 5, generator=torch.Generator().manual_seed(1))
    actions = torch.randint(5, leading, generator=torch.Generator().manual_seed(2))
    mine, theirs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(mine.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(mine.entropy(), theirs.entropy())
    assert torch.equal(mine.mode(), theirs.mode)


def test_masked_action_does_not_affect_entropy_or_gradient() -> None:
    """Logits of minus infinity are how invalid actions are masked."""
    logits = torch.tensor([[0.3, -float("inf"), 1.0]], requires_grad=True)
    dist, rest = Categorical(logits), torch.distributions.Categorical(logits=torch.tensor([[0.3, 1.0]]))
    torch.testing.assert_close(dist.entropy(), rest.entropy())
    torch.testing.assert_close(dist.log_prob(torch.tensor([2])), rest.log_prob(torch.tensor([1])))
    (dist.entropy() + dist.log_prob(torch.tensor([2]))).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] == 0


def test_a_distribution_is_a_tree_that_can_be_recorded() -> None:
    from headrace.buffers.tree import tree_rows

    dist = Categorical(torch.arange(12.0).reshape(4, 3))
    row = tree_rows(dist, 2)
    assert isinstance(row, Categorical)
    assert row.logits.tolist() == [6, 7, 8]


# ---- the agent ----


def test_weights_do_not_depend_on_the_number_of_threads() -> None:
    """Orthogonal initialization uses matrix products, whose sums depend on the number of threads."""
    before = torch.get_num_threads()
    wide = {"hidden_sizes": (256, 256)}
    try:
        torch.set_num_threads(2)
        two = agent_of(model_kwargs=wide)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        one = agent_of(model_kwargs=wide)
    finally:
        torch.set_num_threads(before)
    for left, right in zip(two.parameters(), one.parameters(), strict=True):
        assert torch.equal(left, right)


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = ([p.clone() for p in agent_of(seed).parameters()] for seed in (3, 3, 4))
    assert all(torch.equal(p, q) for p, q in zip(first, again, strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(first, other, strict=True))


def test_weights_do_not_depend_on_earlier_random_draws() -> None:
    torch.manual_seed(1)
    first = agent_of().state_dict()["model"]
    torch.manual_seed(2)
    torch.rand(10)
    second = agent_of().state_dict()["model"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sampling_does_not_change_the_global_generators() -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    sampler = SerialSampler(Stochastic, batch_T=8, batch_B=2, eval_n_envs=2)
    with sampler.initialize(CategoricalPgAgent(), seed=SEED):
        sampler.obtain_samples(0)
        sampler.evaluate_agent(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_before)


def test_a_second_initialize_keeps_the_weights() -> None:
    agent = agent_of(0)
    before = {name: tensor.clone() for name, tensor in agent.state_dict()["model"].items()}
    agent.initialize(SPACE, seed=99)
    assert all(torch.equal(before[name], tensor) for name, tensor in agent.state_dict()["model"].items())


def test_agent_keeps_its_weights_in_another_sampler() -> None:
    agent = CategoricalPgAgent()
    with SerialSampler(Stochastic, batch_T=4, batch_B=2).initialize(agent, seed=0):
        pass
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.fill_(0.125)
    with SerialSampler(Stochastic, batch_T=4, batch_B=3).initialize(agent, seed=1) as sampler:
        samples, _ = sampler.obtain_samples(0)
        assert all((parameter == 0.125).all() for parameter in agent.parameters())
        assert len(samples.agent.agent_info.dist.logits.unique()) <= 12  # equal weights: one logit a row


def test_second_initialize_for_other_spaces_is_refused() -> None:
    agent = agent_of()
    with pytest.raises(ValueError, match="the agent was built for"):
        agent.initialize(EnvSpaces(SPACE.observation, spaces.Discrete(4)), seed=0)


@pytest.mark.parametrize("name", ["box", "dict"])
def test_unsupported_action_spaces_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"acts in Discrete, MultiDiscrete \[k\] and MultiBinary \[n\] action spaces"):
        CategoricalPgAgent().initialize(EnvSpaces(SPACE.observation, SPACES[name]), seed=0)


@pytest.mark.parametrize("name", SPACES)
def test_every_observation_space_has_a_default_model(name: str) -> None:
    """For real observations, and for the zeros of padding."""
    space = SPACES[name]
    space.seed(0)
    agent = agent_of(space=EnvSpaces(space, spaces.Discrete(3)))
    from headrace.buffers.tree import tree_map
    from headrace.envs.spaces import null_value

    observations = [space.sample() for _ in range(4)] + [null_value(space)]
    rows = tree_map(lambda *leaves: torch.from_numpy(np.stack(leaves)), *observations)
    inputs = inputs_of(5)
    inputs.observation = rows
    info = agent(inputs)
    assert isinstance(info.dist, Categorical)
    assert info.dist.logits.shape == (5, 3)
    assert info.value.shape == (5,)
    assert info.dist.logits.isfinite().all()


@pytest.mark.parametrize("leading", [(), (5,), (6, 5)])
def test_training_forward_takes_any_leading_dims(leading: tuple[int, ...]) -> None:
    agent, inputs = agent_of(), inputs_of(*leading)
    info = agent(inputs)
    assert isinstance(info.dist, Categorical)
    assert info.dist.logits.shape == (*leading, 3)
    assert info.value.shape == leading
    flat = agent(StepInputs(inputs.observation.reshape(-1, 4), None, None, None))
    assert isinstance(flat.dist, Categorical)
    torch.testing.assert_close(info.dist.logits.reshape(-1, 3), flat.dist.logits)
    (info.value.sum() + info.dist.logits.sum()).backward()
    assert all(parameter.grad is not None for parameter in agent.parameters())


def test_sample_mode_samples_and_eval_mode_takes_the_most_probable_action() -> None:
    agent, inputs = agent_of(), inputs_of(200)
    agent.sample_mode(0)
    step = agent.step(inputs, None)
    assert torch.equal(step.action, step.agent_info.dist.sample(inputs.noise))
    assert set(step.action.tolist()) == {0, 1, 2}
    assert step.state is None
    assert not agent.model.training
    agent.eval_mode(0)
    greedy = agent.step(inputs, None)
    assert torch.equal(greedy.action, greedy.agent_info.dist.logits.argmax(-1))
    assert not torch.equal(greedy.action, step.action)
    agent.train_mode(0)
    assert agent.model.training
    agent.sample_mode(1)
    assert torch.equal(agent.step(inputs, None).action, step.action)


def test_outputs_of_environments_are_independent() -> None:
    agent, inputs = agent_of(), inputs_of(64)
    agent.sample_mode(0)
    whole = agent.step(inputs, None)
    part = agent.step(StepInputs(*(value[32:] for value in vars(inputs).values())), None)
    assert torch.equal(part.action, whole.action[32:])
    torch.testing.assert_close(part.agent_info.value, whole.agent_info.value[32:])


def test_value_equals_that_of_the_training_forward() -> None:
    agent, inputs = agent_of(), inputs_of(9)
    assert torch.equal(agent.value(inputs, None), agent(inputs).value)
    assert agent.value(inputs, None).shape == (9,)


def test_custom_model_is_used() -> None:
    class Model(torch.nn.Module):
        def __init__(self, spaces: EnvSpaces, n_outputs: int, width: int) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, n_outputs)
            self.width = width

        def forward(self, observation: Any, prev_action: Any, prev_reward: Any) -> Any:
            return self.layer(observation), prev_reward + prev_action

    agent = agent_of(ModelCls=Model, model_kwargs={"width": 5})
    assert agent.model.width == 5
    inputs = inputs_of(3)
    inputs.prev_reward, inputs.prev_action = torch.arange(3.0), torch.ones(3)
    assert agent.value(inputs, None).tolist() == [1, 2, 3]


class Misfit(ActorCritic):
    """A model whose outputs have almost the right shapes."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int, how: str) -> None:
        super().__init__(spaces, n_outputs + {"wide": 1, "narrow": -1}.get(how, 0))
        self.how = how

    def forward(self, *inputs: Any) -> Any:
        outputs, value = super().forward(*inputs)
        if self.how == "raises":
            raise KeyError("oops")
        return outputs, value[..., None] if self.how == "column" else value


class MisfitQ(QNetwork):
    def __init__(self, spaces: EnvSpaces, n_outputs: int, how: str, **kwargs: Any) -> None:
        super().__init__(spaces, n_outputs + {"wide": 1, "narrow": -1}[how], **kwargs)


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler])
@pytest.mark.parametrize(
    ("make", "how", "says"),
    [
        (
            CategoricalPgAgent,
            "wide",
            r"Misfit returned outputs \[1, 4\] and values \[1\]; expected outputs \[\.\.\., 3\]",
        ),
        (CategoricalPgAgent, "narrow", r"returned outputs \[1, 2\]"),
        (CategoricalPgAgent, "column", r"values \[1, 1\]; .* and values \[\.\.\.\]"),
        (CategoricalPgAgent, "raises", "step raised KeyError: 'oops'"),
        (DqnAgent, "wide", r"MisfitQ returned \[1, 4\]; expected \[\.\.\., 3\]"),
        (DqnAgent, "narrow", r"MisfitQ returned \[1, 2\]"),
        (CategoricalDqnAgent, "wide", r"MisfitQ returned \[1, 4, 51\]; expected \[\.\.\., 3, 51\]"),
    ],
)
def test_model_with_wrong_output_shapes_raises_agent_failed_at_initialize(
    cls: type[BaseSampler], make: Any, how: str, says: str
) -> None:
    agent = make(ModelCls=Misfit if make is CategoricalPgAgent else MisfitQ, model_kwargs={"how": how})
    with pytest.raises(AgentFailed, match=says) as caught:
        cls(Walk, batch_T=4, batch_B=2, n_workers=1).initialize(agent, seed=0)
    assert "in _forward" in caught.value.traceback_text


def test_model_with_lazy_parameters_is_refused() -> None:
    class Lazy(torch.nn.Module):
        def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
            super().__init__()
            self.layer = torch.nn.LazyLinear(n_outputs)

    with pytest.raises(TypeError, match=r"layer\.weight of Lazy has no size before its first input"):
        agent_of(ModelCls=Lazy)


def test_default_model_has_the_given_hidden_sizes_and_a_nearly_uniform_initial_policy() -> None:
    agent = agent_of(model_kwargs={"hidden_sizes": (16, 8, 4)})
    assert isinstance(agent.model, ActorCritic)
    layers: Any = agent.model.policy.layers
    assert [tuple(layer.weight.shape) for layer in layers] == [(16, 4), (8, 16), (4, 8)]
    dist = agent_of()(inputs_of(500)).dist
    assert isinstance(dist, Categorical)
    probabilities = torch.softmax(dist.logits, -1)
    assert (probabilities - 1 / 3).abs().max() < 0.02


def test_pickled_state_dict_is_loaded_in_place() -> None:
    first, second = agent_of(0), agent_of(1)
    places = [parameter.data_ptr() for parameter in second.parameters()]
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    inputs = inputs_of(5)
    assert torch.equal(first(inputs).value, second(inputs).value)
    assert [parameter.data_ptr() for parameter in second.parameters()] == places


@pytest.mark.parametrize("reset_mode", ["mid_batch", "wait"])
def test_the_training_forward_reproduces_the_recorded_log_probabilities_and_values(reset_mode: str) -> None:
    """Episodes end within the batch."""
    agent = CategoricalPgAgent()
    sampler = SerialSampler(Stochastic, batch_T=20, batch_B=6, reset_mode=reset_mode)
    with sampler.initialize(agent, seed=SEED, bootstrap_value=True):
        for itr in range(3):
            samples, _ = sampler.obtain_samples(itr)
            env, recorded = samples.env, samples.agent
            assert env.done.sum() > 3
            agent.train_mode(itr)
            inputs = StepInputs(env.observation, recorded.prev_action, env.prev_reward, env.is_first)
            outputs = agent(inputs, recorded.first_state)
            torch.testing.assert_close(
                outputs.dist.log_prob(recorded.action),
                recorded.agent_info.dist.log_prob(recorded.action),
                rtol=0,
                atol=1e-5,
            )
            torch.testing.assert_close(outputs.value, recorded.agent_info.value, rtol=0, atol=1e-5)
            last = StepInputs(env.last_observation, None, None, None)
            torch.testing.assert_close(agent(last).value, recorded.bootstrap_value, rtol=0, atol=1e-5)
            with torch.no_grad():
                for parameter in agent.parameters():
                    parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel()).reshape(parameter.shape) + itr))
