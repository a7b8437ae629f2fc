"""A model of the user's own that is none is told what a model must look like."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces

from headrace.agents.base import Agent
from headrace.agents.dqn import CategoricalDqnAgent, DqnAgent
from headrace.agents.pg import CategoricalPgAgent, RecurrentCategoricalPgAgent
from headrace.algos.pg import PPO, PPOConfig
from headrace.cli.agents import tried
from headrace.cli.errors import UsageError
from headrace.models import ActorCritic
from headrace.samplers import BaseSampler, CpuSampler, GpuSampler, SerialSampler
from headrace.types import EnvSpaces
from tests.own_models import Leaky, Narrow, NarrowQ
from tests.walk import Walk

SPACES = EnvSpaces(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2))


class WithoutOutputs(torch.nn.Module):
    """Was not written for headrace."""

    def __init__(self, spaces: EnvSpaces) -> None:
        super().__init__()


class OneInput(Narrow):
    def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
        return x


class OneAnswer(Narrow):
    def forward(self, observation: Any, prev_action: Any, prev_reward: Any) -> Any:
        return super().forward(observation, prev_action, prev_reward)[0]


class Forgetful(Leaky):
    initial_state = None  # type: ignore[assignment]


def no_module(spaces: EnvSpaces, n_outputs: int) -> Any:
    return [n_outputs]


def misused(spaces: EnvSpaces, n_outputs: int) -> Any:
    raise TypeError("a mistake inside")


AGENTS: list[tuple[Callable[..., Agent], str]] = [
    (CategoricalPgAgent, "returns (outputs [..., n_outputs], value [...]);"),
    (RecurrentCategoricalPgAgent, "is_first, state) returns (outputs [..., n_outputs], value [...], new state);"),
    (DqnAgent, "forward(observation, prev_action, prev_reward) returns action values [..., n_outputs];"),
    (CategoricalDqnAgent, "Class(spaces, n_outputs=..., n_atoms=..., **model_kwargs)"),
]


@pytest.mark.parametrize(("agent", "contract"), AGENTS)
def test_a_class_with_other_arguments_is_told_the_right_ones(agent: Callable[..., Agent], contract: str) -> None:
    for model, says in (
        (
            WithoutOutputs,
            "tests.test_own_model.WithoutOutputs does not take the arguments of a model: got an unexpected",
        ),
        (OneInput, "forward() of OneInput does not take its inputs: too many positional arguments"),
        (no_module, "no_module returned a list of 1, not a torch.nn.Module"),
        (WithoutOutputs(SPACES), "the model is an object, WithoutOutputs(...); give its class"),
    ):
        if agent is CategoricalDqnAgent and model in (OneInput, no_module):
            continue  # they do not take `n_atoms`
        with pytest.raises(TypeError) as caught:
            agent(ModelCls=model).initialize(SPACES, seed=0)
        assert says in str(caught.value)
        assert contract in str(caught.value)
        assert '"Your own model"' in str(caught.value)


def test_an_error_inside_of_a_model_is_its_own() -> None:
    with pytest.raises(TypeError, match=r"^a mistake inside$"):
        CategoricalPgAgent(ModelCls=misused).initialize(SPACES, seed=0)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'n_outputs'"):
        CategoricalPgAgent(ModelCls=Narrow, model_kwargs={"n_outputs": 3}).initialize(SPACES, seed=0)
    with pytest.raises(TypeError, match=r"ActorCritic has no setting 'net_arch'; it is called hidden_sizes$"):
        CategoricalPgAgent(model_kwargs={"net_arch": (3,)}).initialize(SPACES, seed=0)


def test_a_memory_begins_with_a_state() -> None:
    with pytest.raises(TypeError, match=r"Forgetful has no initial_state\(n\).*zeros \[n, ...\]"):
        RecurrentCategoricalPgAgent(ModelCls=Forgetful).initialize(SPACES, seed=0)


@pytest.mark.parametrize(
    ("agent", "says"),
    [
        (CategoricalPgAgent(ModelCls=OneAnswer), r"OneAnswer returned Tensor \[\d, \d\], expected \(outputs, value\)"),
        (DqnAgent(ModelCls=Narrow), r"Narrow returned a tuple of 2, expected one tensor \[..., 3\]"),
        (CategoricalPgAgent(ModelCls=NarrowQ), r"NarrowQ returned Tensor \[\d, \d\], expected \(outputs, value\)"),
    ],
    ids=str,
)
def test_what_a_model_returned_is_named(agent: Agent, says: str) -> None:
    with pytest.raises(Exception, match=says):
        with SerialSampler(Walk, batch_T=2, batch_B=2).initialize(agent, seed=0) as sampler:
            sampler.obtain_samples(0)


def test_the_command_line_says_it_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="WithoutOutputs does not take the arguments of a model"):
        tried(lambda: CategoricalPgAgent(ModelCls=WithoutOutputs), SPACES)


def compiled(spaces: EnvSpaces, n_outputs: int) -> Any:
    """The tracer of torch.compile without its code generator, which takes a minute."""
    return torch.compile(ActorCritic(spaces, n_outputs), backend="eager")


@pytest.mark.parametrize("cls", [SerialSampler, CpuSampler, GpuSampler])
def test_compiled_model_acts_and_learns_like_the_model_itself(cls: type[BaseSampler]) -> None:
    batches, weights = [], []
    for ModelCls in (ActorCritic, compiled):
        agent, algo = CategoricalPgAgent(ModelCls=ModelCls), PPO(PPOConfig(epochs=1, minibatches=1))
        sampler = cls(Walk, batch_T=8, batch_B=4, n_workers=1)
        with sampler.initialize(agent, seed=0, bootstrap_value=True):
            algo.initialize(agent, n_itr=1, batch_spec=sampler.batch_spec)
            samples, _ = sampler.obtain_samples(0)
            batches.append(samples.copy())
            algo.optimize_agent(0, samples)
        weights.append([parameter.detach().clone() for parameter in agent.parameters()])
    plain, other = batches
    assert torch.equal(plain.agent.action, other.agent.action)
    assert torch.allclose(plain.agent.agent_info.value, other.agent.agent_info.value, atol=1e-5)
    for one, another in zip(*weights, strict=True):
        assert torch.allclose(one, another, atol=1e-4)
