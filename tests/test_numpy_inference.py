"""Inference for small batches in NumPy gives what torch gives, always with the current weights."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces

from headrace import numpy_inference
from headrace.distributions import Categorical
from headrace.models import ActorCritic
from headrace.models.mlp import TanhBody
from headrace.types import EnvSpaces

SPACES = EnvSpaces(spaces.Box(-1, 1, (5,), np.float32), spaces.Discrete(3))


def model_of() -> ActorCritic:
    torch.manual_seed(1)
    model = ActorCritic(SPACES, n_outputs=3, hidden_sizes=(64, 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def outputs_of(model: ActorCritic, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the outputs of torch for any number of rows."""
    outputs, value = model(rows, None, None)
    return outputs.detach(), value.detach()


def quick_outputs_of(model: ActorCritic, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        outputs, value = model(rows, None, None)
        return outputs, value


@pytest.fixture
def numpy_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of rows of every product computed in NumPy."""
    calls: list[int] = []
    compute = numpy_inference.NumpyLinear.__call__

    def counted(self: numpy_inference.NumpyLinear, rows: np.ndarray) -> np.ndarray:
        calls.append(len(rows))
        return compute(self, rows)

    monkeypatch.setattr(numpy_inference.NumpyLinear, "__call__", counted)
    return calls


@pytest.mark.parametrize("n", [1, 8, 33, 128])
def test_numpy_inference_equals_torch(n: int, numpy_calls: list[int]) -> None:
    model, rows = model_of(), torch.randn(n, 5)
    for quick, slow in zip(quick_outputs_of(model, rows), outputs_of(model, rows), strict=True):
        assert quick.shape == slow.shape
        torch.testing.assert_close(quick, slow, rtol=2e-6, atol=2e-6)
    assert numpy_calls == [n, n, n]


def test_one_row_without_leading_dims_has_a_value_without_dims() -> None:
    model, row = model_of(), torch.randn(5)
    outputs, value = quick_outputs_of(model, row)
    assert (outputs.shape, value.shape) == ((3,), ())
    torch.testing.assert_close(value, outputs_of(model, row)[1], rtol=2e-6, atol=2e-6)


def test_torch_is_used_for_gradients_large_batches_and_time_dims(numpy_calls: list[int]) -> None:
    model = model_of()
    outputs_of(model, torch.randn(8, 5))
    quick_outputs_of(model, torch.randn(129, 5))  # 129 · 64 · 32 > 2^18
    quick_outputs_of(model, torch.randn(4, 8, 5))
    assert numpy_calls == []


def _assign(model: ActorCritic) -> None:
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()}, assign=True)


def _in_place(model: ActorCritic) -> None:
    model.load_state_dict({key: value - 1 for key, value in model.state_dict().items()})


def _optimize(model: ActorCritic) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    sum(part.sum() for part in model(torch.ones(2, 5), None, None)).backward()
    optimizer.step()


def _replace_weights(model: ActorCritic) -> None:
    head = model.policy.head
    head.weight = torch.nn.Parameter(head.weight.detach().clone() * 2)
    head.bias = torch.nn.Parameter(head.bias.detach().clone() + 2)


def _replace_layers(model: ActorCritic) -> None:
    model.policy.layers[0] = torch.nn.Linear(5, 64)
    model.policy.head = torch.nn.Linear(32, 4)


def _replace_body(model: ActorCritic) -> None:
    model.policy = TanhBody([5, 16, 4])


@pytest.mark.parametrize("change", [_assign, _in_place, _optimize, _replace_weights, _replace_layers, _replace_body])
def test_changed_weights_take_effect_at_once(change: Callable[[ActorCritic], None]) -> None:
    model, rows = model_of(), torch.randn(8, 5)
    before = quick_outputs_of(model, rows)[0]
    change(model)
    after = quick_outputs_of(model, rows)[0]
    assert (before - after).abs().max() > 1e-3
    torch.testing.assert_close(after, outputs_of(model, rows)[0], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copied_model_uses_its_own_weights(duplicate: Callable[[ActorCritic], ActorCritic]) -> None:
    model, rows = model_of(), torch.randn(8, 5)
    quick_outputs_of(model, rows)
    other = duplicate(model)
    _in_place(other)
    torch.testing.assert_close(quick_outputs_of(other, rows)[0], outputs_of(other, rows)[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(quick_outputs_of(model, rows)[0], outputs_of(model, rows)[0], rtol=2e-6, atol=2e-6)


def test_numpy_and_torch_draw_the_same_actions() -> None:
    logits, noise = 2 * torch.randn(500, 7), torch.rand(500, 1)
    slow = Categorical(logits).sample(noise)
    with torch.inference_mode():
        quick = Categorical(logits).sample(noise)
        one = Categorical(logits[3]).sample(noise[3])
    assert quick.dtype == torch.int64
    assert torch.equal(quick, slow)
    assert torch.equal(one, slow[3])


@pytest.mark.parametrize("u", [1e-45, 2.0**-24, 0.5, 1 - 2.0**-24])
@pytest.mark.parametrize("impossible", [[0], [3], [6], [0, 1, 2, 4, 5, 6]])
def test_numpy_inference_never_draws_an_action_of_probability_zero(impossible: list[int], u: float) -> None:
    logits = 4 * torch.randn(200, 7)
    logits[:, impossible] = -float("inf")
    with torch.inference_mode():
        actions = Categorical(logits).sample(torch.full((200, 1), u))
    assert not set(actions.tolist()) & set(impossible)
