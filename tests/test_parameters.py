"""Parameters arrive in another process as they are now, whatever became of the model since the last time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headrace.agents.parameters import ParameterSlots
from headrace.agents.pg import CategoricalPgAgent
from headrace.models import ActorCritic
from headrace.types import EnvSpaces
from tests.walk import Walk

SPACES = EnvSpaces(Walk().observation_space, Walk().action_space)


class Odd(ActorCritic):
    """Has tensors that NumPy does not know, that do not lie in one piece, and that are empty."""

    def __init__(self, spaces: EnvSpaces, n_outputs: int) -> None:
        super().__init__(spaces, n_outputs)
        self.register_buffer("count", torch.tensor(3), persistent=False)
        self.register_buffer("short", torch.arange(4, dtype=torch.bfloat16))
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("none", torch.zeros(0))


class OwnState(CategoricalPgAgent):
    """Acts by a tensor outside its model, too."""

    def build_model(self, spaces: EnvSpaces) -> torch.nn.Module:
        self.temperature = torch.ones(1)
        return super().build_model(spaces)

    def acting_state(self) -> list[torch.Tensor]:
        return [*super().acting_state(), self.temperature]


def pair(agent: Callable[..., Any] = CategoricalPgAgent) -> tuple[Any, Any, Callable[[int], None]]:
    """Returns a learner's agent, an acting one with other weights, and what publishes and loads a version."""
    learner, actor = agent(ModelCls=Odd), agent(ModelCls=Odd)
    learner.initialize(SPACES, seed=0)
    actor.initialize(SPACES, seed=1)
    kept: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if len(kept) < n_arrays:
            kept.append(np.zeros(shape, dtype))
            return kept[-1]
        again = kept[n_attached[0]]
        n_attached[0] += 1
        return again

    n_arrays, n_attached = 2 * len(learner.acting_state()), [0]
    writer, reader = ParameterSlots(learner, allocate), ParameterSlots(actor, allocate)

    def hand_over(version: int) -> None:
        writer.publish(learner, version)
        reader.load(actor, version)

    return learner, actor, hand_over


def assert_equal(learner: Any, actor: Any) -> None:
    for own, other in zip(learner.acting_state(), actor.acting_state(), strict=True):
        assert torch.equal(own, other)


def updated_in_place(model: Any) -> None:
    with torch.no_grad():
        model.policy.head.weight += 1.0


def another_parameter(model: Any) -> None:
    model.policy.head.weight = torch.nn.Parameter(model.policy.head.weight.detach() + 1.0)


def another_buffer(model: Any) -> None:
    model.short = model.short + 1.0


def other_memory(model: Any) -> None:
    model.policy.head.weight.data = model.policy.head.weight.detach() + 1.0


def another_layer(model: Any) -> None:
    before = model.policy.head
    model.policy.head = torch.nn.Linear(before.in_features, before.out_features)


def turned(model: Any) -> None:
    model.turned = (model.turned + 1.0).contiguous()


CHANGES = [updated_in_place, another_parameter, another_buffer, other_memory, another_layer, turned]


@pytest.mark.parametrize("change", CHANGES)
def test_loaded_parameters_are_those_of_the_moment(change: Callable[[Any], None]) -> None:
    learner, actor, hand_over = pair()
    for version in range(2):
        hand_over(version)
        assert_equal(learner, actor)
    change(learner.model)
    hand_over(2)
    assert_equal(learner, actor)


def test_another_model_of_the_agent_is_published() -> None:
    learner, actor, hand_over = pair()
    hand_over(0)
    learner.model = learner.build_model(SPACES)
    hand_over(1)
    assert_equal(learner, actor)


def test_tensor_outside_the_model_is_published() -> None:
    learner, actor, hand_over = pair(OwnState)
    hand_over(0)
    learner.temperature = torch.full((1,), 5.0)
    hand_over(1)
    assert_equal(learner, actor)
    assert actor.temperature.item() == 5.0
