"""`FlatParameters`: the same steps as with separate parameters."""

import copy
from collections.abc import Callable

import pytest
import torch

from headrace.algos.flat import FlatParameters


def model_of() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))


def loss_of(model: torch.nn.Module, step: int) -> torch.Tensor:
    rows = torch.linspace(-1, 1, 12).reshape(4, 3) + step
    loss: torch.Tensor = (model(rows) - 3.0).square().sum()
    return loss


def trained_plainly(model: torch.nn.Module, max_norm: float, steps: int) -> list[float]:
    optimizer, norms = torch.optim.Adam(model.parameters(), lr=0.1), []
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)))
        optimizer.step()
    return norms


def trained_flat(
    model: torch.nn.Module, max_norm: float, steps: int, meanwhile: Callable[[torch.nn.Module], None] | None = None
) -> list[float]:
    flat = FlatParameters(model.parameters())
    optimizer, norms = torch.optim.Adam([flat.vector], lr=0.1), []
    for step in range(steps):
        flat.zero_grad()
        loss_of(model, step).backward()
        norms.append(float(flat.clip_grad_norm(max_norm)))
        optimizer.step()
        if meanwhile is not None:
            meanwhile(model)
    return norms


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, left), right in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("max_norm", [1.0, 1e6])
def test_flat_steps_equal_steps_of_separate_parameters(max_norm: float) -> None:
    plain, flat = model_of(), model_of()
    norms = trained_plainly(plain, max_norm, steps=5)
    assert trained_flat(flat, max_norm, steps=5) == pytest.approx(norms, rel=1e-5)
    assert_same(flat, plain)
    assert max(norms) > 10  # one of the limits cuts, the other does not


def _clears(model: torch.nn.Module) -> None:
    model.zero_grad(set_to_none=True)


def _loads(model: torch.nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


@pytest.mark.parametrize("meanwhile", [_clears, _loads])
def test_changes_of_the_model_between_steps_are_handled(meanwhile: Callable[[torch.nn.Module], None]) -> None:
    plain, flat = model_of(), model_of()
    trained_plainly(plain, 1.0, steps=4)
    trained_flat(flat, 1.0, steps=4, meanwhile=meanwhile)
    assert_same(flat, plain)


def test_frozen_parameters_are_not_updated() -> None:
    plain, flat = model_of(), model_of()
    for model in (plain, flat):
        model[0].weight.requires_grad_(False)
    trained_plainly(plain, 1e6, steps=3)
    trained_flat(flat, 1e6, steps=3)
    assert torch.equal(flat.state_dict()["0.weight"], model_of().state_dict()["0.weight"])
    assert_same(flat, plain)


def test_moved_parameters_raise_an_error() -> None:
    model = model_of()
    flat = FlatParameters(model.parameters())
    flat.zero_grad()
    bias = model.get_parameter("2.bias")
    bias.data = bias.data.clone()
    with pytest.raises(RuntimeError, match=r"were moved after algo\.initialize"):
        flat.zero_grad()


def test_models_with_two_dtypes_or_no_parameters_are_refused() -> None:
    model = model_of()
    model[2].double()
    with pytest.raises(ValueError, match="of one device and dtype"):
        FlatParameters(model.parameters())
    with pytest.raises(ValueError, match="got none"):
        FlatParameters([])
